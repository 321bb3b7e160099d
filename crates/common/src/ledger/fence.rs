//! What keeps a process that stood still, or a request that a silent network delivers late, from doing harm.
//!
//! **The fence** is a number of the run that rollback and clean raise, under their locks. Messages carry the one that
//! their feeder found, and a commit is carried out only where it is the run's still. So a message of a feeder that was
//! cut off, and the commit of a consumer that was, move no row that went back meanwhile, nor to a copy that is gone.
//! **Claims** do the same for the statements of the commands: each names the sessions that hold its locks.
//! **Marks** stand for the requests to remove, which no database can call back: whoever takes a lock waits for those
//! that are being written, and for the end of the requests.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;
use tokio::time::{Instant, sleep};

use super::errors::within_limit;
use super::lock::holds_locks_sql;
use super::{LedgerError, LockClaims, PostgresLedger, RunSpec, with_timeout};
use crate::ledger::move_ledger::StatementError;
use crate::may_be_bucket;

/// In SQL, whether the request of a removal may still be carried out: S3 refuses those that were signed a quarter of
/// an hour ago (`RequestTimeTooSkewed`).
pub const IS_REQUEST_ALIVE: &str = "(removing_at > now() - interval '30 minutes')";

/// How long after its mark a request to remove may be signed. S3 carries it out for a quarter of an hour from then:
/// until [`IS_REQUEST_ALIVE`] says that the mark is over.
pub const REMOVAL_WINDOW: Duration = Duration::from_mins(15);

/// Longer than any statement of ours may take.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(40);

const WRITERS_CHECK_INTERVAL: Duration = Duration::from_millis(200);

const FENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Transactions that move rows, set them back, or mark objects: a statement takes this lock before it looks at any row.
const SELECT_WRITERS: &str =
    "SELECT DISTINCT l.virtualtransaction, a.pid, coalesce(a.application_name, '') AS application
    FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.relation IN ('bucket_brigade.moves'::regclass, 'bucket_brigade.rollbacks'::regclass,
                         'bucket_brigade.removals'::regclass)
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY 1";

#[derive(sqlx::FromRow)]
struct LedgerWriter {
    virtualtransaction: String,
    pid: Option<i32>,
    application: String,
}

/// As `me` of [`in_removal_sql`]: `$1` run.
pub const THIS_RUN: &str = "(SELECT * FROM bucket_brigade.run WHERE id = $1)";

/// The same of a run that is not there yet: `$1` destination bucket, `$2` its key prefix.
const NEW_RUN: &str =
    "(SELECT 0::bigint AS id, $1::text AS destination_bucket, $2::text AS destination_key_prefix)";

/// A run that may still remove such objects of the run `me`, and until when.
pub fn in_removal_sql(me: &str, objects: &str) -> String {
    format!(
        "SELECT r.run_id, to_char((max(r.removing_at) + interval '30 minutes') AT TIME ZONE 'UTC', 'HH24:MI:SS') AS until
           FROM {me} me JOIN bucket_brigade.removals r ON {objects}
          WHERE r.removing_at IS NOT NULL AND r.removed_at IS NULL AND {IS_REQUEST_ALIVE}
          GROUP BY r.run_id ORDER BY max(r.removing_at) DESC LIMIT 1"
    )
}

/// Objects that rows of the run `me` would come to name by a move. Its sources are none.
pub const COPIES: &str = concat!(
    "(r.run_id <> me.id OR r.is_orphan) AND ",
    may_be_bucket!("r.bucket", "me.destination_bucket"),
    " AND starts_with(r.object_key, me.destination_key_prefix)"
);

/// Those that they would be set back to. What the run itself removes is looked at row by row, by its path.
const SOURCES: &str = concat!(
    "(r.run_id <> me.id OR (r.is_encoded AND NOT r.is_orphan)) AND ",
    may_be_bucket!("r.bucket", "me.source_bucket"),
    " AND starts_with(r.object_key, me.source_key_prefix)"
);

/// Of rows that went back, those whose copies were not looked at since.
const HAS_UNSEEN_ROLLBACKS: &str = "SELECT EXISTS (SELECT 1 FROM bucket_brigade.rollbacks WHERE run_id = $1 AND looked_at IS NULL)";

impl PostgresLedger {
    pub async fn has_interrupted_rollback(&self) -> Result<bool, StatementError> {
        let query = sqlx::query_scalar(HAS_UNSEEN_ROLLBACKS).bind(self.run_id);
        with_timeout(query.fetch_one(&self.pool)).await
    }

    pub async fn read_fence(&self) -> Result<i64, LedgerError> {
        let query = sqlx::query_scalar("SELECT fence FROM bucket_brigade.run WHERE id = $1");
        within_fence_limit(query.bind(self.run_id).fetch_one(&self.pool)).await
    }

    /// Shuts out what was sent before. None where the claims are not held any more, or it is not `expected`.
    pub async fn raise_fence(
        &self,
        expected: Option<i64>,
        claims: &LockClaims,
    ) -> Result<Option<i64>, LedgerError> {
        let sql = format!(
            "UPDATE bucket_brigade.run SET fence = fence + 1
              WHERE id = $1 AND coalesce(fence = $2, true) AND {} RETURNING fence",
            holds_locks_sql("$3")
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(self.run_id);
        let query = query.bind(expected).bind(claims);
        within_fence_limit(query.fetch_optional(&self.pool)).await
    }

    /// The same for the other runs that copy into a bucket, under keys of a prefix. Returns how many there are; none
    /// where the claims are not held any more.
    pub async fn raise_fences_of_others(
        &self,
        bucket: &str,
        key_prefix: &str,
        claims: &LockClaims,
    ) -> Result<u64, LedgerError> {
        let sql = format!(
            "UPDATE bucket_brigade.run r SET fence = fence + 1
              WHERE r.id <> $1 AND {} AND {}
                AND (starts_with(r.destination_key_prefix, $3) OR starts_with($3, r.destination_key_prefix))",
            may_be_bucket!("r.destination_bucket", "$2"),
            holds_locks_sql("$4")
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(self.run_id);
        let query = query.bind(bucket).bind(key_prefix).bind(claims);
        let raised = within_fence_limit(query.execute(&self.pool)).await?;
        Ok(raised.rows_affected())
    }

    /// Waits for the end of the transactions that write to the ledger now, those of processes that are dead among them;
    /// those that begin later find what was written before this call.
    ///
    /// # Errors
    /// [`LedgerError::OpenTransaction`].
    pub async fn wait_for_writers(&self) -> Result<(), LedgerError> {
        let writers = async || {
            let query = sqlx::query_as::<_, LedgerWriter>(SELECT_WRITERS);
            within_fence_limit(query.fetch_all(&self.pool)).await
        };
        let (mut left, began) = (writers().await?, Instant::now());
        while let Some(first) = left.first() {
            if began.elapsed() > WRITERS_TIMEOUT {
                return Err(LedgerError::OpenTransaction {
                    pid: first.pid.unwrap_or_default(),
                    application: first.application.clone(),
                });
            }
            sleep(WRITERS_CHECK_INTERVAL).await;
            let now = writers().await?;
            let is_there = |writer: &LedgerWriter| {
                now.iter()
                    .any(|other| other.virtualtransaction == writer.virtualtransaction)
            };
            left.retain(is_there);
        }
        Ok(())
    }

    /// Makes sure that no copy can go that a consumer would find and point a row at.
    ///
    /// # Errors
    /// [`LedgerError::InRemoval`].
    pub async fn ensure_no_copy_in_removal(&self) -> Result<(), LedgerError> {
        self.ensure_none_in_removal(COPIES).await
    }

    /// Makes sure that no source can go that a row would be set back to, by a clean of another run.
    ///
    /// # Errors
    /// [`LedgerError::InRemoval`].
    pub async fn ensure_no_source_in_removal(&self) -> Result<(), LedgerError> {
        self.ensure_none_in_removal(SOURCES).await
    }

    async fn ensure_none_in_removal(&self, objects: &str) -> Result<(), LedgerError> {
        let query = sqlx::query_as(AssertSqlSafe(in_removal_sql(THIS_RUN, objects)));
        none_in_removal(query.bind(self.run_id).fetch_optional(&self.pool)).await
    }
}

/// [`PostgresLedger::ensure_no_copy_in_removal`] of a run that is not there yet.
pub(super) async fn ensure_no_copy_in_removal(
    pool: &PgPool,
    spec: &RunSpec,
) -> Result<(), LedgerError> {
    let query = sqlx::query_as(AssertSqlSafe(in_removal_sql(NEW_RUN, COPIES)));
    let query = query.bind(&spec.destination_bucket);
    let query = query.bind(spec.rule.destination_key_prefix());
    none_in_removal(query.fetch_optional(pool)).await
}

async fn none_in_removal(
    found: impl Future<Output = Result<Option<(i64, String)>, sqlx::Error>>,
) -> Result<(), LedgerError> {
    match within_fence_limit(found).await? {
        None => Ok(()),
        Some((run, until)) => Err(LedgerError::InRemoval { run, until }),
    }
}

async fn within_fence_limit<T>(
    query: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, LedgerError> {
    within_limit(FENCE_TIMEOUT, "the run's fence", query).await
}
