//! How often messages were received, by the answers to `ReceiveMessage`.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::Response;
use serde_json::Value;

use super::operation::CloudOperation;
use super::response::{self, CloudResponse};

/// The highest receive count of any message so far; only of receives that ask for the count.
#[derive(Debug, Default)]
pub(super) struct ReceiveCounts(AtomicU64);

impl ReceiveCounts {
    /// Takes note of an answer and passes it on.
    pub(super) async fn record_response(
        &self,
        operation: &CloudOperation,
        given: CloudResponse,
    ) -> CloudResponse {
        if operation.name != "ReceiveMessage" {
            return given;
        }
        let (parts, body) = given.into_parts();
        let body = response::collect_body(body).await;
        if let Ok(response) = serde_json::from_slice::<Value>(&body) {
            self.0
                .fetch_max(highest_in_response(&response), Ordering::Relaxed);
        }
        Response::from_parts(parts, Body::from(body))
    }

    pub(super) fn highest_count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn highest_in_response(response: &Value) -> u64 {
    let messages = response["Messages"].as_array().into_iter().flatten();
    let counts = messages.filter_map(|message| {
        let count = message["Attributes"]["ApproximateReceiveCount"].as_str()?;
        count.parse().ok()
    });
    counts.max().unwrap_or(0)
}
