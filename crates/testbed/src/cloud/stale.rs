//! Deletes with a stale receipt handle: on SQS they succeed and delete nothing, while the backend
//! reports them as failed.

use axum::body::Body;
use axum::http::Response;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::operation::Operation;

const INVALID: &str = "ReceiptHandleIsInvalid";

/// The backend's answer to a delete, as SQS would word it.
pub(super) async fn forgive(operation: &Operation, given: Answer) -> Answer {
    let request: Value = serde_json::from_slice(&operation.body).unwrap_or_default();
    match operation.name.as_str() {
        "DeleteMessage" => forgive_one(&request, given).await,
        "DeleteMessageBatch" => forgive_batch(&request, given).await,
        _ => given,
    }
}

async fn forgive_one(request: &Value, given: Answer) -> Answer {
    if given.status().is_success() || !was_issued(&request["ReceiptHandle"]) {
        return given;
    }
    let (parts, body) = given.into_parts();
    let body = answer::collect(body).await;
    if String::from_utf8_lossy(&body).contains(INVALID) {
        return answer::sqs_answer(200, &json!({}));
    }
    Response::from_parts(parts, Body::from(body))
}

async fn forgive_batch(request: &Value, given: Answer) -> Answer {
    let (mut parts, body) = given.into_parts();
    let body = answer::collect(body).await;
    let Ok(mut told) = serde_json::from_slice::<Value>(&body) else {
        return Response::from_parts(parts, Body::from(body));
    };
    move_stale(request, &mut told);
    parts.headers.remove("content-length");
    Response::from_parts(parts, Body::from(told.to_string()))
}

/// Moves the stale entries from `Failed` to `Successful`.
fn move_stale(request: &Value, told: &mut Value) {
    let Some(failed) = told["Failed"].as_array_mut() else {
        return;
    };
    let stale: Vec<Value> = failed
        .extract_if(.., |entry| is_stale(request, entry))
        .collect();
    if let Some(successful) = told["Successful"].as_array_mut() {
        successful.extend(stale.iter().map(|entry| json!({ "Id": entry["Id"] })));
    }
}

fn is_stale(request: &Value, failed: &Value) -> bool {
    let mut entries = request["Entries"].as_array().into_iter().flatten();
    let sent = entries.find(|entry| entry["Id"] == failed["Id"]);
    failed["Code"] == INVALID && sent.is_some_and(|entry| was_issued(&entry["ReceiptHandle"]))
}

/// Whether the backend made this handle: its handles are UUIDs.
fn was_issued(handle: &Value) -> bool {
    let handle = handle.as_str().unwrap_or_default();
    handle.len() == 36
        && handle
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}
