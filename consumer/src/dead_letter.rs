//! Dead letters: the message of a row that has failed for good goes straight to the dead-letter queue. What is not
//! confirmed there is released instead, and the redrive policy takes it a few receives later.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bucket_brigade_common::batch::{BatchConfig, Batcher};
use bucket_brigade_common::queue::{
    DeadLetter, EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, QueueError, ReceivedMessage,
};
use futures::FutureExt;

use crate::protocol::Event;

const DEAD_LETTER_BATCHES: BatchConfig = BatchConfig {
    max: MAX_BATCH_ENTRIES,
    min: MAX_BATCH_ENTRIES,
    linger: Duration::from_millis(100),
    concurrency: 4,
};

pub struct DeadLetterSender(Batcher<DeadLetter, Event>);

const UNCONFIRMED: Event = Event::DeadLetterSent { confirmed: false };

impl DeadLetterSender {
    pub fn new(queue: &Arc<dyn MessageQueue>) -> Self {
        let (queue, refusal) = (Arc::clone(queue), Arc::<OnceLock<QueueError>>::default());
        Self(Batcher::new(DEAD_LETTER_BATCHES, move |letters| {
            let (queue, refusal) = (Arc::clone(&queue), Arc::clone(&refusal));
            async move { send_letters(&*queue, &letters, &refusal).await }.boxed()
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

/// One try. Where a right or the queue is missing there is no other.
async fn send_letters(
    queue: &dyn MessageQueue,
    letters: &[DeadLetter],
    refusal: &OnceLock<QueueError>,
) -> Vec<Event> {
    let mut entries = Vec::new();
    if refusal.get().is_none() {
        match queue.send_dead_letters(letters).await {
            Ok(outcomes) => entries = outcomes,
            Err(error) => note_error(error, refusal),
        }
    }
    let is_missing = refusal
        .get()
        .is_some_and(QueueError::is_about_missing_queue);
    let otherwise = if is_missing {
        Event::DeadLetterQueueMissing
    } else {
        UNCONFIRMED
    };
    let event = |entry| match entry {
        EntryOutcome::Done => Event::DeadLetterSent { confirmed: true },
        _ => otherwise.clone(),
    };
    let mut events: Vec<Event> = entries.into_iter().map(event).collect();
    events.resize(letters.len(), otherwise);
    events
}

fn note_error(error: QueueError, refusal: &OnceLock<QueueError>) {
    let remedy = if error.is_about_missing_queue() {
        "create it"
    } else {
        "grant sqs:SendMessage there (deploy/policies/consumer.json)"
    };
    let (text, stays) = (
        error.to_string(),
        error.is_denied() || error.is_about_missing_queue(),
    );
    if stays && refusal.set(error).is_ok() {
        tracing::warn!(
            "messages of rows that failed for good cannot be sent to the dead-letter queue, and are left to the redrive policy: {text}; {remedy}"
        );
    } else {
        tracing::debug!(error = text, "dead letters are left to the redrive policy");
    }
}
