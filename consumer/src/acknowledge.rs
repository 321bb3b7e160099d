//! Acknowledge and release: the end of a message in hand, which [`crate::protocol`] decides on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bucket_brigade_common::batch::{BatchConfig, Batcher, flush_in_halves};
use bucket_brigade_common::queue::{EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, QueueError};
use bucket_brigade_common::retry::Backoff;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::context::ConsumerContext;
use crate::failing_call::{CallFailure, FAILING_INTERVAL, FailingCall};
use crate::lease::{HeldLease, Lease, Leases};

/// Ten deletes share a request, and a delete is in no hurry: its message is hidden, its row is done.
/// Several requests in flight keep up with thousands of copies a second.
const DELETE_BATCHES: BatchConfig = BatchConfig {
    max: MAX_BATCH_ENTRIES,
    min: MAX_BATCH_ENTRIES,
    linger: Duration::from_millis(500),
    concurrency: 16,
};

/// The next delivery waits for a release.
const RELEASE_BATCHES: BatchConfig = BatchConfig {
    linger: Duration::from_millis(100),
    ..DELETE_BATCHES
};

/// A batch that is not confirmed after these tries, or this time, is given up: a release does by itself what it was
/// to do, and a delete is tried again where it cannot use up its lease.
const MAX_ATTEMPTS: u32 = 5;

const MAX_RETRY_TIME: Duration = Duration::from_secs(5);

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(2),
};

const DELETING: &str = "deleting messages";

/// What the queue says to the end of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOutcome {
    Confirmed,
    /// Another consumer has the message.
    Refused,
    Unconfirmed,
}

/// Ends the messages in hand. What is finished and cannot be deleted is kept in hand: coming back would cost it
/// its receives, and with the last one it would be a dead letter.
pub struct Acknowledger {
    deletes: Batcher<String, EndOutcome>,
    releases: Batcher<(String, Duration), EndOutcome>,
    /// Past the batcher: one at a time, while they fail.
    delete_call: Arc<QueueCall<String>>,
    failing: Arc<FailingCall>,
    probing: tokio::sync::Mutex<()>,
    leases: Leases,
    stop: CancellationToken,
}

impl Acknowledger {
    pub fn new(queue: &Arc<dyn MessageQueue>, context: &ConsumerContext) -> Self {
        let failing = FailingCall::new(DELETING, &context.health, context.leases.visibility());
        let failing = Arc::new(failing);
        let delete_call = Arc::new(QueueCall {
            queue: Arc::clone(queue),
            call: |queue, batch| queue.delete_batch(batch),
            failing: Some(Arc::clone(&failing)),
            is_logged: AtomicBool::default(),
        });
        let release_call = Arc::new(QueueCall {
            queue: Arc::clone(queue),
            call: |queue, batch: &[(String, Duration)]| queue.change_visibility(batch),
            failing: None,
            is_logged: AtomicBool::default(),
        });
        Self {
            deletes: batch_calls(DELETE_BATCHES, &delete_call),
            releases: batch_calls(RELEASE_BATCHES, &release_call),
            delete_call,
            failing,
            probing: tokio::sync::Mutex::default(),
            leases: context.leases.clone(),
            stop: context.stop.clone(),
        }
    }

    /// Deletes a message whose renewals are suspended, and tries it again, with its lease renewed meanwhile, until the
    /// queue confirms it, the lease is lost or the process stops. Whether the queue confirmed it.
    pub async fn delete(&self, lease: &Lease, mut held: HeldLease) -> bool {
        let mut outcome = self.delete_batched(&held).await;
        while outcome == EndOutcome::Unconfirmed {
            lease.resume(held);
            let turn = async {
                // No try may use up what is left of it.
                lease.wait_until_renewed().await;
                self.wait_for_turn(lease).await
            };
            let Some(probe) = self.stop.run_until_cancelled(turn).await else {
                return false;
            };
            let Some(suspended) = lease.suspend().await else {
                return false;
            };
            held = suspended;
            outcome = match probe {
                Some(_probe) => self.delete_single(&held).await,
                None => self.delete_batched(&held).await,
            };
        }
        outcome == EndOutcome::Confirmed
    }

    /// While deletes fail one is tried at a time, and the others wait for what becomes of it.
    async fn wait_for_turn(&self, lease: &Lease) -> Option<MutexGuard<'_, ()>> {
        let turn = self.probing.lock().await;
        if !self.failing.is_failing() || !lease.is_held() {
            return None;
        }
        sleep(FAILING_INTERVAL).await;
        Some(turn)
    }

    async fn delete_batched(&self, held: &HeldLease) -> EndOutcome {
        if self.failing.is_failing() {
            return EndOutcome::Unconfirmed;
        }
        let submitted = self.deletes.submit(held.receipt_handle.clone()).await;
        submitted.unwrap_or(EndOutcome::Unconfirmed)
    }

    async fn delete_single(&self, held: &HeldLease) -> EndOutcome {
        let single: Arc<[String]> = Arc::new([held.receipt_handle.clone()]);
        let outcomes = self.delete_call.try_part(single, 1).await;
        outcomes.map_or(EndOutcome::Refused, |outcomes| outcomes[0])
    }

    /// While deletes fail: what is finished is tried first. A few may be refused for their own sake, and hold up no
    /// others for long.
    pub async fn wait_while_failing(&self) {
        let holds_enough = || {
            self.failing.record_idle();
            self.leases.finished_count() >= MAX_BATCH_ENTRIES
        };
        self.failing.wait_while_failing(holds_enough).await;
    }

    /// Makes the message visible again after `delay`. When the queue does not confirm it the visibility
    /// timeout does the same, later.
    pub async fn release(&self, receipt_handle: String, delay: Duration) -> bool {
        let submitted = self.releases.submit((receipt_handle, delay)).await;
        submitted == Some(EndOutcome::Confirmed)
    }
}

type QueueResponse<'a> = BoxFuture<'a, Result<Vec<EntryOutcome>, QueueError>>;

/// A call that ends messages.
struct QueueCall<T> {
    queue: Arc<dyn MessageQueue>,
    call: for<'a> fn(&'a dyn MessageQueue, &'a [T]) -> QueueResponse<'a>,
    /// Where messages are kept in hand while it fails.
    failing: Option<Arc<FailingCall>>,
    /// Whether its newest failure is in the log.
    is_logged: AtomicBool,
}

fn batch_calls<T: Clone + Send + Sync + 'static>(
    config: BatchConfig,
    call: &Arc<QueueCall<T>>,
) -> Batcher<T, EndOutcome> {
    let call = Arc::clone(call);
    Batcher::new(config, move |batch: Vec<T>| {
        let call = Arc::clone(&call);
        async move { call.send_in_halves(batch).await }.boxed()
    })
}

impl<T: Clone> QueueCall<T> {
    /// A batch that is refused as a whole for one of its entries is halved.
    async fn send_in_halves(&self, batch: Vec<T>) -> Vec<EndOutcome> {
        let attempt = async |part: Arc<[T]>| {
            if self.failing.as_ref().is_some_and(|call| call.is_failing()) {
                // It has waited for those that failed.
                return Ok(vec![EndOutcome::Unconfirmed; part.len()]);
            }
            self.try_part(part, MAX_ATTEMPTS).await
        };
        let refused_single = |error| {
            tracing::warn!(%error, "the queue refuses to end a message: it comes back by itself");
            EndOutcome::Refused
        };
        flush_in_halves(batch, attempt, |_, _| false, refused_single).await
    }

    /// An error where the batch is refused for one of its entries.
    async fn try_part(&self, part: Arc<[T]>, attempts: u32) -> Result<Vec<EndOutcome>, QueueError> {
        let count = part.len();
        match self.send_with_retries(part, attempts).await {
            // The messages are gone with it; the receives say so.
            Err((error, _)) if error.is_about_missing_queue() => {
                tracing::debug!(%error, "the queue ends no message");
                Ok(vec![EndOutcome::Refused; count])
            }
            Err((error, _)) if error.is_about_entries() => {
                self.record_success();
                Err(error)
            }
            Err((error, called)) => {
                self.record_failure(&error, called);
                Ok(vec![EndOutcome::Unconfirmed; count])
            }
            Ok(outcomes) => {
                self.record_success();
                Ok(outcomes)
            }
        }
    }

    /// Sends a batch, and again what was not confirmed of it. An error, and when its call began, where the queue
    /// answered for none of it.
    async fn send_with_retries(
        &self,
        items: Arc<[T]>,
        attempts: u32,
    ) -> Result<Vec<EndOutcome>, (QueueError, Instant)> {
        let (began, mut tries) = (Instant::now(), 0);
        let mut outcomes = vec![EndOutcome::Unconfirmed; items.len()];
        loop {
            tries += 1;
            let called = Instant::now();
            let Some(error) = self.send_unconfirmed(&items, &mut outcomes).await else {
                return Ok(outcomes);
            };
            let is_refused = matches!(error, QueueError::Refused { .. });
            if is_refused || tries == attempts || began.elapsed() >= MAX_RETRY_TIME {
                let is_answered = outcomes.iter().any(|one| *one != EndOutcome::Unconfirmed);
                return if is_answered {
                    Ok(outcomes)
                } else {
                    Err((error, called))
                };
            }
            tracing::debug!(%error, tries, "a batch was not confirmed");
            sleep(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
        }
    }

    /// Why some of it is not confirmed, where it is not.
    async fn send_unconfirmed(
        &self,
        items: &[T],
        outcomes: &mut [EndOutcome],
    ) -> Option<QueueError> {
        let pairs = items.iter().zip(outcomes);
        let pending = pairs.filter(|(_, outcome)| **outcome == EndOutcome::Unconfirmed);
        let (batch, pending): (Vec<T>, Vec<_>) = pending
            .map(|(item, outcome)| (item.clone(), outcome))
            .unzip();
        let entries = match (self.call)(&*self.queue, &batch).await {
            Ok(entries) => entries,
            Err(error) => return Some(error),
        };
        let mut unconfirmed = None;
        for (outcome, entry) in pending.into_iter().zip(entries) {
            *outcome = match entry {
                EntryOutcome::Done => EndOutcome::Confirmed,
                EntryOutcome::Retry(message) => {
                    unconfirmed = Some(entry_error(message));
                    EndOutcome::Unconfirmed
                }
                EntryOutcome::Refused(reason) => {
                    tracing::debug!(
                        reason,
                        "a receipt handle was refused: the message comes back"
                    );
                    EndOutcome::Refused
                }
            };
        }
        unconfirmed
    }

    fn record_success(&self) {
        self.is_logged.store(false, Ordering::Relaxed);
        if let Some(failing) = &self.failing {
            failing.record_success();
        }
    }

    fn record_failure(&self, error: &QueueError, called: Instant) {
        match &self.failing {
            Some(failing) => failing.record_failure(&CallFailure::since(called, error)),
            None if self.is_logged.swap(true, Ordering::Relaxed) => {}
            None => {
                tracing::warn!(%error, "messages cannot be given back: they come back by themselves");
            }
        }
    }
}

fn entry_error(message: String) -> QueueError {
    QueueError::Unavailable {
        operation: "a batch's entry",
        message,
    }
}

#[cfg(test)]
mod tests;
