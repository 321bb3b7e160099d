//! SQS batches as they are written, and what became of each entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::queue::{DeadLetter, EntryOutcome, MessageAttribute, OutgoingMessage, is_about_entry};
use crate::trace::TRACEPARENT;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct BatchRequest<'a> {
    queue_url: &'a str,
    pub(super) entries: Vec<BatchEntry<'a>>,
}

/// What a batch says of one message.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct BatchEntry<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_handle: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    visibility_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_body: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    message_attributes: BTreeMap<&'a str, AttributeValue>,
}

/// An attribute's value, in a request or a response.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttributeValue {
    pub data_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string_value: Option<String>,
    /// In Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary_value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct BatchResponse {
    successful: Option<Vec<DoneEntry>>,
    failed: Option<Vec<FailedEntry>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DoneEntry {
    id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FailedEntry {
    id: String,
    #[serde(default)]
    sender_fault: bool,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: Option<String>,
}

impl<'a> BatchRequest<'a> {
    /// Entries are named by their position.
    pub(super) fn new(queue_url: &'a str, mut entries: Vec<BatchEntry<'a>>) -> Self {
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.id = index.to_string();
        }
        Self { queue_url, entries }
    }
}

impl<'a> BatchEntry<'a> {
    pub(super) fn of_handle(handle: &'a str) -> Self {
        Self {
            receipt_handle: Some(handle),
            ..Self::default()
        }
    }

    pub(super) fn hiding(handle: &'a str, seconds: u64) -> Self {
        Self {
            visibility_timeout: Some(seconds),
            ..Self::of_handle(handle)
        }
    }

    /// With its trace it is 72 bytes longer: ten of the longest stay far below the limit of a batch.
    pub(super) fn of_message(message: &'a OutgoingMessage) -> Self {
        let value = |trace: &String| AttributeValue {
            data_type: "String".into(),
            string_value: Some(trace.clone()),
            binary_value: None,
        };
        let trace = message.traceparent.iter();
        Self {
            message_body: Some(&message.body),
            message_attributes: trace.map(|trace| (TRACEPARENT, value(trace))).collect(),
            ..Self::default()
        }
    }

    pub(super) fn of_letter(letter: &'a DeadLetter) -> Self {
        let pair = |one: &'a MessageAttribute| (&*one.name, one.value.clone());
        Self {
            message_body: Some(&letter.body),
            message_attributes: letter.attributes.iter().map(pair).collect(),
            ..Self::default()
        }
    }
}

impl BatchResponse {
    /// A 200 lists successes and failures; an entry in neither list is not confirmed.
    pub(super) fn outcomes(&self, count: usize) -> Vec<EntryOutcome> {
        let unknown = EntryOutcome::Retry("the answer did not mention it".into());
        let mut outcomes = vec![unknown; count];
        let mut set = |id: &str, outcome| {
            let index = id.parse().ok();
            if let Some(slot) = index.and_then(|index: usize| outcomes.get_mut(index)) {
                *slot = outcome;
            }
        };
        for entry in self.successful.iter().flatten() {
            set(&entry.id, EntryOutcome::Done);
        }
        for entry in self.failed.iter().flatten() {
            set(&entry.id, entry.outcome());
        }
        outcomes
    }
}

impl FailedEntry {
    fn outcome(&self) -> EntryOutcome {
        let message = self.message.as_deref().unwrap_or_default();
        let reason = format!("{}: {message}", self.code);
        if self.sender_fault && is_about_entry(&self.code) {
            EntryOutcome::Refused(reason)
        } else {
            EntryOutcome::Retry(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(count: usize, response: &str) -> Vec<EntryOutcome> {
        let response: BatchResponse = serde_json::from_str(response).unwrap();
        response.outcomes(count)
    }

    #[test]
    fn an_entry_the_answer_forgets_is_not_confirmed() {
        let all = outcomes(
            4,
            r#"{"Successful": [{"Id": "0"}, {"Id": "99"}], "Failed": [
                {"Id": "1", "Code": "Code", "SenderFault": false},
                {"Id": "2", "Code": "InvalidMessageContents", "SenderFault": true}]}"#,
        );
        assert_eq!(all[0], EntryOutcome::Done);
        assert!(matches!(all[1], EntryOutcome::Retry(_)));
        assert!(matches!(all[2], EntryOutcome::Refused(_)));
        assert!(matches!(all[3], EntryOutcome::Retry(_)));
        for empty in ["{}", r#"{"Successful": null, "Failed": null}"#] {
            assert!(matches!(outcomes(1, empty)[0], EntryOutcome::Retry(_)));
        }
    }

    #[test]
    fn only_what_is_known_to_be_about_an_entry_is_final() {
        let of_all = "OptInRequired NeverSeenBefore InvalidSecurity RequestThrottled ThrottlingException KmsThrottled KMS.ThrottlingException OverLimit KmsAccessDenied KmsDisabled AccessDeniedException ServiceUnavailable InternalError";
        for code in of_all.split(' ') {
            let failed = format!(r#"{{"Id": "0", "Code": "{code}", "SenderFault": true}}"#);
            let all = outcomes(1, &format!(r#"{{"Failed": [{failed}]}}"#));
            assert!(matches!(all[0], EntryOutcome::Retry(_)), "{code}");
        }
        let of_one = "InvalidMessageContents MessageTooLong InvalidParameterValue ReceiptHandleIsInvalid AWS.SimpleQueueService.MessageNotInflight";
        for code in of_one.split(' ') {
            assert!(is_about_entry(code), "{code}");
        }
    }
}
