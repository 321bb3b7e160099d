//! Waiting for the queue to drain at the end of a sweep, so that the next sweep does not feed again
//! what is still on its way.

use std::time::Duration;

use bucket_brigade_common::feed_source::FeedSource;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::worker_state::WorkerState;
use tokio::time::Instant;

use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};

/// How often the queue is asked.
const QUEUE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The queue's counts are approximate: it counts as empty when it says so this many times in a row.
const REQUIRED_EMPTY_READS: u32 = 3;

/// Without any progress for this long, messages that nobody can process may be circling, or no
/// consumer may be running; the table tells which.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the queue is empty, or until nothing is left to move although it is not.
///
/// # Errors
/// [`Stopped`]
pub async fn wait_until_drained(
    queue: &dyn MessageQueue,
    scope: &dyn FeedSource,
    progress: &FeederProgress,
    persist: Retrier<'_>,
) -> Result<(), FeederStopped> {
    progress.set_phase(WorkerState::Draining);
    let mut empty_answers = 0;
    let mut stall = StallDetector::new();
    while empty_answers < REQUIRED_EMPTY_READS {
        let attributes = persist
            .retry_queue("asking for the backlog", async || {
                queue.queue_attributes().await
            })
            .await?;
        let numbers = persist
            .retry_database("reading progress", async || scope.run_progress().await)
            .await?;
        let backlog = attributes.backlog.total_messages();
        empty_answers = if backlog == 0 { empty_answers + 1 } else { 0 };
        if stall.is_stalled((backlog, numbers.accounted_rows())) {
            let left = persist
                .retry_database("looking for rows", async || scope.has_rows_left().await)
                .await?;
            if !left {
                return Ok(());
            }
            tracing::warn!(
                backlog,
                "{backlog} messages wait in the queue and nothing has moved for a while: are consumers running?"
            );
        }
        persist.sleep_unless_stopped(QUEUE_POLL_INTERVAL).await?;
    }
    Ok(())
}

/// Notices when nothing changes any more; each time twice as late, because looking costs a scan.
struct StallDetector {
    last: Option<(u64, u64)>,
    unchanged_since: Instant,
    timeout: Duration,
}

impl StallDetector {
    fn new() -> Self {
        Self {
            last: None,
            unchanged_since: Instant::now(),
            timeout: STALL_TIMEOUT,
        }
    }

    fn is_stalled(&mut self, now: (u64, u64)) -> bool {
        if self.last != Some(now) {
            self.last = Some(now);
            self.unchanged_since = Instant::now();
            return false;
        }
        if self.unchanged_since.elapsed() < self.timeout {
            return false;
        }
        self.unchanged_since = Instant::now();
        self.timeout *= 2;
        true
    }
}
