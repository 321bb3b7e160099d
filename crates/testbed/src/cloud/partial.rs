//! Batches of which a part fails.

use axum::body::{Body, Bytes};
use axum::http::Request;
use serde_json::{Value, json};

use super::backend::BackendCall;
use super::operation::CloudOperation;
use super::response::{self, CloudResponse};

/// A batch divided into entries that are performed and entries that fail.
pub(super) struct PartialBatch {
    /// What is left of the operation, if anything is.
    pub(super) remaining: Option<CloudOperation>,
    failed: Vec<Value>,
}

impl PartialBatch {
    /// Every other entry fails, beginning with the first.
    pub(super) fn split(operation: &CloudOperation, code: &str, sender_fault: bool) -> Self {
        let mut request: Value = serde_json::from_slice(&operation.body).unwrap_or_default();
        let entries = request["Entries"].take();
        let entries = entries.as_array().cloned().unwrap_or_default();
        let mut rest = Vec::new();
        let mut failed = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            if index % 2 == 0 {
                failed.push(response::failed_entry(&entry, code, sender_fault));
            } else {
                rest.push(entry);
            }
        }
        let is_any_left = !rest.is_empty();
        request["Entries"] = Value::Array(rest);
        let body = Bytes::from(request.to_string());
        Self {
            remaining: is_any_left.then(|| operation.with_body(body)),
            failed,
        }
    }

    /// The call with the body of what is left.
    pub(super) fn remaining_call(rest: &CloudOperation, call: BackendCall) -> BackendCall {
        let (mut parts, _) = call.request.into_parts();
        parts.headers.remove("content-length");
        BackendCall {
            peer: call.peer,
            request: Request::from_parts(parts, Body::from(rest.body.clone())),
        }
    }

    /// The answer to the whole batch, given the answer to what was left of it.
    pub(super) async fn merge_response(self, given: Option<CloudResponse>) -> CloudResponse {
        let mut response = match given {
            None => json!({ "Successful": [], "Failed": [] }),
            Some(given) if !given.status().is_success() => return given,
            Some(given) => {
                let body = response::collect_body(given.into_body()).await;
                serde_json::from_slice(&body).unwrap_or_else(|_| json!({}))
            }
        };
        match response["Failed"].as_array_mut() {
            Some(failed) => failed.extend(self.failed),
            None => response["Failed"] = Value::Array(self.failed),
        }
        response::sqs_response(200, &response)
    }
}
