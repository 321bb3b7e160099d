//! The queue and its dead-letter queue as an operator sees them: what they were given, what is in them,
//! and the way back.

use std::mem;
use std::time::Duration;

use crate::message::{RunKey, names_run};
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

/// The same while those of one run are looked for, so that each is looked at once.
const SEARCH_VISIBILITY: Duration = Duration::from_mins(2);

/// Without a wait a request asks some of the service's hosts only, and often gets nothing.
const RESEND_WAIT: Duration = Duration::from_secs(1);

impl SqsQueue {
    /// Its dead-letter queue; none without a redrive policy. It is in the same account and region, as
    /// SQS demands.
    pub async fn dead_letter_queue(&self) -> Result<Option<DeadLetterQueue>, QueueError> {
        Ok(self.dead_letter_queue_of(&self.queue_attributes().await?))
    }

    /// The same, when its attributes are known.
    pub fn dead_letter_queue_of(&self, attributes: &QueueAttributes) -> Option<DeadLetterQueue> {
        let url = self.dead_letter_url_of(attributes)?;
        Some(DeadLetterQueue {
            dead_letters: self.sibling(url),
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
            Err(error) => match queue_error("StartMessageMoveTask", &self.arn, error) {
                QueueError::Refused { code, .. }
                    if UNSUPPORTED_CODES.iter().any(|one| code.contains(one)) => {}
                // SQS lets no other account start it, whatever the policies say.
                error if error.is_denied() => {
                    tracing::warn!("{error}: the dead letters are received and sent one by one");
                }
                // One at a time.
                QueueError::Refused { message, .. } if message.contains("already") => {
                    return Ok(RedriveOutcome::Started(waiting));
                }
                other => return Err(other),
            },
        }
        let resent = self.resend_messages(waiting, RESEND_VISIBILITY, |_| true);
        Ok(RedriveOutcome::Resent(resent.await?))
    }

    /// The same for those whose body is of the run; the others stay.
    ///
    /// # Errors
    /// [`QueueError`]; some may have been moved.
    pub async fn redrive_run(&self, run: RunKey) -> Result<RedriveOutcome, QueueError> {
        let waiting = self.queue_attributes().await?.backlog.total_messages();
        let is_own = |body: &str| names_run(body, run);
        let resent = self.resend_messages(waiting, SEARCH_VISIBILITY, is_own);
        Ok(match resent.await? {
            0 => RedriveOutcome::Empty,
            resent => RedriveOutcome::Resent(resent),
        })
    }

    /// Sends first and deletes then: a message may come twice, which changes nothing, but is never lost.
    async fn resend_messages(
        &self,
        most: u64,
        visibility: Duration,
        is_own: impl Fn(&str) -> bool,
    ) -> Result<u64, QueueError> {
        let (mut moved, mut received_count, mut left) = (0, 0, Vec::new());
        let mut had_none = false;
        while received_count < most {
            let received = self
                .dead_letters
                .receive_batch(MAX_BATCH_ENTRIES, RESEND_WAIT, visibility)
                .await?;
            if received.is_empty() {
                if mem::replace(&mut had_none, true) {
                    break;
                }
                continue;
            }
            had_none = false;
            received_count += u64::try_from(received.len()).unwrap_or(0);
            let (messages, others): (Vec<_>, Vec<_>) =
                received.into_iter().partition(|one| is_own(&one.body));
            let hidden = others
                .into_iter()
                .map(|one| (one.receipt_handle, Duration::ZERO));
            left.extend(hidden);
            if messages.is_empty() {
                continue;
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
        for batch in left.chunks(MAX_BATCH_ENTRIES) {
            // Without the right they come back by themselves.
            let _ = self.dead_letters.change_visibility(batch).await;
        }
        Ok(moved)
    }
}
