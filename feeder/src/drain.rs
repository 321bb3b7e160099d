//! Waiting for the queue to drain at the end of a sweep, so that the next sweep does not feed again
//! what is still on its way.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::{FeedSource, QueueShare};
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::row_id::RowId;
use tokio::time::Instant;

use crate::backlog::read_queue;
use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};

const QUEUE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The queue's counts are approximate: it is empty when it reports so this many times in a row.
const REQUIRED_EMPTY_READS: u32 = 3;

/// Without any progress for this long, messages that no consumer can process may be circling, or no
/// consumer may be running.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Beside other runs' messages the queue is not empty, and some of ours that ended uncounted (purged, or fenced off)
/// seem to be left: they are fed again after so long.
pub const SHARED_STALL_TIMEOUT: Duration = Duration::from_mins(3);

/// Waits until the queue is empty, or until nothing is left to move although it is not. False where neither is sure
/// after `patience`.
pub async fn wait_until_drained(
    queue: &dyn MessageQueue,
    source: &dyn FeedSource,
    progress: &FeederProgress,
    retrier: Retrier<'_>,
    patience: Duration,
) -> Result<bool, FeederStopped> {
    progress.set_phase(WorkerState::Draining);
    let mut empty_reads = 0;
    let (mut stall, mut idle) = (StallDetector::new(), StallDetector::new());
    while empty_reads < REQUIRED_EMPTY_READS {
        // Others may go on feeding.
        let (total, share) = read_queue(queue, source, retrier).await?;
        let backlog = QueueShare::own_backlog(share, total, 0);
        let read_progress = async || source.run_progress().await;
        let numbers = retrier.retry_database("reading progress", read_progress);
        let accounted = numbers.await?.accounted_rows();
        empty_reads = if backlog == 0 { empty_reads + 1 } else { 0 };
        if progress.is_held() {
            // Nothing is expected to change.
            (stall, idle) = (StallDetector::new(), StallDetector::new());
        } else {
            let stalled = stall.stalled_for((backlog_key(share, total), accounted));
            // Messages of a ledger that was dropped end as dead letters, one after the other, for hours.
            let is_idle = idle.stalled_for((0, accounted)).is_some();
            if stalled.is_some() || is_idle {
                // What is left fails again and again, or is nobody's: new rows do not wait for it.
                if share.is_some_and(|share| share.own_messages <= 0) {
                    return Ok(true);
                }
                let has_rows = async |cursor: Option<&RowId>| source.has_rows_left(cursor).await;
                if !retrier.retry_pages("looking for rows", has_rows).await? {
                    return Ok(true);
                }
            }
            if let Some(stalled) = stalled {
                if stalled >= patience && may_be_others(share, progress) {
                    return Ok(false);
                }
                log_stall(backlog, progress.running_consumers());
            }
        }
        retrier.sleep_unless_stopped(QUEUE_POLL_INTERVAL).await?;
    }
    Ok(true)
}

/// What changes as long as messages of this run end.
fn backlog_key(share: Option<QueueShare>, total: u64) -> i64 {
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    let share = share.filter(|share| share.is_shared);
    share.map_or(total, |share| share.own_messages)
}

/// Whether the messages that are left may all be of other runs.
fn may_be_others(share: Option<QueueShare>, progress: &FeederProgress) -> bool {
    share.is_some_and(|share| share.others_have_messages && share.has_consumers)
        && progress.held_back_consumers() == 0
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
    last: Option<(i64, u64)>,
    unchanged_since: Instant,
    noticed_at: Instant,
    timeout: Duration,
}

impl StallDetector {
    fn new() -> Self {
        Self {
            last: None,
            unchanged_since: Instant::now(),
            noticed_at: Instant::now(),
            timeout: STALL_TIMEOUT,
        }
    }

    /// For how long, where that is to be noticed.
    fn stalled_for(&mut self, now: (i64, u64)) -> Option<Duration> {
        if self.last != Some(now) {
            self.last = Some(now);
            (self.unchanged_since, self.noticed_at) = (Instant::now(), Instant::now());
            return None;
        }
        if self.noticed_at.elapsed() < self.timeout {
            return None;
        }
        self.noticed_at = Instant::now();
        self.timeout *= 2;
        Some(self.unchanged_since.elapsed())
    }
}
