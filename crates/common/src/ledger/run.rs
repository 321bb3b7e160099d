//! One run: found by its settings, so that starting the same migration again continues it.

use sqlx::postgres::PgPool;

use super::errors::is_permission_denied;
use super::schema::SchemaState;
use super::{
    ApplicationTable, ConnectionPurpose, LedgerError, PostgresLedger, TableAccess, TableSpec,
    connection, lock, schema,
};
use crate::path_rule::PathRule;

/// What makes a migration this migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// The table and its columns.
    pub table: TableSpec,
    pub rule: PathRule,
    /// Where the images are.
    pub source_bucket: String,
    pub destination_bucket: String,
}

/// `$1` table, `$2` id column, `$3` path column, `$4`, `$5` path prefixes, `$6` source bucket, `$7` its
/// key prefix, `$8` destination bucket, `$9` its key prefix.
const SELECT_RUN: &str = "SELECT id FROM bucket_brigade.run
    WHERE (images_table, id_column, path_column, old_prefix, new_prefix, source_bucket,
           source_key_prefix, destination_bucket, destination_key_prefix)
        = ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

const INSERT_RUN: &str = "INSERT INTO bucket_brigade.run
    (images_table, id_column, path_column, old_prefix, new_prefix, source_bucket,
     source_key_prefix, destination_bucket, destination_key_prefix)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";

const LIST_RUNS: &str =
    "SELECT format('%s: %s (s3://%s) to %s (s3://%s)', images_table, old_prefix,
        source_bucket, new_prefix, destination_bucket)
    FROM bucket_brigade.run ORDER BY id DESC LIMIT 5";

impl PostgresLedger {
    /// Opens the run, creating ledger and run where they are missing: the feeder's way.
    pub async fn open(pool: PgPool, spec: &RunSpec, worker: &str) -> Result<Self, LedgerError> {
        let purpose = ConnectionPurpose::Feeder;
        let table = discover_table(&pool, spec, &purpose, TableAccess::Read).await?;
        // Before the first lock of all, that of the ledger's migrations.
        let mut session = pool.acquire().await?.detach();
        lock::ensure_own_session(&mut session, &pool).await?;
        schema::ensure_schema(&pool, session).await?;
        bind_spec(sqlx::query(INSERT_RUN), spec, &table)
            .execute(&pool)
            .await?;
        match select_run_id(&pool, spec, &table).await? {
            Some(run_id) => Ok(Self::new(pool, run_id, worker, spec.rule.clone(), table)),
            None => Err(sqlx::Error::RowNotFound.into()),
        }
    }

    /// Finds the run that a feeder opened: the consumer's way. None when there is none yet.
    pub async fn find_run(
        pool: PgPool,
        spec: &RunSpec,
        worker: &str,
    ) -> Result<Option<Self>, LedgerError> {
        let purpose = ConnectionPurpose::Consumer;
        Self::find_with_access(pool, spec, worker, &purpose, TableAccess::Update).await
    }

    /// The same for an operator's command, which cannot wait for a feeder to come.
    pub async fn open_existing(
        pool: PgPool,
        spec: &RunSpec,
        worker: &str,
        purpose: &ConnectionPurpose,
        access: TableAccess,
    ) -> Result<Self, LedgerError> {
        let found = Self::find_with_access(pool.clone(), spec, worker, purpose, access).await?;
        match found {
            Some(ledger) => Ok(ledger),
            None => Err(no_run_error(&pool).await?),
        }
    }

    async fn find_with_access(
        pool: PgPool,
        spec: &RunSpec,
        worker: &str,
        purpose: &ConnectionPurpose,
        access: TableAccess,
    ) -> Result<Option<Self>, LedgerError> {
        let table = discover_table(&pool, spec, purpose, access).await?;
        match schema::find_schema(&pool).await {
            Ok(SchemaState::Ready) => {}
            Ok(SchemaState::NotReady) => return Ok(None),
            Ok(SchemaState::Newer(step)) => return Err(newer_schema_error(step)),
            Err(error) if is_permission_denied(&error) => {
                return Err(ledger_permission_error(&pool).await?);
            }
            Err(error) => return Err(error.into()),
        }
        let run = select_run_id(&pool, spec, &table).await?;
        Ok(run.map(|run_id| Self::new(pool, run_id, worker, spec.rule.clone(), table)))
    }
}

fn newer_schema_error(step: i64) -> LedgerError {
    LedgerError::IncompatibleLedger(format!(
        "it is that of a later version (step {step}): start the same version everywhere"
    ))
}

/// Why there is no run: none at all, an older ledger, or other settings than those of the runs there are.
async fn no_run_error(pool: &PgPool) -> Result<LedgerError, LedgerError> {
    let runs: Vec<(String,)> = match schema::find_schema(pool).await? {
        SchemaState::Ready => sqlx::query_as(LIST_RUNS).fetch_all(pool).await?,
        _ => Vec::new(),
    };
    let others: Vec<String> = runs.into_iter().map(|(run,)| run).collect();
    Ok(LedgerError::NoRun {
        hint: if others.is_empty() {
            ": start the feeder once, or the feeder of this version where another has opened the run"
                .into()
        } else {
            format!("; there are these:\n  {}", others.join("\n  "))
        },
    })
}

/// Finds the table and checks it, without a ledger.
pub async fn discover_table(
    pool: &PgPool,
    spec: &RunSpec,
    purpose: &ConnectionPurpose,
    access: TableAccess,
) -> Result<ApplicationTable, LedgerError> {
    connection::prepare_pool(pool, purpose, access).await?;
    ApplicationTable::discover(pool, &spec.table, access).await
}

async fn select_run_id(
    pool: &PgPool,
    spec: &RunSpec,
    table: &ApplicationTable,
) -> Result<Option<i64>, LedgerError> {
    let query = bind_spec(sqlx::query(SELECT_RUN), spec, table);
    match query.fetch_optional(pool).await {
        Ok(row) => Ok(row.map(|row| sqlx::Row::get(&row, 0))),
        Err(error) if is_permission_denied(&error) => Err(ledger_permission_error(pool).await?),
        Err(error) => Err(error.into()),
    }
}

/// The consumer's role may be another than the feeder's, which owns the ledger.
async fn ledger_permission_error(pool: &PgPool) -> Result<LedgerError, LedgerError> {
    let (user,): (String,) = sqlx::query_as("SELECT current_user::text")
        .fetch_one(pool)
        .await?;
    let role = crate::sql::quote_identifier(&user);
    Ok(LedgerError::NotAllowed {
        what: "use the ledger (schema 'bucket_brigade')".into(),
        sql: format!(
            "GRANT USAGE ON SCHEMA bucket_brigade TO {role};\nGRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA bucket_brigade TO {role};"
        ),
        user,
    })
}

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind_spec<'q>(query: PgQuery<'q>, spec: &'q RunSpec, table: &ApplicationTable) -> PgQuery<'q> {
    query
        .bind(&table.sql)
        .bind(&spec.table.id_column)
        .bind(&spec.table.path_column)
        .bind(spec.rule.old_prefix())
        .bind(spec.rule.new_prefix())
        .bind(&spec.source_bucket)
        .bind(spec.rule.source_key_prefix())
        .bind(&spec.destination_bucket)
        .bind(spec.rule.destination_key_prefix())
}
