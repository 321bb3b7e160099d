//! The queue on SQS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::BuildError;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName,
    SendMessageBatchRequestEntry,
};
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::timeout;

use crate::aws::{ErrorOrigin, RequestError};
use crate::permissions::sqs_arn;
use crate::queue::attributes::parse_attributes;
use crate::queue::batch_entries::{build_entries, entry_outcomes};
use crate::queue::{
    DeadLetter, EntryOutcome, MAX_BATCH_ENTRIES, MessageAttribute, MessageQueue, OutgoingMessage,
    PROBE_HANDLE, QueueAttributes, QueueError, ReceivedMessage,
};
use crate::trace::{TRACEPARENT, is_traceparent};

/// When a call that does not wait for messages is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);

/// One SQS standard queue.
#[derive(Debug, Clone)]
pub struct SqsQueue {
    pub(crate) client: Client,
    pub(crate) url: String,
    age_histogram: Option<Histogram>,
    requests_traces: bool,
    dead_letter_url: Option<String>,
    /// Whether all attributes are asked for: not before there is a dead letter that must keep them.
    requests_attributes: Arc<AtomicBool>,
}

impl SqsQueue {
    /// The queue with this URL, on a client whose own retries are off.
    pub fn new(client: Client, url: impl Into<String>) -> Self {
        Self {
            client,
            url: url.into(),
            age_histogram: None,
            requests_traces: false,
            dead_letter_url: None,
            requests_attributes: Arc::default(),
        }
    }

    /// Knows where dead letters go.
    #[must_use]
    pub fn with_dead_letters(self, attributes: &QueueAttributes) -> Self {
        Self {
            dead_letter_url: self.dead_letter_url_of(attributes),
            ..self
        }
    }

    /// Counts how old each message is when it is received, by the queue's clock and ours.
    #[must_use]
    pub fn with_age_histogram(self, ages: Histogram) -> Self {
        Self {
            age_histogram: Some(ages),
            ..self
        }
    }

    /// Asks, or does not, for the trace that each message carries.
    #[must_use]
    pub fn with_traces(self, asks_for_traces: bool) -> Self {
        Self {
            requests_traces: asks_for_traces,
            ..self
        }
    }

    /// Deletes no message: the handle is none's. For the right to do so.
    pub(crate) async fn probe_delete(&self) -> Result<(), QueueError> {
        let request = self.client.delete_message().queue_url(&self.url);
        let request = request.receipt_handle(PROBE_HANDLE).send();
        respond("DeleteMessage", &self.url, request).await.map(drop)
    }

    fn message_attributes(&self, all: bool) -> Option<Vec<String>> {
        if all {
            return Some(vec!["All".to_owned()]);
        }
        self.requests_traces.then(|| vec![TRACEPARENT.to_owned()])
    }

    async fn send_entries(
        &self,
        url: &str,
        entries: Vec<SendMessageBatchRequestEntry>,
        count: usize,
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let request = self
            .client
            .send_message_batch()
            .queue_url(url)
            .set_entries(Some(entries))
            .send();
        let output = respond("SendMessageBatch", url, request).await?;
        let done = output.successful.iter().map(|entry| entry.id.as_str());
        Ok(entry_outcomes(count, done, &output.failed))
    }

    fn system_attributes(&self) -> Vec<MessageSystemAttributeName> {
        let mut names = vec![MessageSystemAttributeName::ApproximateReceiveCount];
        if self.age_histogram.is_some() {
            names.push(MessageSystemAttributeName::SentTimestamp);
        }
        names
    }

    fn record_age(&self, message: &aws_sdk_sqs::types::Message) {
        if let (Some(ages), Some(sent)) = (&self.age_histogram, sent_time(message)) {
            // A clock that is behind the queue's makes a message look unsent: it is new.
            let age = SystemTime::now().duration_since(sent);
            ages.observe(age.unwrap_or_default().as_secs_f64());
        }
    }
}

#[async_trait]
impl MessageQueue for SqsQueue {
    async fn send_batch(
        &self,
        messages: &[OutgoingMessage],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let entries = build_entries(messages, send_entry)?;
        self.send_entries(&self.url, entries, messages.len()).await
    }

    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        let knows_attributes = self.requests_attributes.load(Ordering::Relaxed);
        let output = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(most.clamp(1, MAX_BATCH_ENTRIES)).unwrap_or(1))
            .wait_time_seconds(whole_seconds(wait))
            .visibility_timeout(whole_seconds(visibility))
            .set_message_system_attribute_names(Some(self.system_attributes()))
            .set_message_attribute_names(self.message_attributes(knows_attributes))
            .send()
            .await
            .map_err(|error| queue_error("ReceiveMessage", &self.url, error))?;
        let messages = output.messages.unwrap_or_default();
        for message in &messages {
            self.record_age(message);
        }
        let convert = |message| convert_message(message, knows_attributes);
        Ok(messages.into_iter().filter_map(convert).collect())
    }

    async fn delete_batch(
        &self,
        receipt_handles: &[String],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let entries = build_entries(receipt_handles, |id, handle| {
            DeleteMessageBatchRequestEntry::builder()
                .id(id)
                .receipt_handle(handle)
                .build()
        })?;
        let request = self
            .client
            .delete_message_batch()
            .queue_url(&self.url)
            .set_entries(Some(entries))
            .send();
        let output = respond("DeleteMessageBatch", &self.url, request).await?;
        let done = output.successful.iter().map(|entry| entry.id.as_str());
        Ok(entry_outcomes(receipt_handles.len(), done, &output.failed))
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let entries = build_entries(changes, |id, (handle, hidden)| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(id)
                .receipt_handle(handle)
                .visibility_timeout(whole_seconds(*hidden))
                .build()
        })?;
        let request = self
            .client
            .change_message_visibility_batch()
            .queue_url(&self.url)
            .set_entries(Some(entries))
            .send();
        let output = respond("ChangeMessageVisibilityBatch", &self.url, request).await?;
        let done = output.successful.iter().map(|entry| entry.id.as_str());
        Ok(entry_outcomes(changes.len(), done, &output.failed))
    }

    async fn send_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let Some(url) = &self.dead_letter_url else {
            return Err(QueueError::Refused {
                operation: "SendMessageBatch",
                code: "QueueDoesNotExist".into(),
                message: "the redrive policy names no queue".into(),
            });
        };
        // They come again, with all that they carry.
        if letters.iter().any(|letter| letter.attributes.is_none()) {
            self.requests_attributes.store(true, Ordering::Relaxed);
            let unknown = EntryOutcome::Retry("its attributes are not known".into());
            return Ok(vec![unknown; letters.len()]);
        }
        let entries = build_entries(letters, dead_letter_entry)?;
        self.send_entries(url, entries, letters.len()).await
    }

    /// All that the service knows: one that lacks an attribute may refuse a request that names it.
    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        let request = self
            .client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::All)
            .send();
        let output = respond("GetQueueAttributes", &self.url, request).await?;
        Ok(parse_attributes(&output.attributes.unwrap_or_default()))
    }
}

/// What the queue responds to any call but a receive, or that it does not.
async fn respond<T, E: Into<RequestError>>(
    operation: &'static str,
    url: &str,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, QueueError> {
    match timeout(CALL_TIMEOUT, request).await {
        Ok(response) => response.map_err(|error| queue_error(operation, url, error)),
        Err(_) => Err(QueueError::Unavailable {
            operation,
            message: format!("no response within {CALL_TIMEOUT:?}"),
        }),
    }
}

/// With its trace it is 72 bytes longer: ten of the longest stay far below the limit of a batch.
fn send_entry(
    id: String,
    message: &OutgoingMessage,
) -> Result<SendMessageBatchRequestEntry, BuildError> {
    let entry = SendMessageBatchRequestEntry::builder()
        .id(id)
        .message_body(&message.body);
    let Some(traceparent) = &message.traceparent else {
        return entry.build();
    };
    let value = MessageAttributeValue::builder()
        .data_type("String")
        .string_value(traceparent)
        .build()?;
    entry.message_attributes(TRACEPARENT, value).build()
}

fn dead_letter_entry(
    id: String,
    letter: &DeadLetter,
) -> Result<SendMessageBatchRequestEntry, BuildError> {
    let mut entry = SendMessageBatchRequestEntry::builder()
        .id(id)
        .message_body(&letter.body);
    for attribute in letter.attributes.iter().flatten() {
        let value = MessageAttributeValue::builder()
            .data_type(&attribute.data_type)
            .set_string_value(attribute.text.clone())
            .set_binary_value(attribute.bytes.clone().map(Blob::new))
            .build()?;
        entry = entry.message_attributes(&attribute.name, value);
    }
    entry.build()
}

fn convert_attribute((name, value): (String, MessageAttributeValue)) -> MessageAttribute {
    MessageAttribute {
        name,
        data_type: value.data_type,
        text: value.string_value,
        bytes: value.binary_value.map(Blob::into_inner),
    }
}

/// The trace a message carries, if the queue was asked for it. Anybody who may send can write anything
/// there: what is no trace counts as none.
fn read_traceparent(message: &aws_sdk_sqs::types::Message) -> Option<String> {
    let attributes = message.message_attributes.as_ref()?;
    let value = attributes.get(TRACEPARENT)?;
    let text = value.string_value.as_deref()?;
    is_traceparent(text).then(|| text.to_owned())
}

/// When a message was sent, if the queue was asked for that.
fn sent_time(message: &aws_sdk_sqs::types::Message) -> Option<SystemTime> {
    let attributes = message.attributes.as_ref()?;
    let milliseconds = attributes.get(&MessageSystemAttributeName::SentTimestamp)?;
    let since = Duration::from_millis(milliseconds.parse().ok()?);
    UNIX_EPOCH.checked_add(since)
}

/// A message without a receipt handle could never be deleted: it is left to become visible again.
fn convert_message(
    message: aws_sdk_sqs::types::Message,
    knows_attributes: bool,
) -> Option<ReceivedMessage> {
    let count = message
        .attributes
        .as_ref()
        .and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount))
        .and_then(|text| text.parse().ok());
    Some(ReceivedMessage {
        traceparent: read_traceparent(&message),
        attributes: knows_attributes.then(|| {
            let attributes = message.message_attributes.unwrap_or_default();
            attributes.into_iter().map(convert_attribute).collect()
        }),
        message_id: message.message_id.unwrap_or_default(),
        receipt_handle: message.receipt_handle?,
        body: message.body.unwrap_or_default(),
        // Unknown is taken as a repeat: the careful way.
        receive_count: count.unwrap_or(2),
    })
}

/// Rounded up, so that a lease is never shorter than asked for.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

pub(super) fn queue_error(
    operation: &'static str,
    url: &str,
    error: impl Into<RequestError>,
) -> QueueError {
    let error = error.into();
    let RequestError {
        origin,
        code,
        message,
        status,
    } = error.explain_denial(operation, &sqs_arn(url), None);
    let throttled = code.contains("Throttl") || code.contains("OverLimit");
    let is_unanswered = matches!(origin, ErrorOrigin::Transport | ErrorOrigin::Credentials);
    if is_unanswered || status >= 500 || status == 429 || throttled {
        let message = format!("{code}: {message}");
        QueueError::Unavailable { operation, message }
    } else {
        QueueError::Refused {
            operation,
            code,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), 0);
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(30)), 30);
    }
}
