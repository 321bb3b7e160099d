//! The backlog limit: the feeder does not outrun the consumers, so that no message can come near the
//! queue's retention, and a stop leaves little behind.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::{FeedSource, QueueShare};
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::queue::{self, MessageQueue};
use tokio::time::Instant;

use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};

const QUEUE_POLL_INTERVAL: Duration = Duration::from_secs(1);

const FULL_BATCH: u64 = queue::MAX_BATCH_ENTRIES as u64;

/// How much may be sent before the backlog is read again.
pub struct BacklogLimit<'a> {
    queue: &'a dyn MessageQueue,
    source: &'a dyn FeedSource,
    max_backlog: u64,
    /// This run's part of it.
    own_limit: u64,
    available: u64,
    /// Sent since the ledger was first asked, and what it had counted of the sweep then.
    sent: i64,
    counted_before: Option<i64>,
    last_queried: Option<Instant>,
    progress: &'a FeederProgress,
    retrier: Retrier<'a>,
}

impl<'a> BacklogLimit<'a> {
    /// A limit of `max_backlog` messages, in flight ones included. Where several runs are fed into one queue each
    /// has an equal part of it, and counts its own messages alone: the backlog of a run that is paused keeps no
    /// other from being fed.
    pub fn new(
        queue: &'a dyn MessageQueue,
        source: &'a dyn FeedSource,
        max_backlog: u64,
        progress: &'a FeederProgress,
        retrier: Retrier<'a>,
    ) -> Self {
        Self {
            queue,
            source,
            max_backlog,
            own_limit: max_backlog,
            available: 0,
            sent: 0,
            counted_before: None,
            last_queried: None,
            progress,
            retrier,
        }
    }

    /// Waits for room; how many of `most` messages may be sent.
    pub async fn wait_for_room(&mut self, most: usize) -> Result<usize, FeederStopped> {
        let most_wanted = u64::try_from(most).unwrap_or(u64::MAX);
        while self.available < most_wanted.min(self.min_reservation()) {
            self.refresh_backlog().await?;
        }
        Ok(usize::try_from(self.available).map_or(most, |room| room.min(most)))
    }

    pub fn record_sent(&mut self, messages: usize) {
        let messages = u64::try_from(messages).unwrap_or(u64::MAX);
        self.available = self.available.saturating_sub(messages);
        self.sent += i64::try_from(messages).unwrap_or(0);
    }

    pub fn sent(&self) -> u64 {
        u64::try_from(self.sent).unwrap_or(0)
    }

    /// What the ledger does not count yet: the cursor moves later.
    fn uncounted(&mut self, share: QueueShare) -> i64 {
        let before = *self.counted_before.get_or_insert(share.sweep_fed);
        (self.sent - (share.sweep_fed - before)).max(0)
    }

    /// A request costs the same for one message as for ten, so less than ten is waited for; but not
    /// when the limit is so low that a few circling messages would keep it from ever being reached.
    fn min_reservation(&self) -> u64 {
        FULL_BATCH.min((self.own_limit / 10).max(1))
    }

    /// The queue's counts lag behind; asking rarely lets what was sent show up in them.
    async fn refresh_backlog(&mut self) -> Result<(), FeederStopped> {
        if let Some(asked) = self.last_queried {
            self.retrier
                .sleep_unless_stopped(QUEUE_POLL_INTERVAL.saturating_sub(asked.elapsed()))
                .await?;
        }
        let (total, share) = read_queue(self.queue, self.source, self.retrier).await?;
        let uncounted = share.map_or(0, |share| self.uncounted(share));
        let backlog = QueueShare::own_backlog(share, total, uncounted);
        self.last_queried = Some(Instant::now());
        self.own_limit = QueueShare::max_backlog(share, self.max_backlog);
        self.available = self.own_limit.saturating_sub(backlog);
        self.progress
            .set_phase(if self.available < self.min_reservation() {
                WorkerState::BacklogFull
            } else {
                WorkerState::Feeding
            });
        Ok(())
    }
}

/// How many messages the queue has, and what this run shares of it.
pub async fn read_queue(
    queue: &dyn MessageQueue,
    source: &dyn FeedSource,
    retrier: Retrier<'_>,
) -> Result<(u64, Option<QueueShare>), FeederStopped> {
    let read_queue = async || queue.queue_attributes().await;
    let attributes = retrier.retry_queue("reading the backlog", read_queue);
    let total = attributes.await?.backlog.total_messages();
    let read_share = async || source.queue_share().await;
    let share = retrier.retry_database("reading the share", read_share);
    Ok((total, share.await?))
}
