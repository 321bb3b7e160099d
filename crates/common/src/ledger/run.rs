//! One run: found by its settings, so that starting the same migration again continues it.

use std::time::Duration;

use sqlx::postgres::PgPool;
use sqlx::{PgConnection, Row as _};
use tokio::time::timeout;

use super::errors::is_permission_denied;
use super::schema::SchemaState;
use super::{
    ApplicationTable, ConnectionPurpose, LedgerError, PostgresLedger, TableAccess, TableSpec,
    connection, schema,
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

/// Advisory locks are numbers; this one is ours, paired with the run's. ("bb" in ASCII.)
const FEEDER_LOCK_SPACE: i32 = 0x6262;

/// The same for the commands that prove, undo and clean. ("bo")
const OPERATOR_LOCK_SPACE: i32 = 0x626f;

const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that has not confirmed its lock by then does not hold it.
const LOCK_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// `$1` space, `$2` run. The lock belongs to a session.
const HOLDS_LOCK: &str = "SELECT EXISTS (SELECT 1 FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() AND objsubid = 2
      AND classid::bigint = $1 AND objid::bigint = $2)";

/// Holds the run's advisory lock for as long as it lives. It has a connection of its own, because
/// the lock ends with the connection.
#[derive(Debug)]
pub struct AdvisoryLock {
    connection: PgConnection,
    space: i32,
    run: i32,
}

impl AdvisoryLock {
    /// Whether the connection responds, and its session holds the lock.
    pub async fn is_held(&mut self) -> bool {
        let query = sqlx::query_scalar(HOLDS_LOCK).bind(i64::from(self.space));
        let query = query.bind(i64::from(self.run));
        let is_held = query.fetch_one(&mut self.connection);
        matches!(timeout(LOCK_CHECK_TIMEOUT, is_held).await, Ok(Ok(true)))
    }
}

/// Catalogs and single rows take no time: a connection that has fallen silent is given up, and another tried.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A step takes the time that it takes on a large ledger.
const UPGRADE_TIMEOUT: Duration = Duration::from_mins(10);

async fn within<T>(
    limit: Duration,
    opening: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    timeout(limit, opening).await.unwrap_or_else(|_| {
        let silence = format!("no response within {limit:?}");
        Err(LedgerError::Unreachable(silence))
    })
}

impl PostgresLedger {
    /// Opens the run, creating ledger and run where they are missing: the feeder's way.
    pub async fn open(pool: PgPool, spec: &RunSpec, worker: &str) -> Result<Self, LedgerError> {
        let purpose = ConnectionPurpose::Feeder;
        let discover = discover_table(&pool, spec, &purpose, TableAccess::Read);
        let table = within(OPEN_TIMEOUT, discover).await?;
        let is_behind = within(OPEN_TIMEOUT, schema::is_behind(&pool)).await?;
        let limit = if is_behind {
            UPGRADE_TIMEOUT
        } else {
            OPEN_TIMEOUT
        };
        within(limit, schema::ensure_schema(&pool)).await?;
        let run_id = within(OPEN_TIMEOUT, async {
            let insert = bind_spec(sqlx::query(INSERT_RUN), spec, &table);
            insert.execute(&pool).await?;
            select_run_id(&pool, spec, &table).await
        });
        match run_id.await? {
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
        let find = Self::find_with_access(pool, spec, worker, &purpose, TableAccess::Update);
        within(OPEN_TIMEOUT, find).await
    }

    /// The same for an operator's command, which cannot wait for a feeder to come.
    pub async fn open_existing(
        pool: PgPool,
        spec: &RunSpec,
        worker: &str,
        purpose: &ConnectionPurpose,
        access: TableAccess,
    ) -> Result<Self, LedgerError> {
        let find = Self::find_with_access(pool.clone(), spec, worker, purpose, access);
        let found = within(OPEN_TIMEOUT, find).await?;
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

    /// Keeps every other feeder of this run out.
    pub async fn acquire_feeder_lock(&self) -> Result<AdvisoryLock, LedgerError> {
        let lock = self.try_lock(FEEDER_LOCK_SPACE).await?;
        lock.ok_or(LedgerError::AnotherFeeder(self.run_id))
    }

    /// Keeps every other verify, rollback and clean of this run out; none when one is at work already.
    pub async fn acquire_operator_lock(&self) -> Result<Option<AdvisoryLock>, LedgerError> {
        self.try_lock(OPERATOR_LOCK_SPACE).await
    }

    async fn try_lock(&self, space: i32) -> Result<Option<AdvisoryLock>, LedgerError> {
        let locked = timeout(LOCK_TIMEOUT, self.lock_session(space)).await;
        locked.unwrap_or_else(|_| {
            let silence = format!("no lock within {LOCK_TIMEOUT:?}");
            Err(LedgerError::Unreachable(silence))
        })
    }

    async fn lock_session(&self, space: i32) -> Result<Option<AdvisoryLock>, LedgerError> {
        let mut connection = self.pool.acquire().await?.detach();
        ensure_own_session(&mut connection, &self.pool).await?;
        let run = i32::try_from(self.run_id).unwrap_or(i32::MAX);
        let (locked,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_lock($1, $2)")
            .bind(space)
            .bind(run)
            .fetch_one(&mut connection)
            .await?;
        Ok(locked.then_some(AdvisoryLock {
            connection,
            space,
            run,
        }))
    }
}

/// A pooler in transaction mode gives the server's session that served us last to whatever begins a
/// transaction next, and us another one meanwhile.
async fn ensure_own_session(
    connection: &mut PgConnection,
    pool: &PgPool,
) -> Result<(), LedgerError> {
    let own = backend_pid(connection).await?;
    let mut other = pool.begin().await?;
    let others = backend_pid(&mut other).await?;
    let again = backend_pid(connection).await?;
    other.rollback().await?;
    if own == others || own != again {
        return Err(LedgerError::TransactionPooler);
    }
    Ok(())
}

/// By the simple protocol: such a pooler may know no prepared statements.
async fn backend_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT pg_backend_pid()")
        .fetch_one(connection)
        .await?;
    row.try_get(0)
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
