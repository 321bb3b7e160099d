//! The run as an operator sees it. Every statement here costs the same at ten rows and at a hundred
//! million: sums over processes and codes, never a read of moves, failures or the application's table.

use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::ledger::{PostgresLedger, pause_description, with_timeout};
use serde::Serialize;

use crate::limit::RequestedLimits;

const SELECT_OVERVIEW: &str = r#"SELECT id, old_prefix, new_prefix, source_bucket, destination_bucket, options ->> 'ROW_FILTER' AS row_filter, f.sweep,
        paused, paused_by, pause_reason, rate_limit, concurrency_limit,
        to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS started_at,
        to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS finished_at,
        extract(epoch FROM coalesce(finished_at, now()) - started_at)::double precision AS elapsed_seconds
    FROM bucket_brigade.run JOIN bucket_brigade.feed_cursors f ON f.run_id = id WHERE id = $1"#;

const SELECT_WORKERS: &str =
    "SELECT worker, role, state, reason, concurrency, in_hand, moved_per_second,
        commit_seconds
    FROM bucket_brigade.workers
    WHERE run_id = $1 AND seen_at > now() - interval '10 seconds' ORDER BY worker";

/// The columns of a run that `status --json` prints as they are, in groups by where they stand there.
#[derive(sqlx::FromRow)]
struct OverviewRow {
    #[sqlx(flatten)]
    overview: RunOverview,
    #[sqlx(flatten)]
    limits: RequestedLimits,
    paused: bool,
    paused_by: Option<String>,
    pause_reason: Option<String>,
}

/// One run, from its row.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct RunOverview {
    pub(crate) id: i64,
    /// Quoted as in SQL.
    #[sqlx(skip)]
    pub(crate) table: String,
    pub(crate) old_prefix: String,
    pub(crate) new_prefix: String,
    pub(crate) source_bucket: String,
    pub(crate) destination_bucket: String,
    /// Which rows with the old prefix are to move; none for all.
    pub(crate) row_filter: Option<String>,
    pub(crate) sweep: i64,
    /// Who paused it, and why; none while it is not paused.
    #[sqlx(skip)]
    pub(crate) paused: Option<String>,
    #[sqlx(skip)]
    pub(crate) limits: RequestedLimits,
    pub(crate) started_at: String,
    /// When a sweep last found nothing left, in UTC.
    pub(crate) finished_at: Option<String>,
    /// From its start to its end, or to now.
    pub(crate) elapsed_seconds: f64,
}

/// A process that is alive.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct WorkerStatus {
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

/// Failures of one code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CodeCount {
    pub(crate) code: String,
    pub(crate) rows: u64,
}

pub async fn run_overview(ledger: &PostgresLedger) -> Result<RunOverview, StatementError> {
    let query = sqlx::query_as(SELECT_OVERVIEW).bind(ledger.run_id());
    let row: OverviewRow = with_timeout(query.fetch_one(ledger.pool())).await?;
    let pause = pause_description(row.paused_by, row.pause_reason);
    Ok(RunOverview {
        table: ledger.table_name(),
        paused: row.paused.then_some(pause),
        limits: row.limits,
        ..row.overview
    })
}

/// The processes that are alive, by name.
pub async fn live_workers(ledger: &PostgresLedger) -> Result<Vec<WorkerStatus>, StatementError> {
    let query = sqlx::query_as(SELECT_WORKERS).bind(ledger.run_id());
    with_timeout(query.fetch_all(ledger.pool())).await
}

/// The failures by code, most frequent first, ten at most.
pub async fn failure_counts(ledger: &PostgresLedger) -> Result<Vec<CodeCount>, StatementError> {
    let codes = ledger.failures_by_code().await?;
    let count = |(code, rows)| CodeCount { code, rows };
    Ok(codes.into_iter().map(count).collect())
}
