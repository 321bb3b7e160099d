//! What `status` tells.

use bucket_brigade_common::feed_source::{FeedSource, RunProgress};
use bucket_brigade_common::ledger::{CodeCount, PostgresLedger, RunOverview, WorkerStatus};
use bucket_brigade_common::move_ledger::StatementError;
use bucket_brigade_common::queue::QueueError;
use bucket_brigade_common::sqs::SqsQueue;
use bucket_brigade_common::worker_state::WorkerState;
use serde::Serialize;

use super::state::{ReportedState, reported_state};

/// Everything on the screen.
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

/// The run in numbers.
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

/// Rows moved per second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StatusRates {
    pub(crate) over_a_minute: f64,
    pub(crate) overall: f64,
    /// The time left at the rate of the last minute; none when it cannot be told.
    pub(crate) eta: Option<String>,
}

/// The queue and its dead-letter queue.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct QueueStatus {
    pub(crate) visible: Option<u64>,
    pub(crate) in_flight: Option<u64>,
    /// SQS tells the age of its oldest message to CloudWatch only.
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) dead_letters: Option<u64>,
    /// Why something of it is not known.
    pub(crate) trouble: Option<String>,
}

impl StatusSnapshot {
    /// Reads it all. Only the database must answer.
    pub(crate) async fn read(
        ledger: &PostgresLedger,
        queue: &SqsQueue,
    ) -> Result<Self, StatementError> {
        let (run, workers) = (ledger.run_overview().await?, ledger.live_workers().await?);
        let progress = ledger.run_progress().await?;
        let failures = ledger.failure_counts().await?;
        let queue = QueueStatus::read(queue).await;
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
        let rates = workers.iter().map(|worker| worker.moved_per_second);
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

impl QueueStatus {
    async fn read(queue: &SqsQueue) -> Self {
        let facts = match queue.describe_queue().await {
            Ok(facts) => facts,
            Err(error) => return Self::from_error(&error),
        };
        let known = Self {
            visible: Some(facts.backlog.visible),
            in_flight: Some(facts.backlog.in_flight),
            ..Self::default()
        };
        let dead = match queue.dead_letter_queue_of(&facts) {
            Some(dead) => dead.describe_queue().await,
            None => return known,
        };
        match dead {
            Ok(dead) => Self {
                dead_letters: Some(dead.backlog.total_messages()),
                ..known
            },
            Err(error) => Self {
                trouble: Some(format!("dead letters: {error}")),
                ..known
            },
        }
    }

    fn from_error(error: &QueueError) -> Self {
        Self {
            trouble: Some(error.to_string()),
            ..Self::default()
        }
    }

    /// Whether anything is known to wait in it.
    pub(super) fn has_messages(&self) -> bool {
        self.visible.unwrap_or(0) + self.in_flight.unwrap_or(0) > 0
    }
}
