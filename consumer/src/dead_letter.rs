//! Dead letters: the message of a row that has failed for good goes straight to the dead-letter queue. What is not
//! confirmed there is released instead, and the redrive policy takes it a few receives later.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::batch::{BatchConfig, Batcher};
use bucket_brigade_common::queue::{
    DeadLetter, EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, QueueError, ReceivedMessage,
};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::protocol::Event;

const DEAD_LETTER_BATCHES: BatchConfig = BatchConfig {
    max: MAX_BATCH_ENTRIES,
    min: MAX_BATCH_ENTRIES,
    linger: Duration::from_millis(100),
    concurrency: 4,
};

/// When a queue that was not there, or refused, is asked again: an operator may have mended it.
const RECHECK_INTERVAL: Duration = Duration::from_mins(1);

pub struct DeadLetterSender(Batcher<DeadLetter, Event>);

const UNCONFIRMED: Event = Event::DeadLetterSent { confirmed: false };

impl DeadLetterSender {
    pub fn new(queue: &Arc<dyn MessageQueue>) -> Self {
        let (queue, refusal) = (Arc::clone(queue), Arc::<LastRefusal>::default());
        Self(Batcher::new(DEAD_LETTER_BATCHES, move |letters| {
            let (queue, refusal) = (Arc::clone(&queue), Arc::clone(&refusal));
            async move {
                let sending = queue.send_dead_letters(&letters);
                send_unless_refused(letters.len(), sending, &refusal).await
            }
            .boxed()
        }))
    }

    pub async fn send(&self, message: &ReceivedMessage) -> Event {
        let letter = DeadLetter {
            body: message.body.clone(),
            attributes: message.attributes.clone(),
        };
        self.0.submit(letter).await.unwrap_or(UNCONFIRMED)
    }
}

/// What the queue said to the newest try, and when; nothing after a success.
#[derive(Default)]
struct LastRefusal(Mutex<Option<(Event, Instant)>>);

impl LastRefusal {
    /// While there is no use in another try.
    fn current(&self) -> Option<Event> {
        let refusal = self.0.lock().clone();
        let refusal = refusal.filter(|(_, at)| at.elapsed() < RECHECK_INTERVAL);
        refusal.map(|(event, _)| event)
    }

    /// Warns of the first in a row.
    fn note(&self, error: &QueueError) -> Event {
        let is_missing = error.is_about_missing_queue();
        let is_refused = matches!(error, QueueError::Refused { .. });
        if !is_refused || error.is_about_entries() {
            tracing::debug!(%error, "dead letters are left to the redrive policy");
            return UNCONFIRMED;
        }
        let (event, remedy) = if is_missing {
            (Event::DeadLetterQueueMissing, "create it")
        } else if error.is_denied() {
            (UNCONFIRMED, "grant it (deploy/policies/consumer.json)")
        } else {
            (UNCONFIRMED, "check the credentials, and that queue's key")
        };
        let earlier = self.0.lock().replace((event.clone(), Instant::now()));
        if earlier.is_none() {
            tracing::warn!(
                "messages of rows that failed for good cannot be sent to the dead-letter queue, and are left to the redrive policy: {error}; {remedy}"
            );
        }
        event
    }
}

/// One try. Where a right or the queue is missing there is no other for a while.
async fn send_unless_refused(
    letters: usize,
    sending: impl Future<Output = Result<Vec<EntryOutcome>, QueueError>>,
    refusal: &LastRefusal,
) -> Vec<Event> {
    if let Some(event) = refusal.current() {
        return vec![event; letters];
    }
    match sending.await {
        Ok(outcomes) => {
            *refusal.0.lock() = None;
            let event = |outcome| Event::DeadLetterSent {
                confirmed: outcome == EntryOutcome::Done,
            };
            let mut events: Vec<Event> = outcomes.into_iter().map(event).collect();
            events.resize(letters, UNCONFIRMED);
            events
        }
        Err(error) => vec![refusal.note(&error); letters],
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_was_created_again_is_used_after_a_while() {
        let refusal = LastRefusal::default();
        let missing = || {
            Err(QueueError::Refused {
                operation: "SendMessageBatch",
                code: "QueueDoesNotExist".into(),
                message: String::new(),
            })
        };
        let done = || Ok(vec![EntryOutcome::Done]);
        let confirmed = Event::DeadLetterSent { confirmed: true };
        let mut met = Vec::new();
        for (said, wait) in [
            (missing(), Duration::from_secs(59)),
            (done(), Duration::from_secs(1)),
            (done(), Duration::ZERO),
            (missing(), Duration::ZERO),
        ] {
            met.extend(send_unless_refused(1, async { said }, &refusal).await);
            advance(wait).await;
        }
        let missing = Event::DeadLetterQueueMissing;
        assert_eq!(met, [missing.clone(), missing.clone(), confirmed, missing]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_to_every_letter_is_not_tried_for_each() {
        for (code, is_kept) in [
            ("KMS.DisabledException", true),
            ("ExpiredToken", true),
            ("InvalidMessageContents", false),
        ] {
            let refusal = LastRefusal::default();
            let refused = QueueError::Refused {
                operation: "SendMessageBatch",
                code: code.into(),
                message: String::new(),
            };
            send_unless_refused(1, async { Err(refused) }, &refusal).await;
            assert_eq!(refusal.current().is_some(), is_kept, "{code}");
        }
    }
}
