//! Acknowledge and release: the end of a message in hand, which [`crate::step`] decides on.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::queue::{BATCH, Entry, Queue, QueueError};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;

use crate::gather::{Gather, Limits};

/// Ten deletes share a request, and a delete is in no hurry: its message is hidden, its row is done.
/// Several requests in flight keep up with thousands of copies a second.
const DELETES: Limits = Limits {
    size: BATCH,
    enough: BATCH,
    linger: Duration::from_millis(500),
    in_flight: 16,
};

/// A release is waited for by the next delivery.
const RELEASES: Limits = Limits {
    size: BATCH,
    enough: BATCH,
    linger: Duration::from_millis(100),
    in_flight: 16,
};

/// A delete or release that does not get through after these tries is given up: the message comes
/// back by itself, and doing it twice changes nothing.
const TRIES: u32 = 5;

const AGAIN: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(2),
};

/// Ends messages in batches.
pub struct Acknowledge {
    deletes: Gather<String, bool>,
    releases: Gather<(String, Duration), bool>,
}

impl Acknowledge {
    /// Ends messages on this queue.
    pub fn new(queue: &Arc<dyn Queue>) -> Self {
        let (deleting, releasing) = (Arc::clone(queue), Arc::clone(queue));
        Self {
            deletes: Gather::start(DELETES, move |handles: Vec<String>| {
                let queue = Arc::clone(&deleting);
                until_done(handles, move |handles| {
                    let queue = Arc::clone(&queue);
                    async move { queue.delete(&handles).await }.boxed()
                })
                .boxed()
            }),
            releases: Gather::start(RELEASES, move |changes: Vec<(String, Duration)>| {
                let queue = Arc::clone(&releasing);
                until_done(changes, move |changes| {
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

type Outcome = Result<Vec<Entry>, QueueError>;

/// Sends a batch, and again what was not confirmed of it.
async fn until_done<T: Clone>(
    items: Vec<T>,
    send: impl Fn(Vec<T>) -> BoxFuture<'static, Outcome>,
) -> Vec<bool> {
    let mut done = vec![false; items.len()];
    let mut pending: Vec<usize> = (0..items.len()).collect();
    for tries in 1..=TRIES {
        let batch = pending.iter().map(|index| items[*index].clone()).collect();
        match send(batch).await {
            Ok(entries) => pending = still_pending(&pending, entries, &mut done),
            Err(error) => tracing::debug!(%error, tries, "a batch was not confirmed"),
        }
        if pending.is_empty() {
            return done;
        }
        sleep(AGAIN.delay(tries, fastrand::f64())).await;
    }
    tracing::warn!(
        messages = pending.len(),
        "the queue did not confirm a batch: its messages come back by themselves"
    );
    done
}

fn still_pending(pending: &[usize], entries: Vec<Entry>, done: &mut [bool]) -> Vec<usize> {
    let mut again = Vec::new();
    for (index, entry) in pending.iter().zip(entries) {
        match entry {
            Entry::Done => done[*index] = true,
            Entry::Retry(_) => again.push(*index),
            Entry::Refused(reason) => {
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
    async fn only_what_was_not_confirmed_is_sent_again() {
        let sent = Mutex::new(Vec::new());
        let answers = Mutex::new(vec![
            Ok(vec![
                Entry::Done,
                Entry::Retry("busy".into()),
                Entry::Refused("stale".into()),
            ]),
            Err(QueueError::Unavailable {
                operation: "DeleteMessageBatch",
                message: "reset".into(),
            }),
            Ok(vec![Entry::Done]),
        ]);
        let done = until_done(vec!["a", "b", "c"], |batch| {
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
    async fn a_queue_that_never_answers_is_given_up() {
        let done = until_done(vec!["a"], |_| {
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
