//! Acknowledge and release: the end of a message in hand, which [`crate::step`] decides on.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::queue::{EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, QueueError};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;

use crate::gather::{Gather, Limits};

/// Ten deletes share a request, and a delete is in no hurry: its message is hidden, its row is done.
/// Several requests in flight keep up with thousands of copies a second.
const DELETE_BATCHES: Limits = Limits {
    size: MAX_BATCH_ENTRIES,
    enough: MAX_BATCH_ENTRIES,
    linger: Duration::from_millis(500),
    in_flight: 16,
};

/// A release is waited for by the next delivery.
const RELEASE_BATCHES: Limits = Limits {
    size: MAX_BATCH_ENTRIES,
    enough: MAX_BATCH_ENTRIES,
    linger: Duration::from_millis(100),
    in_flight: 16,
};

/// A delete or release that does not get through after these tries is given up: the message comes
/// back by itself, and doing it twice changes nothing.
const MAX_ATTEMPTS: u32 = 5;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(2),
};

/// Ends messages in batches.
pub struct Acknowledger {
    deletes: Gather<String, bool>,
    releases: Gather<(String, Duration), bool>,
}

impl Acknowledger {
    /// Ends messages on this queue.
    pub fn new(queue: &Arc<dyn MessageQueue>) -> Self {
        let (deleting, releasing) = (Arc::clone(queue), Arc::clone(queue));
        Self {
            deletes: Gather::start(DELETE_BATCHES, move |handles: Vec<String>| {
                let queue = Arc::clone(&deleting);
                send_with_retries(handles, move |handles| {
                    let queue = Arc::clone(&queue);
                    async move { queue.delete_batch(&handles).await }.boxed()
                })
                .boxed()
            }),
            releases: Gather::start(RELEASE_BATCHES, move |changes: Vec<(String, Duration)>| {
                let queue = Arc::clone(&releasing);
                send_with_retries(changes, move |changes| {
                    let queue = Arc::clone(&queue);
                    async move { queue.change_visibility(&changes).await }.boxed()
                })
                .boxed()
            }),
        }
    }

    /// Deletes the message, under a lease that held to its end. Whether the queue confirmed it.
    pub async fn delete(&self, receipt_handle: String) -> bool {
        let confirmed = self.deletes.submit(receipt_handle).await;
        confirmed.unwrap_or(false)
    }

    /// Makes the message visible again after `delay`. When the queue does not confirm it the visibility
    /// timeout does the same, later.
    pub async fn release(&self, receipt_handle: String, delay: Duration) -> bool {
        let confirmed = self.releases.submit((receipt_handle, delay)).await;
        confirmed.unwrap_or(false)
    }
}

type QueueBatchResult = Result<Vec<EntryOutcome>, QueueError>;

/// Sends a batch, and again what was not confirmed of it.
async fn send_with_retries<T: Clone>(
    items: Vec<T>,
    send: impl Fn(Vec<T>) -> BoxFuture<'static, QueueBatchResult>,
) -> Vec<bool> {
    let mut done = vec![false; items.len()];
    let mut pending: Vec<usize> = (0..items.len()).collect();
    for tries in 1..=MAX_ATTEMPTS {
        let batch = pending.iter().map(|index| items[*index].clone()).collect();
        match send(batch).await {
            Ok(entries) => pending = retain_unconfirmed(&pending, entries, &mut done),
            Err(error) => tracing::debug!(%error, tries, "a batch was not confirmed"),
        }
        if pending.is_empty() {
            return done;
        }
        sleep(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
    }
    tracing::warn!(
        messages = pending.len(),
        "the queue did not confirm a batch: its messages come back by themselves"
    );
    done
}

fn retain_unconfirmed(
    pending: &[usize],
    entries: Vec<EntryOutcome>,
    done: &mut [bool],
) -> Vec<usize> {
    let mut again = Vec::new();
    for (index, entry) in pending.iter().zip(entries) {
        match entry {
            EntryOutcome::Done => done[*index] = true,
            EntryOutcome::Retry(_) => again.push(*index),
            EntryOutcome::Refused(reason) => {
                tracing::debug!(
                    reason,
                    "a receipt handle was refused: the message comes back"
                );
            }
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test(start_paused = true)]
    async fn only_unconfirmed_entries_are_retried() {
        let sent = Mutex::new(Vec::new());
        let answers = Mutex::new(vec![
            Ok(vec![
                EntryOutcome::Done,
                EntryOutcome::Retry("busy".into()),
                EntryOutcome::Refused("stale".into()),
            ]),
            Err(QueueError::Unavailable {
                operation: "DeleteMessageBatch",
                message: "reset".into(),
            }),
            Ok(vec![EntryOutcome::Done]),
        ]);
        let done = send_with_retries(vec!["a", "b", "c"], |batch| {
            sent.lock().unwrap().push(batch);
            let answer = answers.lock().unwrap().remove(0);
            async move { answer }.boxed()
        })
        .await;
        assert_eq!(done, [true, true, false]);
        assert_eq!(
            *sent.lock().unwrap(),
            [vec!["a", "b", "c"], vec!["b"], vec!["b"]]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_never_responds_is_given_up() {
        let done = send_with_retries(vec!["a"], |_| {
            let error = QueueError::Unavailable {
                operation: "DeleteMessageBatch",
                message: "reset".into(),
            };
            async move { Err(error) }.boxed()
        })
        .await;
        assert_eq!(done, [false]);
    }
}
