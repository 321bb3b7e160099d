//! Acknowledge and release: the end of a message in hand, which [`crate::protocol`] decides on.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::batch::{BatchConfig, Batcher, flush_in_halves};
use bucket_brigade_common::queue::{EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, QueueError};
use bucket_brigade_common::retry::Backoff;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;

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

/// A delete or release that is not confirmed after these tries is given up: the message comes back by
/// itself, and doing it twice changes nothing.
const MAX_ATTEMPTS: u32 = 5;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(2),
};

pub struct Acknowledger {
    deletes: Batcher<String, bool>,
    releases: Batcher<(String, Duration), bool>,
}

impl Acknowledger {
    pub fn new(queue: &Arc<dyn MessageQueue>) -> Self {
        Self {
            deletes: queue_batches(DELETE_BATCHES, queue, |queue, batch| {
                queue.delete_batch(batch)
            }),
            releases: queue_batches(RELEASE_BATCHES, queue, |queue, batch| {
                queue.change_visibility(batch)
            }),
        }
    }

    /// Deletes the message, under a lease that held to its end. Whether the queue confirmed it.
    pub async fn delete(&self, receipt_handle: String) -> bool {
        self.deletes.submit(receipt_handle).await == Some(true)
    }

    /// Makes the message visible again after `delay`. When the queue does not confirm it the visibility
    /// timeout does the same, later.
    pub async fn release(&self, receipt_handle: String, delay: Duration) -> bool {
        self.releases.submit((receipt_handle, delay)).await == Some(true)
    }
}

type QueueResponse<'a> = BoxFuture<'a, Result<Vec<EntryOutcome>, QueueError>>;

type QueueCall<T> = for<'a> fn(&'a dyn MessageQueue, &'a [T]) -> QueueResponse<'a>;

fn queue_batches<T: Clone + Send + Sync + 'static>(
    config: BatchConfig,
    queue: &Arc<dyn MessageQueue>,
    call: QueueCall<T>,
) -> Batcher<T, bool> {
    let queue = Arc::clone(queue);
    Batcher::new(config, move |batch: Vec<T>| {
        let queue = Arc::clone(&queue);
        let send = move |entries: Vec<T>| {
            let queue = Arc::clone(&queue);
            async move { call(&*queue, &entries).await }.boxed()
        };
        send_in_halves(batch, send).boxed()
    })
}

/// A batch that is refused as a whole is halved, each half with one try: a queue that refuses everything
/// must not hold up the shutdown.
async fn send_in_halves<T: Clone>(
    batch: Vec<T>,
    send: impl Fn(Vec<T>) -> QueueResponse<'static>,
) -> Vec<bool> {
    let whole = batch.len();
    let attempt = async |part: Arc<[T]>| {
        let attempts = if part.len() == whole { MAX_ATTEMPTS } else { 1 };
        let count = part.len();
        match send_with_retries(part, attempts, &send).await {
            // Of the whole queue, which the receives tell of.
            Err(error) if error.is_about_missing_queue() => {
                tracing::debug!(%error, "the queue ends no message");
                Ok(vec![false; count])
            }
            Err(error) if error.is_denied() => {
                tracing::warn!(%error, "the queue refuses to end messages: they come back by themselves");
                Ok(vec![false; count])
            }
            sent => sent,
        }
    };
    flush_in_halves(
        batch,
        attempt,
        |_| false,
        |error| {
            tracing::warn!(%error, "the queue refuses to end a message: it comes back by itself");
            false
        },
    )
    .await
}

/// Sends a batch, and again what was not confirmed of it. An error when all of it was refused to the last.
async fn send_with_retries<T: Clone>(
    items: Arc<[T]>,
    attempts: u32,
    send: &impl Fn(Vec<T>) -> QueueResponse<'static>,
) -> Result<Vec<bool>, QueueError> {
    let mut confirmed = vec![false; items.len()];
    let mut pending: Vec<usize> = (0..items.len()).collect();
    for tries in 1..=attempts {
        if tries > 1 {
            sleep(RETRY_BACKOFF.jittered_delay(tries - 1, fastrand::f64())).await;
        }
        let is_last = tries == attempts && pending.len() == items.len();
        let batch = pending.iter().map(|index| items[*index].clone()).collect();
        match send(batch).await {
            Ok(entries) => pending = retain_unconfirmed(&pending, entries, &mut confirmed),
            Err(error @ QueueError::Refused { .. }) if is_last => return Err(error),
            Err(error) => tracing::debug!(%error, tries, "a batch was not confirmed"),
        }
        if pending.is_empty() {
            return Ok(confirmed);
        }
    }
    tracing::warn!(
        messages = pending.len(),
        "the queue did not confirm a batch: its messages come back by themselves"
    );
    Ok(confirmed)
}

fn retain_unconfirmed(
    pending: &[usize],
    entries: Vec<EntryOutcome>,
    confirmed: &mut [bool],
) -> Vec<usize> {
    let mut again = Vec::new();
    for (index, entry) in pending.iter().zip(entries) {
        match entry {
            EntryOutcome::Done => confirmed[*index] = true,
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
    use parking_lot::Mutex;

    use super::*;

    fn unavailable() -> QueueError {
        QueueError::Unavailable {
            operation: "DeleteMessageBatch",
            message: "reset".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_unconfirmed_entries_are_retried() {
        let sent = Mutex::new(Vec::new());
        let responses = Mutex::new(vec![
            Ok(vec![
                EntryOutcome::Done,
                EntryOutcome::Retry("busy".into()),
                EntryOutcome::Refused("stale".into()),
            ]),
            Err(unavailable()),
            Ok(vec![EntryOutcome::Done]),
        ]);
        let confirmed = send_in_halves(vec!["a", "b", "c"], |batch| {
            sent.lock().push(batch);
            let response = responses.lock().remove(0);
            async move { response }.boxed()
        })
        .await;
        assert_eq!(confirmed, [true, true, false]);
        assert_eq!(*sent.lock(), [vec!["a", "b", "c"], vec!["b"], vec!["b"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_never_responds_is_given_up() {
        let confirmed = send_in_halves(vec!["a"], |_| async { Err(unavailable()) }.boxed()).await;
        assert_eq!(confirmed, [false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_queue_is_not_asked_for_each_message() {
        let sent = Mutex::new(0);
        let confirmed = send_in_halves(vec!["a", "b", "c", "d"], |_| {
            *sent.lock() += 1;
            let error = QueueError::Refused {
                operation: "DeleteMessageBatch",
                code: "AWS.SimpleQueueService.NonExistentQueue".into(),
                message: String::new(),
            };
            async { Err(error) }.boxed()
        })
        .await;
        assert_eq!(confirmed, [false; 4]);
        assert_eq!(*sent.lock(), MAX_ATTEMPTS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_for_which_a_whole_batch_is_refused_is_alone_in_the_end() {
        let confirmed = send_in_halves(vec!["a", "b", "c", "d"], |batch| {
            async move {
                if batch.contains(&"b") {
                    return Err(QueueError::Refused {
                        operation: "DeleteMessageBatch",
                        code: "InvalidParameterValue".into(),
                        message: "b".into(),
                    });
                }
                Ok(batch.iter().map(|_| EntryOutcome::Done).collect())
            }
            .boxed()
        })
        .await;
        assert_eq!(confirmed, [true, false, true, true]);
    }
}
