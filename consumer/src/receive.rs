//! Receive: long polls for ten messages, only as many as there is room for.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::queue::{
    LONG_POLL_WAIT, MAX_BATCH_ENTRIES, MessageQueue, QueueError, ReceivedMessage,
};
use bucket_brigade_common::retry::Backoff;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use crate::context::ConsumerContext;
use crate::handle::Stages;

/// How long a poll under way is waited for at a stop: what it brings is released at once, what it
/// would bring later stays in the queue or comes back after its visibility timeout.
const FINAL_POLL_TIMEOUT: Duration = Duration::from_secs(1);

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(500),
    max_delay: Duration::from_secs(30),
};

/// Receives messages and hands each to a task of its own.
#[derive(Clone)]
pub struct Receiver {
    pub queue: Arc<dyn MessageQueue>,
    /// How long a message is hidden from others at a time.
    pub visibility_timeout: Duration,
    pub in_hand_limit: InHandLimit,
    pub stages: Arc<Stages>,
    /// The messages in hand.
    pub tasks: TaskTracker,
    pub context: ConsumerContext,
}

/// How often a throttled process looks whether it makes sense to have more in hand.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Messages in hand that wait for a copy, and those that wait for a commit or a delete.
const MAX_WAITING_MESSAGES: usize = 20 * MAX_BATCH_ENTRIES;

/// Room for messages in hand, one permit each.
#[derive(Debug, Clone)]
pub struct InHandLimit {
    permits: Arc<Semaphore>,
    max: usize,
}

impl InHandLimit {
    /// Room for so many copies at a time: while one batch is copied another waits for its commit and
    /// delete, up to fifty gather for each statement, and every poll needs room for ten. All that takes
    /// tens of milliseconds, in which S3 serves at most two hundred copies.
    pub fn new(max_concurrency: usize) -> Self {
        let most =
            max_concurrency + max_concurrency.min(MAX_WAITING_MESSAGES) + MAX_WAITING_MESSAGES;
        Self {
            permits: Arc::new(Semaphore::new(most)),
            max: most,
        }
    }

    /// Messages in hand, and those that polls under way may bring.
    fn in_use(&self) -> usize {
        self.max - self.permits.available_permits()
    }

    /// Waits for room for a whole batch.
    async fn acquire_batch(&self) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(MAX_BATCH_ENTRIES).unwrap_or(1);
        Arc::clone(&self.permits)
            .acquire_many_owned(permits)
            .await
            .ok()
    }
}

/// Polls under way at a time: one brings ten messages, and takes a round trip.
pub fn receiver_count(max_concurrency: usize) -> usize {
    (max_concurrency / 16).clamp(1, 16)
}

impl Receiver {
    /// Receives until the stop.
    pub async fn run(self) {
        let mut failures = 0;
        while let Some(permits) = self.acquire_when_ready().await {
            let began = Instant::now();
            match self.poll_queue().await {
                Some(Ok(messages)) => {
                    failures = 0;
                    self.context.health.mark_up(Dependency::Queue);
                    self.spawn_handlers(messages, permits);
                }
                Some(Err(error)) => {
                    failures += 1;
                    self.handle_poll_error(&error, began, failures).await;
                }
                None => return,
            }
        }
    }

    /// Room for a whole batch, once all is well; none at a stop.
    async fn acquire_when_ready(&self) -> Option<OwnedSemaphorePermit> {
        let room = async {
            // The queue itself is probed by receiving.
            for dependency in [Dependency::Database, Dependency::Objects] {
                self.context.health.wait_until_up(dependency).await;
            }
            self.wait_for_throttle().await;
            if let Some(pause) = self.context.counters.other_run_pause() {
                sleep(pause).await;
            }
            self.in_hand_limit.acquire_batch().await
        };
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => None,
            permits = room => permits,
        }
    }

    /// What the throttle does not let us copy soon is better left to others, and to the queue if we have
    /// to stop.
    async fn wait_for_throttle(&self) {
        let throttle = &self.context.throttle;
        while self.in_hand_limit.in_use() + MAX_BATCH_ENTRIES > throttle.max_in_hand() {
            sleep(CAPACITY_CHECK_INTERVAL).await;
        }
    }

    /// One long poll; none when a stop came and the poll did not end soon after.
    async fn poll_queue(&self) -> Option<Result<Vec<ReceivedMessage>, QueueError>> {
        let poll =
            self.queue
                .receive_batch(MAX_BATCH_ENTRIES, LONG_POLL_WAIT, self.visibility_timeout);
        let too_late = async {
            self.context.stop.cancelled().await;
            tokio::select! {
                () = sleep(FINAL_POLL_TIMEOUT) => {}
                () = self.context.give_up.cancelled() => {}
            }
        };
        tokio::select! {
            biased;
            result = poll => Some(result),
            () = too_late => None,
        }
    }

    fn spawn_handlers(&self, messages: Vec<ReceivedMessage>, mut permits: OwnedSemaphorePermit) {
        for mut message in messages {
            let receipt_handle = mem::take(&mut message.receipt_handle);
            let lease = self.context.leases.start_lease(receipt_handle);
            let permit = permits.split(1);
            let stages = Arc::clone(&self.stages);
            let is_stopping = self.context.stop.is_cancelled();
            self.tasks.spawn(async move {
                if is_stopping {
                    stages.give_back(message, lease).await;
                } else {
                    stages.handle(message, lease).await;
                }
                drop(permit);
            });
        }
    }

    async fn handle_poll_error(&self, error: &QueueError, began: Instant, failures: u32) {
        let (health, reason) = (&self.context.health, error.to_string());
        match error {
            QueueError::Refused { .. } => health.mark_down(Dependency::Queue, &reason),
            QueueError::Unavailable { .. } => {
                health.record_failure(Dependency::Queue, began, failures, &reason);
            }
        }
        tokio::select! {
            biased;
            () = sleep(RETRY_BACKOFF.jittered_delay(failures, fastrand::f64())) => {}
            () = self.context.stop.cancelled() => {}
        }
    }
}
