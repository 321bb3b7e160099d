//! Dead letters: the message of a row that has failed for good goes straight to the dead-letter queue. What is not
//! confirmed there is released instead, and the redrive policy takes it a few receives later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

pub struct DeadLetterSender(Batcher<DeadLetter, bool>);

impl DeadLetterSender {
    pub fn new(queue: &Arc<dyn MessageQueue>) -> Self {
        let (queue, is_refused) = (Arc::clone(queue), Arc::new(AtomicBool::new(false)));
        Self(Batcher::new(DEAD_LETTER_BATCHES, move |letters| {
            let (queue, is_refused) = (Arc::clone(&queue), Arc::clone(&is_refused));
            async move { send_letters(&*queue, &letters, &is_refused).await }.boxed()
        }))
    }

    pub async fn send(&self, message: &ReceivedMessage) -> Event {
        let letter = DeadLetter {
            body: message.body.clone(),
            attributes: message.attributes.clone(),
        };
        let confirmed = self.0.submit(letter).await.unwrap_or(false);
        Event::DeadLetterSent { confirmed }
    }
}

/// One try. Where a right or the queue is missing there is no other.
async fn send_letters(
    queue: &dyn MessageQueue,
    letters: &[DeadLetter],
    is_refused: &AtomicBool,
) -> Vec<bool> {
    let mut entries = Vec::new();
    if !is_refused.load(Ordering::Relaxed) {
        match queue.send_dead_letters(letters).await {
            Ok(outcomes) => entries = outcomes,
            Err(error) => note_error(&error, is_refused),
        }
    }
    let mut confirmed: Vec<bool> = entries
        .iter()
        .map(|entry| *entry == EntryOutcome::Done)
        .collect();
    confirmed.resize(letters.len(), false);
    confirmed
}

fn note_error(error: &QueueError, is_refused: &AtomicBool) {
    let stays = error.is_denied() || error.is_about_missing_queue();
    if stays && !is_refused.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "messages of rows that failed for good cannot be sent to the dead-letter queue, and are left to the redrive policy: {error}; grant sqs:SendMessage there (deploy/policies/consumer.json)"
        );
    } else {
        tracing::debug!(%error, "dead letters are left to the redrive policy");
    }
}
