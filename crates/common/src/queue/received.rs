//! A receive as it is written and read.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::queue::batches::AttributeValue;
use crate::queue::{MessageAttribute, ReceivedMessage};
use crate::trace::{TRACEPARENT, is_traceparent};

pub(super) const RECEIVE_COUNT: &str = "ApproximateReceiveCount";

pub(super) const SENT_TIMESTAMP: &str = "SentTimestamp";

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReceiveRequest<'a> {
    pub(super) queue_url: &'a str,
    pub(super) max_number_of_messages: usize,
    pub(super) wait_time_seconds: u64,
    pub(super) visibility_timeout: u64,
    pub(super) message_system_attribute_names: [&'static str; 2],
    /// All, as a dead letter takes them along.
    pub(super) message_attribute_names: [&'static str; 1],
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ReceiveResponse {
    pub(super) messages: Option<Vec<ReceivedEntry>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ReceivedEntry {
    message_id: Option<String>,
    receipt_handle: Option<String>,
    body: Option<String>,
    attributes: Option<HashMap<String, String>>,
    message_attributes: Option<HashMap<String, AttributeValue>>,
}

impl ReceivedEntry {
    /// When it was sent.
    pub(super) fn sent_time(&self) -> Option<SystemTime> {
        let milliseconds = self.attribute(SENT_TIMESTAMP)?;
        let since = Duration::from_millis(milliseconds.parse().ok()?);
        UNIX_EPOCH.checked_add(since)
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        Some(self.attributes.as_ref()?.get(name)?)
    }

    /// The trace it carries. Anybody who may send can write anything there: what is no trace counts as none.
    fn traceparent(&self) -> Option<String> {
        let value = self.message_attributes.as_ref()?.get(TRACEPARENT)?;
        let text = value.string_value.as_deref()?;
        is_traceparent(text).then(|| text.to_owned())
    }

    /// A message without a receipt handle could never be deleted: it is left to become visible again.
    pub(super) fn into_message(self) -> Option<ReceivedMessage> {
        let count = self.attribute(RECEIVE_COUNT);
        let count = count.and_then(|text| text.parse().ok());
        let convert = |(name, value)| MessageAttribute { name, value };
        let (traceparent, sent_at) = (self.traceparent(), self.sent_time());
        let attributes = self.message_attributes.unwrap_or_default().into_iter();
        Some(ReceivedMessage {
            traceparent,
            sent_at,
            // Unknown is taken as a repeat: the careful way.
            receive_count: count.unwrap_or(2),
            attributes: attributes.map(convert).collect(),
            message_id: self.message_id.unwrap_or_default(),
            receipt_handle: self.receipt_handle?,
            body: self.body.unwrap_or_default(),
        })
    }
}
