//! Answers in the forms of S3 and SQS.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use futures::StreamExt;
use serde_json::{Value, json};

use super::operation::{CloudOperation, CloudService};

pub(super) type CloudResponse = Response<Body>;

/// An error as the operation's service words it.
pub(super) fn error_response(
    operation: &CloudOperation,
    status: u16,
    code: &str,
    message: &str,
) -> CloudResponse {
    match operation.service {
        CloudService::S3 => s3_error_response(status, code, message, ""),
        CloudService::Sqs => sqs_error_response(status, code, message),
    }
}

/// An S3 error; `details` are further elements of the document.
pub(super) fn s3_error_response(
    status: u16,
    code: &str,
    message: &str,
    details: &str,
) -> CloudResponse {
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{}</Message>\
         {details}<RequestId>0000000000000000</RequestId><HostId>testbed</HostId></Error>",
        escape_xml(code),
        escape_xml(message)
    );
    build_response(status, "application/xml", document)
}

/// An S3 answer.
pub(super) fn s3_response(document: &str) -> CloudResponse {
    let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    build_response(200, "application/xml", format!("{head}{document}"))
}

fn sqs_error_response(status: u16, code: &str, message: &str) -> CloudResponse {
    let fault = if status < 500 { "Sender" } else { "Receiver" };
    let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message });
    let mut response = sqs_response(status, &body);
    if let Ok(value) = format!("{code};{fault}").parse() {
        response.headers_mut().insert("x-amzn-query-error", value);
    }
    response
}

/// A batch's answer that reports each of its entries as failed.
pub(super) fn failed_entries(request: &[u8], code: &str, sender_fault: bool) -> CloudResponse {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let entries = request["Entries"].as_array().cloned().unwrap_or_default();
    let failed: Vec<Value> = entries
        .iter()
        .map(|entry| failed_entry(entry, code, sender_fault))
        .collect();
    sqs_response(200, &json!({ "Successful": [], "Failed": failed }))
}

pub(super) fn failed_entry(entry: &Value, code: &str, sender_fault: bool) -> Value {
    json!({ "Id": entry["Id"], "SenderFault": sender_fault, "Code": code, "Message": "injected" })
}

pub(super) fn sqs_response(status: u16, body: &Value) -> CloudResponse {
    build_response(status, "application/x-amz-json-1.0", body.to_string())
}

pub(super) fn empty_response() -> CloudResponse {
    Response::new(Body::empty())
}

/// The first half of the answer, under the length of the whole; then the connection breaks.
pub(super) async fn truncate_body(whole: CloudResponse) -> CloudResponse {
    let (mut parts, body) = whole.into_parts();
    let bytes = collect_body(body).await;
    parts.headers.insert("content-length", bytes.len().into());
    let half = bytes.slice(..bytes.len() / 2);
    let broken = futures::stream::once(async {
        // Time for the first half to leave before the connection closes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("injected end of the connection"))
    });
    let body = futures::stream::iter([Ok(half)]).chain(broken);
    Response::from_parts(parts, Body::from_stream(body))
}

/// The head alone.
pub(super) fn stall_body(whole: CloudResponse) -> CloudResponse {
    let never = futures::stream::pending::<std::io::Result<Bytes>>();
    whole.map(|_| Body::from_stream(never))
}

pub(super) async fn collect_body(body: Body) -> Bytes {
    axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default()
}

fn build_response(status: u16, content_type: &'static str, body: String) -> CloudResponse {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        axum::http::HeaderValue::from_static(content_type),
    );
    response
}

fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
