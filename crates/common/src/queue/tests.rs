//! Requests and responses held to the SDK's own, and to a server that checks signatures for itself.

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    MessageAttributeValue, MessageSystemAttributeName, SendMessageBatchRequestEntry,
};
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_types::region::Region;
use aws_types::sdk_config::Builder;
use serde_json::Value;

use super::sqs::{SqsQueue, queue_error};
use super::{DeadLetter, MessageQueue, OutgoingMessage, QueueAttributes, QueueError};
use crate::aws::recording_server::{Request, Server};
use crate::aws::signature::is_signed;
use crate::exit;
use crate::object_store::s3::fixture::sdk;
use crate::preflight::check_queue;
use crate::trace::TRACEPARENT;

const URL: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/images";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const RECEIVED: &str = r#"{"Messages": [{"MessageId": "m", "ReceiptHandle": "h", "Body": "{\"key\":\"\u00fc\"}",
    "MD5OfBody": "0", "Attributes": {"ApproximateReceiveCount": "3", "SentTimestamp": "1"},
    "MessageAttributes": {"a": {"DataType": "Binary", "BinaryValue": "AAE="}}}, {"Body": "no handle"}]}"#;

fn queue_at(server: &Server, sdk: &SdkConfig) -> SqsQueue {
    SqsQueue::with_connector(sdk, URL, SharedHttpConnector::new(server.clone()))
}

fn server() -> (Server, SqsQueue) {
    let server = Server::new(SystemTime::now());
    server.respond_with(200, "{}");
    let queue = queue_at(&server, &sdk().build());
    (server, queue)
}

/// Whatever the order of the names in the body.
fn comparable(request: Request) -> (Request, Value) {
    let body = serde_json::from_slice(&request.body).unwrap();
    let mut request = request.comparable();
    request.body.clear();
    (request, body)
}

fn hold_to_the_sdk(ours: Request, sdks: Request) {
    assert!(ours.is_ours() && !sdks.is_ours());
    assert!(is_signed(&sdks), "the check itself: {sdks:?}");
    assert!(is_signed(&ours), "{ours:?}");
    assert_eq!(comparable(ours), comparable(sdks));
}

#[tokio::test]
async fn deletes_and_leases_are_the_sdks() {
    let (server, queue) = server();
    let handles = ["a\"b".to_owned(), "ü/+=".to_owned()];
    queue.delete_batch(&handles).await.unwrap();
    let ours = server.last();
    let entry = |(id, handle): (usize, &String)| {
        let entry = DeleteMessageBatchRequestEntry::builder().id(id.to_string());
        entry.receipt_handle(handle).build().unwrap()
    };
    let entries = handles.iter().enumerate().map(entry).collect();
    let request = queue.client.delete_message_batch().queue_url(URL);
    // The SDK wants lists that may be missing.
    drop(request.set_entries(Some(entries)).send().await);
    hold_to_the_sdk(ours, server.last());

    let hidden = handles.map(|handle| (handle, Duration::from_secs(7)));
    queue.change_visibility(&hidden).await.unwrap();
    let ours = server.last();
    let entry = |(id, (handle, _)): (usize, &(String, Duration))| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id.to_string());
        let entry = entry.receipt_handle(handle).visibility_timeout(7);
        entry.build().unwrap()
    };
    let entries = hidden.iter().enumerate().map(entry).collect();
    let request = queue.client.change_message_visibility_batch();
    let request = request.queue_url(URL).set_entries(Some(entries));
    drop(request.send().await);
    hold_to_the_sdk(ours, server.last());
}

#[tokio::test]
async fn messages_are_sent_as_the_sdk_does() {
    let (server, queue) = server();
    let messages = [None, Some(TRACE.to_owned())].map(|traceparent| OutgoingMessage {
        body: "{\"key\":\"ü\n\"}".into(),
        traceparent,
    });
    queue.send_batch(&messages).await.unwrap();
    let ours = server.last();
    let entry = |(id, message): (usize, &OutgoingMessage)| {
        let value = |trace: &String| {
            let value = MessageAttributeValue::builder().data_type("String");
            value.string_value(trace).build().unwrap()
        };
        let traces = message.traceparent.iter();
        let attributes = traces.map(|trace| (TRACEPARENT.to_owned(), value(trace)));
        let attributes = message.traceparent.as_ref().map(|_| attributes.collect());
        let entry = SendMessageBatchRequestEntry::builder().id(id.to_string());
        let entry = entry.message_body(&message.body);
        entry.set_message_attributes(attributes).build().unwrap()
    };
    let entries = messages.iter().enumerate().map(entry).collect();
    let request = queue.client.send_message_batch().queue_url(URL);
    drop(request.set_entries(Some(entries)).send().await);
    hold_to_the_sdk(ours, server.last());
}

#[tokio::test]
async fn a_receive_is_the_sdks_whatever_the_address() {
    let variants: [fn(Builder) -> Builder; 5] = [
        |sdk| sdk,
        |sdk| sdk.use_fips(true),
        |sdk| sdk.use_dual_stack(true),
        |sdk| sdk.region(Region::new("cn-north-1")),
        |sdk| sdk.endpoint_url("http://127.0.0.1:9324"),
    ];
    for variant in variants {
        let server = Server::new(SystemTime::now());
        server.respond_with(200, "{}");
        let queue = queue_at(&server, &variant(sdk()).build());
        let (wait, visibility) = (Duration::ZERO, Duration::from_millis(59_001));
        queue.receive_batch(99, wait, visibility).await.unwrap();
        let ours = server.last();
        let count = MessageSystemAttributeName::ApproximateReceiveCount;
        let request = queue.client.receive_message().queue_url(URL);
        let request = request.max_number_of_messages(10).wait_time_seconds(0);
        let request = request
            .visibility_timeout(60)
            .message_attribute_names("All");
        let request = request.message_system_attribute_names(count);
        let request =
            request.message_system_attribute_names(MessageSystemAttributeName::SentTimestamp);
        request.send().await.unwrap();
        hold_to_the_sdk(ours, server.last());
    }
}

#[tokio::test]
async fn what_is_received_is_read() {
    let (server, queue) = server();
    server.respond_with(200, RECEIVED);
    let receive = async || {
        queue
            .receive_batch(10, Duration::ZERO, Duration::ZERO)
            .await
    };
    let received = receive().await.unwrap();
    let [message] = &*received else {
        panic!("{received:?}");
    };
    let texts = [&message.message_id, &message.receipt_handle, &message.body];
    assert_eq!(texts, ["m", "h", "{\"key\":\"ü\"}"]);
    assert_eq!(message.receive_count, 3);
    let sent = SystemTime::UNIX_EPOCH + Duration::from_millis(1);
    assert_eq!(message.sent_at, Some(sent));
    for nothing in [
        "{}",
        r#"{"Messages": []}"#,
        r#"{"Messages": null, "More": 1}"#,
    ] {
        server.respond_with(200, nothing);
        assert_eq!(receive().await.unwrap(), [], "{nothing}");
    }
    for foreign in ["", "<html>"] {
        server.respond_with(200, foreign);
        let error = receive().await.unwrap_err();
        assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
    }
}

/// What a message carries besides comes back to the letter when it becomes a dead letter.
#[tokio::test]
async fn a_dead_letter_keeps_what_it_carries() {
    let (server, queue) = server();
    let policy = QueueAttributes {
        dead_letter_arn: Some("arn:aws:sqs:eu-central-1:123456789012:dead".into()),
        ..QueueAttributes::default()
    };
    let queue = queue.with_dead_letters(&policy);
    server.respond_with(200, RECEIVED);
    let received = queue.receive_batch(1, Duration::ZERO, Duration::ZERO).await;
    let letter = DeadLetter {
        body: "body".into(),
        attributes: received.unwrap().remove(0).attributes,
    };
    server.respond_with(200, "{}");
    queue.send_dead_letters(&[letter]).await.unwrap();
    let sent: Value = serde_json::from_slice(&server.last().body).unwrap();
    let expected = serde_json::json!({"a": {"DataType": "Binary", "BinaryValue": "AAE="}});
    assert_eq!(sent["Entries"][0]["MessageAttributes"], expected);
    assert!(sent["QueueUrl"].as_str().unwrap().ends_with("/dead"));
}

#[tokio::test]
async fn where_dead_letters_go_is_looked_up_anew_when_the_queue_is_gone() {
    let (server, queue) = server();
    let named = |name: &str| QueueAttributes {
        dead_letter_arn: Some(format!("arn:aws:sqs:eu-central-1:123456789012:{name}")),
        ..QueueAttributes::default()
    };
    let queue = queue.with_dead_letters(&named("dead"));
    let gone = r#"{"__type": "com.amazonaws.sqs#QueueDoesNotExist"}"#;
    let other = r#"{"Attributes": {"ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesNotVisible": "0",
        "RedrivePolicy": "{\"maxReceiveCount\":5,\"deadLetterTargetArn\":\"arn:aws:sqs:eu-central-1:123456789012:other\"}"}}"#;
    server.respond_first_with(&[(400, gone), (200, other)]);
    let letters = [DeadLetter {
        body: "body".into(),
        attributes: Vec::new(),
    }];
    for requests in [3, 4] {
        queue.send_dead_letters(&letters).await.unwrap();
        let sent: Value = serde_json::from_slice(&server.last().body).unwrap();
        assert!(sent["QueueUrl"].as_str().unwrap().ends_with("/other"));
        assert_eq!(server.requests(), requests);
    }
    server.respond_first_with(&[(400, gone), (200, other)]);
    let error = queue.send_dead_letters(&letters).await.unwrap_err();
    assert!(error.is_about_missing_queue(), "{error}");
}

#[tokio::test]
async fn every_refusal_means_what_the_sdk_reads_in_it() {
    let query = Some((
        "x-amzn-query-error",
        "AWS.SimpleQueueService.NonExistentQueue;Sender",
    ));
    let kind = Some((
        "x-amzn-errortype",
        "com.amazonaws.sqs#OverLimit:http://internal/",
    ));
    let answers = [
        (
            400,
            r#"{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "no"}"#,
            None,
        ),
        (
            400,
            r#"{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "no"}"#,
            query,
        ),
        (400, r#"{"message": "limit"}"#, kind),
        (
            400,
            r#"{"__type": "com.amazon.coral.service#ExpiredTokenException", "Message": "old"}"#,
            None,
        ),
        (
            400,
            r#"{"code": "RequestThrottled", "__type": "other", "message": "slow"}"#,
            None,
        ),
        (
            403,
            r#"{"__type": "AccessDeniedException", "message": "no\nsecond line"}"#,
            None,
        ),
        (
            400,
            r#"{"__type": "com.amazonaws.sqs#KmsAccessDenied", "message": "no"}"#,
            None,
        ),
        (403, "", None),
        (404, "<html>Not Found</html>", None),
        (429, "", None),
        (500, r#"{"__type": "InternalError"}"#, None),
        (502, "<html>Bad Gateway</html>", None),
        (503, "", None),
    ];
    for (status, body, header) in answers {
        let (server, queue) = server();
        server.respond_with(status, body);
        if let Some((name, value)) = header {
            server.add_header(name, value);
        }
        let none = Duration::ZERO;
        let ours = queue.receive_batch(1, none, none).await.unwrap_err();
        assert!(server.last().is_ours());
        let request = queue.client.receive_message().queue_url(URL);
        let sdks = request.send().await.unwrap_err();
        let sdks = queue_error("ReceiveMessage", URL, sdks);
        assert_eq!(ours.to_string(), sdks.to_string(), "{status} {body}");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_and_named() {
    let hour = Duration::from_hours(1);
    for clock in [SystemTime::now() + hour, SystemTime::now() - hour] {
        let server = Server::new(clock);
        server.respond_with(200, "{}");
        let queue = queue_at(&server, &sdk().build());
        let receive = async || queue.receive_batch(1, Duration::ZERO, Duration::ZERO).await;
        for requests in [2, 3] {
            assert_eq!(receive().await.unwrap(), []);
            assert_eq!(server.requests(), requests);
        }
        assert!(is_signed(&server.last()));
        // The SDK does not correct it: what is asked at the start.
        let error = check_queue(&queue, URL).await.unwrap_err();
        assert_eq!(error.exit_code(), exit::UNAVAILABLE);
        assert!(
            error.to_string().contains("this host's clock is off"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_named_before_anything_is_sent() {
    let mut unsigned = sdk();
    unsigned.set_credentials_provider(None);
    let empty = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
    for (sdk, missing) in [
        (unsigned, "credentials"),
        (sdk().region(None), "region"),
        (empty, "credentials"),
    ] {
        let server = Server::new(SystemTime::now());
        let queue = queue_at(&server, &sdk.build());
        let none = Duration::ZERO;
        let error = queue.receive_batch(1, none, none).await.unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
        assert!(matches!(error, QueueError::Refused { .. }), "{error}");
        assert_eq!(server.requests(), 0);
    }
}
