//! The ledger's own schema, created idempotently by whoever may.

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgPool;

use super::LedgerError;
use super::errors::{is_away, is_denied};
use crate::sql::quote_identifier;

const SCHEMA: &str = "bucket_brigade";

fn migrator() -> Migrator {
    let ledger = Migration::new(
        1,
        "ledger".into(),
        MigrationType::Simple,
        include_str!("../../migrations/0001_ledger.sql").into_sql_str(),
        false,
    );
    let mut migrator = Migrator::with_migrations(vec![ledger]);
    migrator.dangerous_set_table_name("bucket_brigade.schema_migrations");
    migrator
}

/// Creates the schema and its tables where they are missing, or brings them up to date.
///
/// # Errors
/// [`LedgerError::NotAllowed`] with the SQL to hand to a database administrator.
pub(super) async fn ensure(pool: &PgPool) -> Result<(), LedgerError> {
    if !exists(pool).await? {
        // Two feeders may start together: the second finds the schema there.
        let created = sqlx::query("CREATE SCHEMA IF NOT EXISTS bucket_brigade")
            .execute(pool)
            .await;
        match created {
            Err(error) if is_denied(&error) => return Err(not_allowed(pool).await?),
            Err(error) if !exists(pool).await? => return Err(error.into()),
            _ => {}
        }
    }
    let Err(error) = migrator().run(pool).await else {
        return Ok(());
    };
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if is_denied(&error) =>
        {
            Err(not_allowed(pool).await?)
        }
        // Not the ledger's fault, and over soon.
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if is_away(&error) =>
        {
            Err(error.into())
        }
        other => Err(LedgerError::ForeignLedger(crate::aws::causes(&other))),
    }
}

/// Whether the ledger has been created.
pub(super) async fn is_ready(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let (ready,): (bool,) =
        sqlx::query_as("SELECT to_regclass('bucket_brigade.counters') IS NOT NULL")
            .fetch_one(pool)
            .await?;
    Ok(ready)
}

async fn exists(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let (exists,): (bool,) = sqlx::query_as("SELECT to_regnamespace($1) IS NOT NULL")
        .bind(SCHEMA)
        .fetch_one(pool)
        .await?;
    Ok(exists)
}

async fn not_allowed(pool: &PgPool) -> Result<LedgerError, LedgerError> {
    let (user,): (String,) = sqlx::query_as("SELECT current_user::text")
        .fetch_one(pool)
        .await?;
    let role = quote_identifier(&user);
    Ok(LedgerError::NotAllowed {
        what: format!("create the ledger (schema '{SCHEMA}')"),
        sql: format!(
            "CREATE SCHEMA IF NOT EXISTS {SCHEMA} AUTHORIZATION {role};\nGRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role};"
        ),
        user,
    })
}
