//! Receive: long polls for ten messages, only as many as there is room for.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::queue::{
    LONG_POLL_WAIT, MAX_BATCH_ENTRIES, MessageQueue, QueueError, ReceivedMessage,
};
use bucket_brigade_common::retry::Backoff;
use tokio::time::{Instant, sleep};

use crate::context::ConsumerContext;
use crate::runs::{Dispatcher, PollPermit};

/// How long a poll under way is waited for at a stop: what it brings is released at once, what it
/// would bring later stays in the queue or comes back after its visibility timeout.
const FINAL_POLL_TIMEOUT: Duration = Duration::from_secs(1);

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(500),
    max_delay: Duration::from_secs(30),
};

const EARLY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(2),
};

/// Receives messages and hands each to a task of its own.
#[derive(Clone)]
pub struct Receiver {
    pub queue: Arc<dyn MessageQueue>,
    pub visibility_timeout: Duration,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub context: ConsumerContext,
}

/// Polls under way at a time: one brings ten messages, and takes a round trip.
pub fn receiver_count(max_concurrency: usize) -> usize {
    (max_concurrency / 16).clamp(1, 16)
}

impl Receiver {
    /// Receives until the stop.
    pub async fn run(self) {
        let (mut failures, mut early) = (0, 0);
        while let Some(permit) = self.acquire_when_ready().await {
            let began = Instant::now();
            match self.poll_queue().await {
                Some(Ok(messages)) => {
                    failures = 0;
                    self.context.health.mark_up(Dependency::Queue);
                    let is_early = messages.is_empty() && began.elapsed() < LONG_POLL_WAIT / 2;
                    early = if is_early { early + 1 } else { 0 };
                    self.dispatch(messages, permit);
                    self.wait_after_early(early).await;
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
    async fn acquire_when_ready(&self) -> Option<PollPermit> {
        let room = async {
            // The queue itself is probed by receiving.
            let health = &self.context.health;
            health.wait_until_up(Dependency::Database).await;
            self.context.leases.wait_while_failing().await;
            self.dispatcher.ends.wait_while_failing().await;
            if let Some(pause) = self.context.counters.other_run_pause() {
                sleep(pause).await;
            }
            self.dispatcher.runs.acquire_poll().await
        };
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => None,
            permit = room => permit.into(),
        }
    }

    /// One long poll; none when a stop came and the poll did not end soon after.
    async fn poll_queue(&self) -> Option<Result<Vec<ReceivedMessage>, QueueError>> {
        let poll =
            self.queue
                .receive_batch(MAX_BATCH_ENTRIES, LONG_POLL_WAIT, self.visibility_timeout);
        let too_late = async {
            self.context.stop.cancelled().await;
            let end = sleep(FINAL_POLL_TIMEOUT);
            self.context.give_up.run_until_cancelled(end).await
        };
        tokio::select! {
            biased;
            result = poll => Some(result),
            _ = too_late => None,
        }
    }

    fn dispatch(&self, messages: Vec<ReceivedMessage>, permit: PollPermit) {
        // From here on they count as what they are.
        drop(permit);
        for message in messages {
            self.dispatcher.dispatch(message);
        }
    }

    /// An empty answer before its time says nothing of the next one, and each costs a request.
    async fn wait_after_early(&self, early: u32) {
        if early > 0 {
            self.wait_unless_stopped(EARLY_BACKOFF, early).await;
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
        self.wait_unless_stopped(RETRY_BACKOFF, failures).await;
    }

    async fn wait_unless_stopped(&self, backoff: Backoff, count: u32) {
        let wait = sleep(backoff.jittered_delay(count, fastrand::f64()));
        self.context.stop.run_until_cancelled(wait).await;
    }
}
