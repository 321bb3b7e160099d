//! The queue, as a trait of only the calls used, and its SQS implementation in [`sqs`].

mod attributes;
mod batches;
pub mod dead_letter;
mod received;
mod requests;
pub mod sqs;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use thiserror::Error;

pub use batches::AttributeValue;

/// A receipt handle of no message, by which rights are tried.
pub const PROBE_HANDLE: &str = "bucket-brigade-probe";

/// The most entries one request may carry. Source: SQS API reference, batch actions.
pub const MAX_BATCH_ENTRIES: usize = 10;

/// How long a receive waits for a message: half of what SQS allows, so that a queue that has fallen silent is
/// noticed soon. Source: SQS API reference, `WaitTimeSeconds`.
pub const LONG_POLL_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReceivedMessage {
    /// The queue's id of the message, the same at each delivery.
    pub message_id: String,
    /// What names this delivery in deletes and visibility changes.
    pub receipt_handle: String,
    pub body: String,
    /// How often it was received, this time included; approximate on SQS.
    pub receive_count: u32,
    /// By the queue's clock, where it says so.
    pub sent_at: Option<SystemTime>,
    /// The span that its further spans belong under, while traces are on. Nothing is decided by it.
    pub traceparent: Option<String>,
    /// All that it carries besides.
    pub attributes: Vec<MessageAttribute>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessageAttribute {
    pub name: String,
    pub value: AttributeValue,
}

/// A message for the dead-letter queue, as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub body: String,
    pub attributes: Vec<MessageAttribute>,
}

/// A message as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    pub body: String,
    /// The span that its further spans belong under; none while traces are off.
    pub traceparent: Option<String>,
}

/// What became of one entry of a batch request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryOutcome {
    /// The queue confirmed it.
    Done,
    /// It failed, and may succeed when sent again.
    Retry(String),
    /// It failed, and the same entry will fail again (a sender's fault; for a receipt handle: it
    /// has expired).
    Refused(String),
}

/// How many messages the queue holds; approximate on SQS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueBacklog {
    /// Waiting to be received, delayed ones included.
    pub visible: u64,
    /// Received and neither deleted nor visible again.
    pub in_flight: u64,
}

impl QueueBacklog {
    pub fn total_messages(self) -> u64 {
        self.visible + self.in_flight
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueAttributes {
    pub backlog: QueueBacklog,
    /// How long a message is kept.
    pub retention: Option<Duration>,
    /// How long each message is hidden at first.
    pub delay: Option<Duration>,
    pub max_message_bytes: Option<u64>,
    /// The key its messages are encrypted with, when it is one of KMS.
    pub kms_key: Option<String>,
    /// Receives before a message goes to the dead-letter queue; none without a redrive policy.
    pub max_receive_count: Option<u32>,
    pub arn: Option<String>,
    pub dead_letter_arn: Option<String>,
}

/// A dead letter comes back at once.
pub const OWN_DEAD_LETTERS: &str = "its redrive policy names the queue itself: messages that cannot be processed are received again until they expire";

impl QueueAttributes {
    pub fn is_own_dead_letter_queue(&self) -> bool {
        self.arn.is_some() && self.arn == self.dead_letter_arn
    }
}

/// Why a request to the queue had no effect that we know of.
#[derive(Debug, Clone, Error)]
pub enum QueueError {
    /// The queue does not exist, or we may not use it: an operator has to repair that.
    #[error("{operation} on the queue is refused ({code}): {message}")]
    Refused {
        operation: &'static str,
        code: String,
        message: String,
    },
    /// Throttled, unreachable or broken for the moment.
    #[error("{operation} on the queue failed: {message}")]
    Unavailable {
        operation: &'static str,
        message: String,
    },
}

impl QueueError {
    /// Whether a right is missing.
    pub fn is_denied(&self) -> bool {
        self.has_code(&DENIED_CODES)
    }

    pub fn is_about_missing_queue(&self) -> bool {
        self.has_code(&MISSING_QUEUE_CODES)
    }

    /// Whether a whole batch may be refused for one of its entries.
    pub fn is_about_entries(&self) -> bool {
        self.has_code(&ENTRY_CODES)
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        matches!(self, Self::Refused { code, .. } if codes.iter().any(|one| code.contains(one)))
    }
}

/// Source: Amazon SQS API reference, "Common errors".
const DENIED_CODES: [&str; 3] = ["AccessDenied", "NotAuthorized", "Forbidden"];

/// What is wrong with one entry: its contents, its size, its receipt handle. Whatever else is refused (throttling,
/// limits, the key, the account) is refused to every entry, a code that is not known included.
/// Source: Amazon SQS API reference, errors of `SendMessage`, `DeleteMessage` and `ChangeMessageVisibility`.
const ENTRY_CODES: [&str; 8] = [
    "InvalidMessageContents",
    "InvalidParameterValue",
    "InvalidAttributeValue",
    "InvalidBatchEntryId",
    "MessageTooLong",
    "BatchRequestTooLong",
    "ReceiptHandleIsInvalid",
    "MessageNotInflight",
];

fn is_about_entry(code: &str) -> bool {
    ENTRY_CODES.iter().any(|one| code.contains(one))
}

const MISSING_QUEUE_CODES: [&str; 2] = ["QueueDoesNotExist", "NonExistentQueue"];

#[async_trait]
pub trait MessageQueue: Send + Sync {
    /// Sends up to [`MAX_BATCH_ENTRIES`] messages; the answer has one entry for each, in order.
    async fn send_batch(
        &self,
        messages: &[OutgoingMessage],
    ) -> Result<Vec<EntryOutcome>, QueueError>;

    /// Long-polls for up to `most` (at most [`MAX_BATCH_ENTRIES`]) messages, hidden from others for `visibility`.
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError>;

    /// Deletes up to [`MAX_BATCH_ENTRIES`] messages by receipt handle; one entry for each, in order.
    async fn delete_batch(
        &self,
        receipt_handles: &[String],
    ) -> Result<Vec<EntryOutcome>, QueueError>;

    /// Hides up to [`MAX_BATCH_ENTRIES`] messages for the given time from now; zero makes them visible at once.
    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<EntryOutcome>, QueueError>;

    /// Sends up to [`MAX_BATCH_ENTRIES`] messages to the queue's dead-letter queue; one entry for each, in order.
    async fn send_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<Vec<EntryOutcome>, QueueError>;

    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError>;
}
