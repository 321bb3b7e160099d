//! What an operator sees beside the runs themselves. Every statement here costs the same at ten rows and at a
//! hundred million: processes and counts by code, never a read of moves, failures or the application's table.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use serde::Serialize;
use sqlx::postgres::PgPool;

/// `$1` run; null for all.
const SELECT_WORKERS: &str =
    "SELECT run_id, worker, role, state, reason, concurrency, in_hand, moved_per_second, commit_seconds
    FROM bucket_brigade.workers
    WHERE ($1::bigint IS NULL OR run_id = $1) AND seen_at > now() - interval '10 seconds' ORDER BY worker";

/// The same.
const SELECT_FAILURE_COUNTS: &str = "SELECT run_id, code, sum(failed)::bigint AS rows
    FROM bucket_brigade.failure_counts WHERE $1::bigint IS NULL OR run_id = $1
    GROUP BY run_id, code HAVING sum(failed) > 0 ORDER BY rows DESC, code";

#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub(crate) struct WorkerStatus {
    #[serde(skip)]
    pub(super) run_id: i64,
    pub(crate) worker: String,
    /// `feeder`, `consumer`, or the name of a command.
    pub(crate) role: String,
    #[sqlx(try_from = "String")]
    pub(crate) state: WorkerState,
    /// Empty where the state says it all.
    pub(crate) reason: String,
    /// Copies it may have in flight at the moment.
    pub(crate) concurrency: i64,
    pub(crate) in_hand: i64,
    /// Over the last minute.
    pub(crate) moved_per_second: f64,
    /// How long its last commits took.
    pub(crate) commit_seconds: Option<f64>,
}

impl WorkerStatus {
    pub(crate) fn is_command(&self) -> bool {
        !matches!(self.role.as_str(), "feeder" | "consumer")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub(crate) struct CodeCount {
    #[serde(skip)]
    pub(super) run_id: i64,
    pub(crate) code: String,
    #[sqlx(try_from = "i64")]
    pub(crate) rows: u64,
}

/// The processes that are alive, by name, of one run or all.
pub(crate) async fn live_workers(
    pool: &PgPool,
    run: Option<i64>,
) -> Result<Vec<WorkerStatus>, StatementError> {
    with_timeout(sqlx::query_as(SELECT_WORKERS).bind(run).fetch_all(pool)).await
}

/// The failures by code, most frequent first.
pub(crate) async fn failure_counts(
    pool: &PgPool,
    run: Option<i64>,
) -> Result<Vec<CodeCount>, StatementError> {
    let query = sqlx::query_as(SELECT_FAILURE_COUNTS).bind(run);
    with_timeout(query.fetch_all(pool)).await
}
