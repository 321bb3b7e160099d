//! The queue and its dead-letter queue as an operator sees them: what they were given, what is in them,
//! and the way back.

use std::time::Duration;

use crate::queue::sqs::{SqsQueue, queue_error};
use crate::queue::{
    EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, OutgoingMessage, QueueAttributes, QueueError,
};

/// How dead letters came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedriveOutcome {
    Empty,
    /// SQS moves about so many by itself, 500 a second at most.
    Started(u64),
    /// So many were moved one by one, because the service knows no redrive.
    Resent(u64),
}

/// The codes of services that know no redrive.
const UNSUPPORTED_CODES: [&str; 4] = [
    "UnsupportedOperation",
    "InvalidAction",
    "UnknownOperation",
    "NotImplemented",
];

/// How long a dead letter is hidden while it is moved by hand.
const RESEND_VISIBILITY: Duration = Duration::from_secs(30);

impl SqsQueue {
    /// Its dead-letter queue; none without a redrive policy. It is in the same account and region, as
    /// SQS demands.
    pub async fn dead_letter_queue(&self) -> Result<Option<DeadLetterQueue>, QueueError> {
        Ok(self.dead_letter_queue_of(&self.queue_attributes().await?))
    }

    /// The same, when its attributes are known.
    pub fn dead_letter_queue_of(&self, attributes: &QueueAttributes) -> Option<DeadLetterQueue> {
        let url = self.dead_letter_url_of(attributes)?;
        // A letter keeps its trace on its way back.
        let dead = SqsQueue::new(self.client.clone(), url);
        Some(DeadLetterQueue {
            dead_letters: dead.with_traces(true),
            queue: self.clone(),
            arn: attributes.dead_letter_arn.clone()?,
            queue_arn: attributes.arn.clone(),
        })
    }

    pub(super) fn dead_letter_url_of(&self, attributes: &QueueAttributes) -> Option<String> {
        let (stem, _) = self.url.trim_end_matches('/').rsplit_once('/')?;
        let name = attributes.dead_letter_arn.as_ref()?.rsplit(':').next()?;
        Some(format!("{stem}/{name}"))
    }
}

/// Where messages go that were received too often.
#[derive(Debug, Clone)]
pub struct DeadLetterQueue {
    dead_letters: SqsQueue,
    queue: SqsQueue,
    arn: String,
    queue_arn: Option<String>,
}

impl DeadLetterQueue {
    /// What it was given, and what is in it.
    pub async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.dead_letters.queue_attributes().await
    }

    /// Moves all dead letters back to the queue.
    ///
    /// # Errors
    /// [`QueueError`]; some may have been moved.
    pub async fn redrive_all(&self) -> Result<RedriveOutcome, QueueError> {
        let waiting = self.queue_attributes().await?.backlog.total_messages();
        if waiting == 0 {
            return Ok(RedriveOutcome::Empty);
        }
        // SQS does not know where a message comes from that a consumer has sent there: it has to be named.
        let task = self.dead_letters.client.start_message_move_task();
        let task = task.set_destination_arn(self.queue_arn.clone());
        match task.source_arn(&self.arn).send().await {
            Ok(_) => return Ok(RedriveOutcome::Started(waiting)),
            Err(error) => match queue_error("StartMessageMoveTask", error) {
                QueueError::Refused { code, .. }
                    if UNSUPPORTED_CODES.iter().any(|one| code.contains(one)) => {}
                other => return Err(other),
            },
        }
        Ok(RedriveOutcome::Resent(self.resend_messages(waiting).await?))
    }

    /// Sends first and deletes then: a message may come twice, which changes nothing, but is never lost.
    async fn resend_messages(&self, most: u64) -> Result<u64, QueueError> {
        let mut moved = 0;
        while moved < most {
            let messages = self
                .dead_letters
                .receive_batch(MAX_BATCH_ENTRIES, Duration::ZERO, RESEND_VISIBILITY)
                .await?;
            if messages.is_empty() {
                break;
            }
            let again = messages.iter().map(|one| OutgoingMessage {
                body: one.body.clone(),
                traceparent: one.traceparent.clone(),
            });
            let entries = self.queue.send_batch(&again.collect::<Vec<_>>()).await?;
            let sent = messages.into_iter().zip(entries);
            let handles: Vec<String> = sent
                .filter(|(_, entry)| *entry == EntryOutcome::Done)
                .map(|(message, _)| message.receipt_handle)
                .collect();
            if handles.is_empty() {
                break;
            }
            self.dead_letters.delete_batch(&handles).await?;
            moved += u64::try_from(handles.len()).unwrap_or(0);
        }
        Ok(moved)
    }
}
