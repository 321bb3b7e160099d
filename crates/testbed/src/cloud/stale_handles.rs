//! Deletes with a stale receipt handle: on SQS they succeed and delete nothing, while the backend
//! reports them as failed.

use axum::body::Body;
use axum::http::Response;
use serde_json::{Value, json};

use super::operation::CloudOperation;
use super::response::{self, CloudResponse};

const INVALID_HANDLE_CODE: &str = "ReceiptHandleIsInvalid";

/// The backend's answer to a delete, as SQS would word it.
pub(super) async fn accept_stale_deletes(
    operation: &CloudOperation,
    given: CloudResponse,
) -> CloudResponse {
    let request: Value = serde_json::from_slice(&operation.body).unwrap_or_default();
    match operation.name.as_str() {
        "DeleteMessage" => accept_stale_delete(&request, given).await,
        "DeleteMessageBatch" => accept_stale_batch(&request, given).await,
        _ => given,
    }
}

async fn accept_stale_delete(request: &Value, given: CloudResponse) -> CloudResponse {
    if given.status().is_success() || !is_issued_handle(&request["ReceiptHandle"]) {
        return given;
    }
    let (parts, body) = given.into_parts();
    let body = response::collect_body(body).await;
    if String::from_utf8_lossy(&body).contains(INVALID_HANDLE_CODE) {
        return response::sqs_response(200, &json!({}));
    }
    Response::from_parts(parts, Body::from(body))
}

async fn accept_stale_batch(request: &Value, given: CloudResponse) -> CloudResponse {
    let (mut parts, body) = given.into_parts();
    let body = response::collect_body(body).await;
    let Ok(mut response) = serde_json::from_slice::<Value>(&body) else {
        return Response::from_parts(parts, Body::from(body));
    };
    move_stale_entries(request, &mut response);
    parts.headers.remove("content-length");
    Response::from_parts(parts, Body::from(response.to_string()))
}

/// Moves the stale entries from `Failed` to `Successful`.
fn move_stale_entries(request: &Value, response: &mut Value) {
    let Some(failed) = response["Failed"].as_array_mut() else {
        return;
    };
    let stale: Vec<Value> = failed
        .extract_if(.., |entry| is_stale_entry(request, entry))
        .collect();
    if let Some(successful) = response["Successful"].as_array_mut() {
        successful.extend(stale.iter().map(|entry| json!({ "Id": entry["Id"] })));
    }
}

fn is_stale_entry(request: &Value, failed: &Value) -> bool {
    let mut entries = request["Entries"].as_array().into_iter().flatten();
    let sent = entries.find(|entry| entry["Id"] == failed["Id"]);
    failed["Code"] == INVALID_HANDLE_CODE
        && sent.is_some_and(|entry| is_issued_handle(&entry["ReceiptHandle"]))
}

/// Whether the backend made this handle: its handles are UUIDs.
fn is_issued_handle(handle: &Value) -> bool {
    let handle = handle.as_str().unwrap_or_default();
    handle.len() == 36
        && handle
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}
