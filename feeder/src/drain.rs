//! Waiting for the queue to drain at the end of a sweep, so that the next sweep does not feed again
//! what is still on its way.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::queue::MessageQueue;
use tokio::time::Instant;

use crate::backlog::read_backlog;
use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};

const QUEUE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The queue's counts are approximate: it is empty when it reports so this many times in a row.
const REQUIRED_EMPTY_READS: u32 = 3;

/// Without any progress for this long, messages that no consumer can process may be circling, or no
/// consumer may be running.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the queue is empty, or until nothing is left to move although it is not.
pub async fn wait_until_drained(
    queue: &dyn MessageQueue,
    source: &dyn FeedSource,
    progress: &FeederProgress,
    retrier: Retrier<'_>,
) -> Result<(), FeederStopped> {
    progress.set_phase(WorkerState::Draining);
    let mut empty_reads = 0;
    let mut stall = StallDetector::new();
    while empty_reads < REQUIRED_EMPTY_READS {
        // Others may go on feeding.
        let (backlog, share) = read_backlog(queue, source, retrier).await?;
        let read_progress = async || source.run_progress().await;
        let numbers = retrier.retry_database("reading progress", read_progress);
        let accounted = numbers.await?.accounted_rows();
        empty_reads = if backlog == 0 { empty_reads + 1 } else { 0 };
        if progress.is_held() {
            // Nothing is expected to change.
            stall = StallDetector::new();
        } else if stall.is_stalled((share.map_or(backlog, |share| share.own_messages), accounted)) {
            let has_rows_left = async || source.has_rows_left().await;
            let has_rows_left = retrier.retry_database("looking for rows", has_rows_left);
            // Beside other runs the queue is never empty, and messages that ended uncounted seem to be left.
            let is_surely_busy = share.is_none_or(|share| share.other_feeders == 0);
            if !has_rows_left.await? || (!is_surely_busy && progress.running_consumers() > 0) {
                return Ok(());
            }
            log_stall(backlog, progress.running_consumers());
        }
        retrier.sleep_unless_stopped(QUEUE_POLL_INTERVAL).await?;
    }
    Ok(())
}

fn log_stall(backlog: u64, consumers: u64) {
    if consumers == 0 {
        tracing::warn!(
            backlog,
            "{} in the queue, and no consumer is running",
            counted(backlog, "message waits", "messages wait")
        );
    } else {
        tracing::info!(
            backlog,
            consumers,
            "{} left for {}: rows that failed are retried after a while",
            counted(backlog, "message is", "messages are"),
            counted(consumers, "consumer", "consumers")
        );
    }
}

/// Notices when nothing changes any more; each time twice as late, because the check costs a scan.
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
