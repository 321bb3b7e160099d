//! The queue on SQS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::timeout;

use crate::aws::signer::TIME_SKEWED;
use crate::aws::{ErrorOrigin, RequestError, sqs_client};
use crate::connections::RenewedConnections;
use crate::permissions::sqs_arn;
use crate::queue::attributes::parse_attributes;
use crate::queue::batches::{BatchEntry, BatchRequest, BatchResponse};
use crate::queue::received::{
    RECEIVE_COUNT, ReceiveRequest, ReceiveResponse, ReceivedEntry, SENT_TIMESTAMP,
};
use crate::queue::requests::QueueRequests;
use crate::queue::{
    DeadLetter, EntryOutcome, LONG_POLL_WAIT, MAX_BATCH_ENTRIES, MISSING_QUEUE_CODES, MessageQueue,
    OutgoingMessage, PROBE_HANDLE, QueueAttributes, QueueError, ReceivedMessage,
};

/// When a call that does not wait for messages is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);

const RECEIVE_TIMEOUT: Duration = LONG_POLL_WAIT.saturating_add(Duration::from_secs(5));

#[derive(Debug, Clone)]
pub struct SqsQueue {
    /// The SDK's, for what is not asked for each image.
    pub(super) client: Client,
    requests: Arc<QueueRequests>,
    pub(crate) url: String,
    age_histogram: Option<Histogram>,
    /// None where it is not known.
    dead_letter_url: Arc<Mutex<Option<String>>>,
}

impl SqsQueue {
    /// The queue with this URL. No request is sent again by itself.
    pub fn new(sdk: &SdkConfig, url: impl Into<String>) -> Self {
        let connector = SharedHttpConnector::new(RenewedConnections::new());
        Self::with_connector(sdk, url, connector)
    }

    /// The same with HTTP connections of the caller's.
    pub(super) fn with_connector(
        sdk: &SdkConfig,
        url: impl Into<String>,
        connector: SharedHttpConnector,
    ) -> Self {
        Self {
            client: sqs_client(sdk, connector.clone(), RECEIVE_TIMEOUT),
            requests: Arc::new(QueueRequests::new(sdk, connector)),
            url: url.into(),
            age_histogram: None,
            dead_letter_url: Arc::default(),
        }
    }

    /// Another queue of the same account.
    pub(super) fn sibling(&self, url: String) -> Self {
        Self {
            url,
            age_histogram: None,
            dead_letter_url: Arc::default(),
            ..self.clone()
        }
    }

    /// Knows where dead letters go.
    #[must_use]
    pub fn with_dead_letters(self, attributes: &QueueAttributes) -> Self {
        let url = self.dead_letter_url_of(attributes);
        Self {
            dead_letter_url: Arc::new(Mutex::new(url)),
            ..self
        }
    }

    async fn send_letters(
        &self,
        url: &str,
        letters: &[DeadLetter],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let entries = letters.iter().map(BatchEntry::of_letter).collect();
        self.send_entries("SendMessageBatch", url, entries).await
    }

    /// The redrive policy may name another queue by now.
    async fn find_other_dead_letters(&self, missing: Option<&str>) -> Option<String> {
        let attributes = self.queue_attributes().await.ok()?;
        let found = self.dead_letter_url_of(&attributes);
        let found = found.filter(|found| missing != Some(found.as_str()))?;
        *self.dead_letter_url.lock() = Some(found.clone());
        Some(found)
    }

    /// Counts how old each message is when it is received, by the queue's clock and ours.
    #[must_use]
    pub fn with_age_histogram(self, ages: Histogram) -> Self {
        Self {
            age_histogram: Some(ages),
            ..self
        }
    }

    /// Deletes no message: the handle is none's. For the right to do so.
    pub(crate) async fn probe_delete(&self) -> Result<(), QueueError> {
        let request = self.client.delete_message().queue_url(&self.url);
        let request = request.receipt_handle(PROBE_HANDLE).send();
        respond("DeleteMessage", &self.url, request).await.map(drop)
    }

    async fn send_entries(
        &self,
        operation: &'static str,
        queue_url: &str,
        entries: Vec<BatchEntry<'_>>,
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let request = BatchRequest::new(queue_url, entries);
        let sent = self.requests.send(operation, &request, CALL_TIMEOUT).await;
        let response: BatchResponse =
            sent.map_err(|error| queue_error(operation, queue_url, error))?;
        Ok(response.outcomes(request.entries.len()))
    }

    fn receive_request(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> ReceiveRequest<'_> {
        ReceiveRequest {
            queue_url: &self.url,
            max_number_of_messages: most.clamp(1, MAX_BATCH_ENTRIES),
            wait_time_seconds: whole_seconds(wait),
            visibility_timeout: whole_seconds(visibility),
            message_system_attribute_names: [RECEIVE_COUNT, SENT_TIMESTAMP],
            message_attribute_names: ["All"],
        }
    }

    fn record_age(&self, message: &ReceivedEntry) {
        if let (Some(ages), Some(sent)) = (&self.age_histogram, message.sent_time()) {
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
        let entries = messages.iter().map(BatchEntry::of_message).collect();
        self.send_entries("SendMessageBatch", &self.url, entries)
            .await
    }

    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        let (operation, limit) = ("ReceiveMessage", RECEIVE_TIMEOUT);
        let request = self.receive_request(most, wait, visibility);
        let sent = self.requests.send(operation, &request, limit).await;
        let response: ReceiveResponse =
            sent.map_err(|error| queue_error(operation, &self.url, error))?;
        let messages = response.messages.unwrap_or_default();
        for message in &messages {
            self.record_age(message);
        }
        let messages = messages.into_iter();
        Ok(messages.filter_map(ReceivedEntry::into_message).collect())
    }

    async fn delete_batch(
        &self,
        receipt_handles: &[String],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let handles = receipt_handles.iter();
        let entries = handles.map(|handle| BatchEntry::of_handle(handle));
        self.send_entries("DeleteMessageBatch", &self.url, entries.collect())
            .await
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let entries = changes
            .iter()
            .map(|(handle, hidden)| BatchEntry::hiding(handle, whole_seconds(*hidden)));
        let operation = "ChangeMessageVisibilityBatch";
        self.send_entries(operation, &self.url, entries.collect())
            .await
    }

    async fn send_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let known = self.dead_letter_url.lock().clone();
        let sent = match &known {
            Some(url) => self.send_letters(url, letters).await,
            None => Err(QueueError::Refused {
                operation: "SendMessageBatch",
                code: "QueueDoesNotExist".into(),
                message: "the redrive policy names no queue".into(),
            }),
        };
        match sent {
            Err(error) if error.is_about_missing_queue() => {
                match self.find_other_dead_letters(known.as_deref()).await {
                    Some(other) => self.send_letters(&other, letters).await,
                    None => Err(error),
                }
            }
            sent => sent,
        }
    }

    /// All that the service knows: one that lacks an attribute may refuse a request that names it.
    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        let request = self
            .client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::All)
            .send();
        let operation = "GetQueueAttributes";
        let output = respond(operation, &self.url, request).await?;
        let parsed = parse_attributes(&output.attributes.unwrap_or_default());
        parsed.ok_or_else(|| QueueError::Unavailable {
            operation,
            message: "the answer lacks the number of messages".into(),
        })
    }
}

/// What the queue responds to a call of the SDK's, or that it does not.
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

/// Rounded up, so that a lease is never shorter than asked for.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
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
    // No right is missing, and clocks are set.
    let is_skewed = code == TIME_SKEWED;
    let is_unanswered = matches!(origin, ErrorOrigin::Transport | ErrorOrigin::Credentials);
    if is_unanswered || status >= 500 || status == 429 || throttled || is_skewed {
        let message = format!("{code}: {message}");
        QueueError::Unavailable { operation, message }
    } else {
        let is_missing = MISSING_QUEUE_CODES.iter().any(|one| code.contains(one));
        // The service does not say which.
        let missing = is_missing.then(|| format!("there is no queue '{url}'"));
        QueueError::Refused {
            operation,
            code,
            message: missing.unwrap_or(message),
        }
    }
}
