//! The ledger's own schema, created idempotently by the first feeder that has the right.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgPool;
use sqlx::{PgConnection, SqlSafeStr};

use super::LedgerError;
use super::errors::{is_permission_denied, is_unavailable};
use super::run::{current_role, ledger_permission_error};
use crate::sql::quote_identifier;

const SCHEMA: &str = "bucket_brigade";

macro_rules! step {
    ($number:literal, $name:literal, $file:literal) => {
        (
            $number,
            $name,
            include_str!(concat!("../../migrations/", $file)),
        )
    };
}

/// Number, name and SQL of each step from nothing to this version's ledger. A released step never
/// changes: databases remember its checksum.
const MIGRATIONS: [(i64, &str, &str); 15] = [
    step!(1, "ledger", "0001_ledger.sql"),
    step!(2, "steering", "0002_steering.sql"),
    step!(3, "proof", "0003_proof.sql"),
    step!(4, "undo", "0004_undo.sql"),
    step!(5, "runs", "0005_runs.sql"),
    step!(6, "scope", "0006_scope.sql"),
    step!(7, "options", "0007_options.sql"),
    step!(8, "history", "0008_history.sql"),
    step!(10, "keys", "0010_keys.sql"),
    step!(12, "commands", "0012_commands.sql"),
    step!(13, "control", "0013_control.sql"),
    step!(14, "cursors", "0014_cursors.sql"),
    step!(15, "fence", "0015_fence.sql"),
    step!(16, "found", "0016_found.sql"),
    step!(17, "long paths", "0017_long_paths.sql"),
];

/// The step this version is at.
const LATEST_MIGRATION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// The steps a ledger has been through; null where it is no ledger at all.
const SELECT_VERSION: &str =
    "SELECT max(version) FROM bucket_brigade.schema_migrations WHERE success";

/// Only the tables' owner may alter them.
const SELECT_OWNER: &str = "SELECT tableowner::text FROM pg_tables
    WHERE schemaname = 'bucket_brigade' AND tablename = 'run'";

/// Tables of the ledger whose rows are hidden from this role, as where every new table gets row level security.
const SELECT_HIDDEN: &str = "SELECT current_user::text,
        string_agg(format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY;', oid::regclass), E'\\n' ORDER BY relname)
    FROM pg_class
    WHERE relnamespace = to_regnamespace('bucket_brigade') AND relkind = 'r' AND row_security_active(oid)";

fn build_migrator() -> Migrator {
    let steps = MIGRATIONS.map(|(number, name, sql)| {
        let kind = MigrationType::Simple;
        Migration::new(number, name.into(), kind, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(steps.into());
    migrator.dangerous_set_table_name("bucket_brigade.schema_migrations");
    migrator
}

/// Creates the schema and its tables where they are missing, or brings them up to date.
pub(super) async fn ensure_schema(pool: &PgPool, session: PgConnection) -> Result<(), LedgerError> {
    if !schema_exists(pool).await? {
        // Two feeders may start together: the second finds the schema there.
        let created = sqlx::query("CREATE SCHEMA IF NOT EXISTS bucket_brigade")
            .execute(pool)
            .await;
        match created {
            Err(error) if is_permission_denied(&error) => {
                return Err(schema_permission_error(pool).await?);
            }
            Err(error) if !schema_exists(pool).await? => return Err(error.into()),
            _ => {}
        }
    }
    let Err(error) = migrate(session).await else {
        return ensure_visible(pool).await;
    };
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if is_permission_denied(&error) =>
        {
            Err(schema_permission_error(pool).await?)
        }
        // Not the ledger's fault, and over soon.
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if is_unavailable(&error) =>
        {
            Err(error.into())
        }
        MigrateError::VersionMissing(step) if step > LATEST_MIGRATION => {
            Err(later_version_error(step))
        }
        other => Err(LedgerError::IncompatibleLedger(crate::aws::error_chain(
            &other,
        ))),
    }
}

/// A step takes the time that it takes on a large ledger: in a session that ends with it.
async fn migrate(mut session: PgConnection) -> Result<(), MigrateError> {
    sqlx::raw_sql("SET statement_timeout = 0")
        .execute(&mut session)
        .await?;
    build_migrator().run(&mut session).await
}

/// Whether there is a ledger of this version, for a process that may not make one: one of an earlier version is
/// brought up to date by this version's feeder.
///
/// # Errors
/// It is a later version's.
pub(super) async fn is_ready(pool: &PgPool) -> Result<bool, LedgerError> {
    ensure_visible(pool).await?;
    match find_version(pool).await {
        Ok(Some(step)) if step > LATEST_MIGRATION => Err(later_version_error(step)),
        Ok(version) => Ok(version == Some(LATEST_MIGRATION)),
        Err(error) if is_permission_denied(&error) => Err(ledger_permission_error(pool).await?),
        Err(error) => Err(error.into()),
    }
}

/// Hidden rows would look like a ledger without runs, and updates of them like done.
async fn ensure_visible(pool: &PgPool) -> Result<(), LedgerError> {
    let query = sqlx::query_as(SELECT_HIDDEN);
    let (user, sql): (String, Option<String>) = query.fetch_one(pool).await?;
    sql.map_or(Ok(()), |sql| {
        Err(LedgerError::NotAllowed {
            what: "see every row of the ledger: row level security applies to its tables".into(),
            user,
            sql,
        })
    })
}

fn later_version_error(step: i64) -> LedgerError {
    LedgerError::IncompatibleLedger(format!(
        "it is that of a later version (step {step}): start the same version everywhere"
    ))
}

/// Whether there is a ledger to bring up to date.
pub(super) async fn is_behind(pool: &PgPool) -> Result<bool, LedgerError> {
    match find_version(pool).await {
        Err(error) if is_permission_denied(&error) => Ok(false),
        version => Ok(version?.is_some_and(|step| step < LATEST_MIGRATION)),
    }
}

async fn find_version(pool: &PgPool) -> Result<Option<i64>, sqlx::Error> {
    let exists = "SELECT to_regclass('bucket_brigade.schema_migrations') IS NOT NULL";
    if !sqlx::query_scalar(exists).fetch_one(pool).await? {
        return Ok(None);
    }
    sqlx::query_scalar(SELECT_VERSION).fetch_one(pool).await
}

async fn schema_exists(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL");
    query.bind(SCHEMA).fetch_one(pool).await
}

async fn schema_permission_error(pool: &PgPool) -> Result<LedgerError, LedgerError> {
    let (user, role) = current_role(pool).await?;
    let query = sqlx::query_scalar(SELECT_OWNER);
    let owner: Option<String> = query.fetch_optional(pool).await?;
    let (what, sql) = match owner {
        Some(owner) if owner != user => (
            format!("bring the ledger up to date (schema '{SCHEMA}')"),
            format!("GRANT {} TO {role};", quote_identifier(&owner)),
        ),
        _ => (
            format!("create the ledger (schema '{SCHEMA}')"),
            format!(
                "CREATE SCHEMA IF NOT EXISTS {SCHEMA} AUTHORIZATION {role};\nGRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role};"
            ),
        ),
    };
    Ok(LedgerError::NotAllowed { user, what, sql })
}
