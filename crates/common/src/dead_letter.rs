//! The queue and its dead-letter queue as an operator sees them: what they were given, what is in them,
//! and the way back.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;

use crate::queue::{
    EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, OutgoingMessage, QueueBacklog, QueueError,
};
use crate::sqs::{SqsQueue, max_receive_count, queue_error};

/// What a queue was given, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDescription {
    /// How many messages there are.
    pub backlog: QueueBacklog,
    /// How long a message is kept.
    pub retention: Option<Duration>,
    /// The key its messages are encrypted with, when it is one of KMS.
    pub kms_key: Option<String>,
    /// Receives before a message goes to the dead-letter queue; none without a redrive policy.
    pub max_receive_count: Option<u32>,
    /// The dead-letter queue's ARN.
    pub dead_letter_arn: Option<String>,
}

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
    /// What the queue was given, and what is in it.
    pub async fn describe_queue(&self) -> Result<QueueDescription, QueueError> {
        read_description(&self.client, &self.url).await
    }

    /// Its dead-letter queue; none without a redrive policy. It is in the same account and region, as
    /// SQS demands.
    pub async fn dead_letter_queue(&self) -> Result<Option<DeadLetterQueue>, QueueError> {
        Ok(self.dead_letter_queue_of(&self.describe_queue().await?))
    }

    /// The same, when its facts are known.
    pub fn dead_letter_queue_of(&self, facts: &QueueDescription) -> Option<DeadLetterQueue> {
        let arn = facts.dead_letter_arn.clone()?;
        let (stem, _) = self.url.trim_end_matches('/').rsplit_once('/')?;
        let name = arn.rsplit(':').next()?;
        // A letter keeps its trace on its way back.
        let dead = SqsQueue::new(self.client.clone(), format!("{stem}/{name}"));
        Some(DeadLetterQueue {
            dead_letters: dead.with_traces(true),
            queue: self.clone(),
            arn,
        })
    }
}

/// Where messages go that were received too often.
#[derive(Debug, Clone)]
pub struct DeadLetterQueue {
    dead_letters: SqsQueue,
    queue: SqsQueue,
    arn: String,
}

impl DeadLetterQueue {
    /// What it was given, and what is in it.
    pub async fn describe_queue(&self) -> Result<QueueDescription, QueueError> {
        self.dead_letters.describe_queue().await
    }

    /// Moves all dead letters back to the queue.
    ///
    /// # Errors
    /// [`QueueError`]; some may have been moved.
    pub async fn redrive_all(&self) -> Result<RedriveOutcome, QueueError> {
        let waiting = self.describe_queue().await?.backlog.total_messages();
        if waiting == 0 {
            return Ok(RedriveOutcome::Empty);
        }
        let task = self.dead_letters.client.start_message_move_task();
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

async fn read_description(client: &Client, url: &str) -> Result<QueueDescription, QueueError> {
    let output = client
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(Name::ApproximateNumberOfMessages)
        .attribute_names(Name::ApproximateNumberOfMessagesDelayed)
        .attribute_names(Name::ApproximateNumberOfMessagesNotVisible)
        .attribute_names(Name::MessageRetentionPeriod)
        .attribute_names(Name::KmsMasterKeyId)
        .attribute_names(Name::RedrivePolicy)
        .send()
        .await
        .map_err(|error| queue_error("GetQueueAttributes", error))?;
    let attributes = output.attributes.unwrap_or_default();
    let number = |name| attributes.get(&name).and_then(|text| text.parse().ok());
    let policy = attributes.get(&Name::RedrivePolicy);
    Ok(QueueDescription {
        backlog: QueueBacklog {
            visible: number(Name::ApproximateNumberOfMessages).unwrap_or(0)
                + number(Name::ApproximateNumberOfMessagesDelayed).unwrap_or(0),
            in_flight: number(Name::ApproximateNumberOfMessagesNotVisible).unwrap_or(0),
        },
        retention: number(Name::MessageRetentionPeriod).map(Duration::from_secs),
        kms_key: attributes.get(&Name::KmsMasterKeyId).cloned(),
        max_receive_count: policy.and_then(|policy| max_receive_count(policy)),
        dead_letter_arn: policy.and_then(|policy| dead_letter_arn(policy)),
    })
}

fn dead_letter_arn(policy: &str) -> Option<String> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    Some(policy.get("deadLetterTargetArn")?.as_str()?.to_owned())
}
