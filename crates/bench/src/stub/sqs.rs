//! The answers of SQS, in its JSON protocol.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{StubResponse, StubServer, build_response, queue};

const JSON: &str = "application/x-amz-json-1.0";

/// Between two looks whether an empty queue still is.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReceiveRequest {
    #[serde(default)]
    max_number_of_messages: usize,
    #[serde(default)]
    wait_time_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchRequest<'a> {
    #[serde(borrow)]
    entries: Vec<BatchRequestEntry<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchRequestEntry<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    receipt_handle: Cow<'a, str>,
    visibility_timeout: Option<u64>,
}

pub(super) async fn handle_sqs_request(
    stub: &StubServer,
    operation: &str,
    body: Bytes,
) -> StubResponse {
    let text = match operation {
        "ReceiveMessage" => receive(stub, &body).await,
        "GetQueueAttributes" => Some(render_attributes(stub)),
        _ => handle_batch(stub, operation, &body),
    };
    match text {
        Some(text) => build_response(StatusCode::OK, JSON, text),
        None => build_response(
            StatusCode::BAD_REQUEST,
            JSON,
            r#"{"__type":"com.amazonaws.sqs#InvalidParameterValue","message":"not understood"}"#,
        ),
    }
}

/// An empty answer only after the wait, as a long poll does.
async fn receive(stub: &StubServer, body: &[u8]) -> Option<String> {
    let asked: ReceiveRequest = serde_json::from_slice(body).ok()?;
    let most = asked.max_number_of_messages.clamp(1, 10);
    let deadline = Instant::now() + Duration::from_secs(asked.wait_time_seconds);
    loop {
        let taken = stub.lock().queue.take_messages(most);
        if !taken.is_empty() || Instant::now() >= deadline {
            let count = taken.len() as u64;
            stub.lock().counts.record_request("ReceiveMessage", count);
            return Some(render_messages(&taken));
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn render_messages(taken: &[(u64, u32)]) -> String {
    let message = |(id, count): &(u64, u32)| {
        let handle = queue::receipt_handle(*id);
        format!(
            r#"{{"MessageId":"c2f5a0b1-7d3e-4a68-9b1c-{id:012}","ReceiptHandle":"{handle}","MD5OfBody":"9b2cf535f27731c974343645a3985328","Body":"{{\"id\":\"{id}\",\"path\":\"image/avatar-{id}.png\"}}","Attributes":{{"ApproximateReceiveCount":"{count}"}}}}"#
        )
    };
    let messages: Vec<String> = taken.iter().map(message).collect();
    format!(r#"{{"Messages":[{}]}}"#, messages.join(","))
}

fn handle_batch(stub: &StubServer, operation: &str, body: &[u8]) -> Option<String> {
    let batch: BatchRequest = serde_json::from_slice(body).ok()?;
    let mut state = stub.lock();
    state
        .counts
        .record_request(operation, batch.entries.len() as u64);
    for entry in &batch.entries {
        match operation {
            "DeleteMessageBatch" => state.queue.delete_message(&entry.receipt_handle),
            "ChangeMessageVisibilityBatch" if entry.visibility_timeout == Some(0) => {
                state.queue.return_message(&entry.receipt_handle);
            }
            "ChangeMessageVisibilityBatch" => {
                let seconds = entry.visibility_timeout.unwrap_or_default();
                let time = Duration::from_secs(seconds);
                state.queue.hide_message(&entry.receipt_handle, time);
            }
            _ => {}
        }
    }
    drop(state);
    Some(render_batch_response(operation, &batch.entries))
}

fn render_batch_response(operation: &str, entries: &[BatchRequestEntry<'_>]) -> String {
    let more = if operation == "SendMessageBatch" {
        r#","MessageId":"c2f5a0b1-7d3e-4a68-9b1c-0123456789ab","MD5OfMessageBody":"9b2cf535f27731c974343645a3985328""#
    } else {
        ""
    };
    let entries = entries.iter();
    let entries = entries.map(|entry| format!(r#"{{"Id":"{}"{more}}}"#, entry.id));
    let entries: Vec<String> = entries.collect();
    format!(r#"{{"Successful":[{}],"Failed":[]}}"#, entries.join(","))
}

fn render_attributes(stub: &StubServer) -> String {
    let mut state = stub.lock();
    state.counts.record_request("GetQueueAttributes", 1);
    let (visible, in_flight) = state.queue.backlog();
    format!(
        r#"{{"Attributes":{{"ApproximateNumberOfMessages":"{visible}","ApproximateNumberOfMessagesNotVisible":"{in_flight}","ApproximateNumberOfMessagesDelayed":"0","RedrivePolicy":"{{\"maxReceiveCount\":5,\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:images-dead\"}}"}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub(rows: std::ops::Range<u64>) -> StubServer {
        let stub = StubServer::default();
        stub.lock().queue = queue::StubQueue::from_rows(rows, 0);
        stub
    }

    #[tokio::test(start_paused = true)]
    async fn a_received_message_can_be_deleted() {
        let stub = stub(7..8);
        let asked = br#"{"QueueUrl":"q","MaxNumberOfMessages":10,"WaitTimeSeconds":20}"#;
        let text = receive(&stub, asked).await.unwrap();
        let response: serde_json::Value = serde_json::from_str(&text).unwrap();
        let message = &response["Messages"][0];
        assert_eq!(message["Body"], r#"{"id":"7","path":"image/avatar-7.png"}"#);
        let delete = serde_json::json!({"Entries": [{"Id": "0", "ReceiptHandle": message["ReceiptHandle"]}]});
        let deleted = handle_batch(&stub, "DeleteMessageBatch", delete.to_string().as_bytes());
        assert_eq!(
            deleted.unwrap(),
            r#"{"Successful":[{"Id":"0"}],"Failed":[]}"#
        );
        assert_eq!(stub.lock().queue.deleted(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_responds_when_the_wait_is_over() {
        let started = Instant::now();
        let text = receive(&stub(0..0), br#"{"WaitTimeSeconds":20}"#).await;
        assert_eq!(text.unwrap(), r#"{"Messages":[]}"#);
        assert!(started.elapsed() >= Duration::from_secs(20));
    }

    #[tokio::test]
    async fn requests_are_counted_with_what_they_are_about() {
        let stub = stub(0..0);
        let sent = br#"{"Entries":[{"Id":"0","MessageBody":"a"},{"Id":"1","MessageBody":"b"}]}"#;
        assert!(handle_batch(&stub, "SendMessageBatch", sent).is_some());
        let meter = stub.lock().counts.meter_for("SendMessageBatch");
        assert_eq!((meter.requests, meter.items), (1, 2));
        assert!(handle_batch(&stub, "SendMessageBatch", b"nonsense").is_none());
    }
}
