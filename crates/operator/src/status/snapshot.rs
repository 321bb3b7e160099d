//! What `status` prints.

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::ledger::feed_source::{FeedSource, RunProgress};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::queue::sqs::SqsQueue;
use serde::Serialize;

use super::queries::{
    CodeCount, RunOverview, WorkerStatus, failure_counts, live_workers, run_overview,
};
use super::queue::QueueStatus;
use super::state::{ReportedState, reported_state};

#[derive(Debug, Serialize)]
pub(crate) struct StatusSnapshot {
    pub(crate) run: RunOverview,
    pub(crate) state: WorkerState,
    pub(crate) reason: String,
    pub(crate) rows: StatusRowCounts,
    pub(crate) rate: StatusRates,
    pub(crate) queue: QueueStatus,
    pub(crate) workers: Vec<WorkerStatus>,
    pub(crate) failures: Vec<CodeCount>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct StatusRowCounts {
    pub(crate) in_scope: Option<u64>,
    pub(crate) moved: u64,
    pub(crate) changed: u64,
    pub(crate) failed: u64,
    pub(crate) fed: u64,
    pub(crate) orphans: u64,
    pub(crate) poison: u64,
}

/// In rows per second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StatusRates {
    pub(crate) over_a_minute: f64,
    pub(crate) overall: f64,
    /// The time left at the rate of the last minute; none when it cannot be known.
    pub(crate) eta: Option<String>,
}

impl StatusSnapshot {
    /// Only the database must answer.
    pub(crate) async fn read_status(
        ledger: &PostgresLedger,
        queue: &SqsQueue,
    ) -> Result<Self, StatementError> {
        let (run, workers) = (run_overview(ledger).await?, live_workers(ledger).await?);
        let progress = ledger.run_progress().await?;
        let failures = failure_counts(ledger).await?;
        let queue = QueueStatus::read_queue(queue).await;
        let ReportedState { word, reason } = reported_state(&run, &workers, &queue);
        Ok(Self {
            rate: StatusRates::from_workers(&run, &workers, &progress),
            rows: StatusRowCounts {
                in_scope: progress.in_scope,
                moved: progress.moved,
                changed: progress.changed,
                failed: progress.failed,
                fed: progress.fed,
                orphans: progress.orphans,
                poison: progress.poison,
            },
            state: word,
            reason,
            run,
            queue,
            workers,
            failures,
        })
    }
}

impl StatusRates {
    fn from_workers(run: &RunOverview, workers: &[WorkerStatus], progress: &RunProgress) -> Self {
        let consumers = workers.iter().filter(|worker| worker.role == "consumer");
        let rates = consumers.map(|worker| worker.moved_per_second);
        // The sum of nothing is -0.0, and would be shown so.
        let over_a_minute = rates.sum::<f64>() + 0.0;
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let moved = progress.moved as f64;
        let overall = if run.elapsed_seconds > 0.0 {
            moved / run.elapsed_seconds
        } else {
            0.0
        };
        let eta = Some(progress.format_eta(over_a_minute)).filter(|eta| eta != "N/A");
        Self {
            over_a_minute,
            overall,
            eta,
        }
    }
}
