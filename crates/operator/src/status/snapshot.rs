//! What `status` and the live page show.

use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::queue::sqs::SqsQueue;
use serde::Serialize;
use sqlx::postgres::PgPool;

use super::queries::{CodeCount, WorkerStatus, failure_counts, live_workers};
use super::queue::QueueStatus;
use super::state::reported_state;
use crate::runs::{RunSummary, run_summaries};

/// Of failures, the most frequent.
const MAX_CODES: usize = 10;

#[derive(Debug, Serialize)]
pub struct StatusSnapshot {
    pub(crate) run: RunSummary,
    pub(crate) state: WorkerState,
    pub(crate) reason: String,
    pub(crate) rows: RunProgress,
    pub(crate) rate: StatusRates,
    pub(crate) queue: QueueStatus,
    pub(crate) workers: Vec<WorkerStatus>,
    pub(crate) failures: Vec<CodeCount>,
}

/// In rows per second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StatusRates {
    pub(crate) over_a_minute: f64,
    pub(crate) overall: f64,
    pub(crate) eta: Option<String>,
}

/// Every run, and the queue that they share.
#[derive(Serialize)]
pub(super) struct AllRunsStatus {
    /// None where no queue was named.
    pub(super) queue: Option<QueueStatus>,
    pub(super) runs: Vec<RunSummary>,
}

impl AllRunsStatus {
    pub(super) async fn read(
        pool: Option<&PgPool>,
        queue: Option<&SqsQueue>,
    ) -> Result<Self, StatementError> {
        let runs = match pool {
            Some(pool) => run_summaries(pool, None).await?,
            None => Vec::new(),
        };
        let queue = match queue {
            Some(queue) => Some(QueueStatus::read_queue(queue).await),
            None => None,
        };
        Ok(Self { queue, runs })
    }
}

impl StatusSnapshot {
    pub(super) async fn read_run(
        pool: &PgPool,
        run: i64,
        queue: &SqsQueue,
    ) -> Result<Self, StatementError> {
        let mut runs = Self::read_runs(pool, Some(run), Some(queue)).await?;
        let gone = || StatementError::Unavailable(format!("run {run} is not in the ledger"));
        runs.pop().ok_or_else(gone)
    }

    /// One run, or all: as many statements for any number of them. Only the database must answer.
    pub async fn read_runs(
        pool: &PgPool,
        run: Option<i64>,
        queue: Option<&SqsQueue>,
    ) -> Result<Vec<Self>, StatementError> {
        let runs = run_summaries(pool, run).await?;
        let workers = live_workers(pool, run).await?;
        let failures = failure_counts(pool, run).await?;
        let queue = match queue {
            Some(queue) => QueueStatus::read_queue(queue).await,
            None => QueueStatus::default(),
        };
        let of_run = |run: RunSummary| {
            let workers = workers.iter().filter(|worker| worker.run_id == run.id);
            let failures = failures.iter().filter(|count| count.run_id == run.id);
            let failures = failures.take(MAX_CODES);
            let (workers, failures) = (workers.cloned().collect(), failures.cloned().collect());
            Self::new(run, workers, failures, queue.clone())
        };
        Ok(runs.into_iter().map(of_run).collect())
    }

    fn new(
        run: RunSummary,
        workers: Vec<WorkerStatus>,
        failures: Vec<CodeCount>,
        queue: QueueStatus,
    ) -> Self {
        let (state, reason) = reported_state(&run, &workers, &queue);
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let moved = run.progress.moved as f64;
        let is_timed = run.elapsed_seconds > 0.0;
        Self {
            rate: StatusRates {
                over_a_minute: run.moved_per_second,
                overall: if is_timed {
                    moved / run.elapsed_seconds
                } else {
                    0.0
                },
                eta: run.eta.clone(),
            },
            rows: run.progress,
            state,
            reason,
            run,
            queue,
            workers,
            failures,
        }
    }
}
