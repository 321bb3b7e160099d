//! The run as an operator sees it. Every statement here costs the same at ten rows and at a hundred
//! million: sums over processes and codes, never a look at moves, failures or the application's table.

use serde::Serialize;

use super::heartbeat::pause_description;
use super::{PostgresLedger, RequestedLimits, with_timeout};
use crate::move_ledger::StatementError;
use crate::worker_state::WorkerState;

const SELECT_OVERVIEW: &str = r#"SELECT old_prefix, new_prefix, source_bucket, destination_bucket, sweep,
        paused, paused_by, pause_reason, rate_limit, concurrency_limit,
        to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        extract(epoch FROM coalesce(finished_at, now()) - started_at)::double precision
    FROM bucket_brigade.run WHERE id = $1"#;

const SELECT_WORKERS: &str =
    "SELECT worker, role, state, reason, concurrency, in_hand, moved_per_second,
        commit_seconds
    FROM bucket_brigade.workers
    WHERE run_id = $1 AND seen_at > now() - interval '10 seconds' ORDER BY worker";

const SELECT_FAILURE_COUNTS: &str = "SELECT code, sum(failed)::bigint
    FROM bucket_brigade.failure_counts WHERE run_id = $1
    GROUP BY code HAVING sum(failed) > 0 ORDER BY 2 DESC, 1 LIMIT 10";

/// A row of [`RUN`].
type RunColumns = (
    String,
    String,
    String,
    String,
    i64,
    bool,
    Option<String>,
    Option<String>,
    Option<f64>,
    Option<i32>,
    String,
    Option<String>,
    f64,
);

/// A row of [`WORKERS`].
type WorkerColumns = (String, String, String, String, i64, i64, f64, Option<f64>);

/// One run, from its row.
#[derive(Debug, Clone, Serialize)]
pub struct RunOverview {
    /// Its number.
    pub id: i64,
    /// The table, quoted as in SQL.
    pub table: String,
    /// What paths still to move start with.
    pub old_prefix: String,
    /// What replaces it.
    pub new_prefix: String,
    /// Where the images are.
    pub source_bucket: String,
    /// Where they go.
    pub destination_bucket: String,
    /// Which sweep the feeder is in.
    pub sweep: i64,
    /// Who paused it, and why; none while it is not paused.
    pub paused: Option<String>,
    /// How much the fleet may do at most.
    pub limits: RequestedLimits,
    /// When it was opened, in UTC.
    pub started_at: String,
    /// When a sweep last found nothing left, in UTC.
    pub finished_at: Option<String>,
    /// From its start to its end, or to now.
    pub elapsed_seconds: f64,
}

/// A process that is alive.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub worker: String,
    /// `feeder` or `consumer`.
    pub role: String,
    pub state: WorkerState,
    /// Why, where that is worth a word.
    pub reason: String,
    /// Copies it may have in flight at the moment.
    pub concurrency: i64,
    /// Messages it holds.
    pub in_hand: i64,
    /// Rows it moved per second, over the last minute.
    pub moved_per_second: f64,
    /// How long its last commits took.
    pub commit_seconds: Option<f64>,
}

/// Failures of one code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CodeCount {
    /// The code.
    pub code: String,
    /// Rows that failed with it.
    pub rows: u64,
}

impl PostgresLedger {
    /// The run's row.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn run_overview(&self) -> Result<RunOverview, StatementError> {
        let query = sqlx::query_as(SELECT_OVERVIEW).bind(self.run_id);
        let found: RunColumns = with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(RunOverview {
            id: self.run_id,
            table: self.table.name.to_string(),
            old_prefix: found.0,
            new_prefix: found.1,
            source_bucket: found.2,
            destination_bucket: found.3,
            sweep: found.4,
            paused: found.5.then(|| pause_description(found.6, found.7)),
            limits: RequestedLimits {
                rate: found.8,
                concurrency: found.9.and_then(|most| u32::try_from(most).ok()),
            },
            started_at: found.10,
            finished_at: found.11,
            elapsed_seconds: found.12,
        })
    }

    /// The processes that are alive, by name.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn live_workers(&self) -> Result<Vec<WorkerStatus>, StatementError> {
        let query = sqlx::query_as(SELECT_WORKERS).bind(self.run_id);
        let found: Vec<WorkerColumns> = with_timeout(query.fetch_all(&self.pool)).await?;
        let worker = |found: WorkerColumns| WorkerStatus {
            worker: found.0,
            role: found.1,
            state: found.2.parse().unwrap_or(WorkerState::Unknown),
            reason: found.3,
            concurrency: found.4,
            in_hand: found.5,
            moved_per_second: found.6,
            commit_seconds: found.7,
        };
        Ok(found.into_iter().map(worker).collect())
    }

    /// The failures by code, most frequent first, ten at most.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn failure_counts(&self) -> Result<Vec<CodeCount>, StatementError> {
        let query = sqlx::query_as(SELECT_FAILURE_COUNTS).bind(self.run_id);
        let codes: Vec<(String, i64)> = with_timeout(query.fetch_all(&self.pool)).await?;
        let count = |(code, rows)| CodeCount {
            code,
            rows: u64::try_from(rows).unwrap_or(0),
        };
        Ok(codes.into_iter().map(count).collect())
    }
}
