//! What is carried by messages, and what is made of a foreign one.

use std::sync::{Arc, Mutex};

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::MessageAttributeValue;
use axum::http::HeaderMap;
use bucket_brigade_testbed::cloud::{CloudObserver, ObservedRequest};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::collector::TraceCollector;
use super::{run_migration, trace_settings};
use crate::rig::{TestRig, stop_consumer};

/// The bodies of all requests to the queue.
#[derive(Default)]
struct RequestBodies(Mutex<Vec<(String, String)>>);

impl CloudObserver for RequestBodies {
    fn before_request<'a>(&'a self, request: ObservedRequest<'a>) -> BoxFuture<'a, ()> {
        let body = String::from_utf8_lossy(request.body).into_owned();
        let mut bodies = self.0.lock().unwrap();
        bodies.push((request.operation.to_owned(), body));
        futures::future::ready(()).boxed()
    }

    fn after_response(&self, _: ObservedRequest<'_>, _: &[u8]) {}
}

impl RequestBodies {
    fn of(rig: &TestRig) -> Arc<Self> {
        let bodies = Arc::new(Self::default());
        rig.cloud
            .observe_requests(Arc::<Self>::clone(&bodies))
            .unwrap();
        bodies
    }

    /// How many requests of an operation hold a text, and how many there were.
    fn count(&self, operation: &str, text: &str) -> (usize, usize) {
        let bodies = self.0.lock().unwrap();
        let of_operation = bodies.iter().filter(|(name, _)| name == operation);
        let holding = of_operation.clone().filter(|(_, body)| body.contains(text));
        (holding.count(), of_operation.count())
    }
}

#[tokio::test]
async fn off_nothing_is_sent() {
    let rig = TestRig::new().await;
    let collector = TraceCollector::start().await;
    let bodies = RequestBodies::of(&rig);
    let at = trace_settings(&collector)[0];
    for off in [
        &[][..],
        &[at, ("OTEL_SDK_DISABLED", "true")],
        &[at, ("OTEL_TRACES_EXPORTER", "none")],
    ] {
        rig.add_image(&format!("image/{}.png", fastrand::u64(..)))
            .await;
        assert_eq!(run_migration(&rig, off).await.0, Some(0));
    }
    for text in ["traceparent", "\"MessageAttributes\""] {
        let (holding, all) = bodies.count("SendMessageBatch", text);
        assert!(holding == 0 && all > 0, "{text}: {holding} of {all}");
    }
    let requests: Vec<HeaderMap> = collector.requests();
    assert!(requests.is_empty(), "{requests:?}");

    rig.add_image("image/on.png").await;
    assert_eq!(run_migration(&rig, &[at]).await.0, Some(0));
    assert_eq!(bodies.count("SendMessageBatch", "\"traceparent\"").0, 1);
}

#[tokio::test]
async fn what_sampling_leaves_out_is_left_out_by_all() {
    let rig = TestRig::new().await;
    let collector = TraceCollector::start().await;
    let bodies = RequestBodies::of(&rig);
    rig.add_images(3).await;
    // The feeder decides; the consumer, without a setting, follows.
    let consumer = rig.spawn_consumer(&trace_settings(&collector));
    let none = [
        trace_settings(&collector)[0],
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
    ];
    let fed = rig.run_program("feeder", &none).await;
    assert_eq!(fed.code, Some(0), "{}", fed.log);
    stop_consumer(consumer).await;
    assert_eq!(bodies.count("SendMessageBatch", "-00\"").0, 1);
    assert_eq!(collector.spans().len(), 0);
}

fn string_attribute(kind: &str, value: &str) -> MessageAttributeValue {
    let builder = MessageAttributeValue::builder().data_type(kind);
    builder.string_value(value).build().unwrap()
}

const FOREIGN_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const FOREIGN_SPAN: &str = "b7ad6b7169203331";

fn foreign_traceparent(flags: &str) -> String {
    format!("00-{FOREIGN_TRACE}-{FOREIGN_SPAN}-{flags}")
}

/// Attributes that are no trace, in forms that might pass for one.
fn hostile_attributes() -> Vec<MessageAttributeValue> {
    let ours = foreign_traceparent("01");
    let mut all: Vec<MessageAttributeValue> = [
        "x",
        "00-1-1-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "'; DROP TABLE images; --",
        &ours.to_uppercase(),
        &format!("{ours}-{ours}"),
        &"-".repeat(100_000),
        &"é".repeat(55),
    ]
    .map(|value| string_attribute("String", value))
    .into();
    all.push(string_attribute("Number", "55"));
    let binary = MessageAttributeValue::builder().data_type("Binary");
    let bytes = Blob::new(foreign_traceparent("01").into_bytes());
    all.push(binary.binary_value(bytes).build().unwrap());
    all
}

/// Feeds an image by hand, with this attribute on its message. Returns the row's id.
async fn feed_with_attribute(rig: &TestRig, attribute: MessageAttributeValue) -> String {
    let path = format!("image/{}.png", fastrand::u64(..));
    let id = rig.add_image(&path).await;
    let sqs = rig.cloud.sqs_client();
    sqs.send_message()
        .queue_url(&rig.queue.url)
        .message_body(serde_json::json!({ "id": id, "path": path }).to_string())
        .message_attributes("traceparent", attribute)
        .send()
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn a_hostile_attribute_moves_nothing_else_and_breaks_nothing() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let collector = TraceCollector::start().await;
    let mut ids = Vec::new();
    for attribute in hostile_attributes() {
        ids.push(feed_with_attribute(&rig, attribute).await);
    }
    let consumer = rig.spawn_consumer(&trace_settings(&collector));
    rig.wait_until_drained().await;
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert_eq!(
        rig.count_rows("moves").await,
        i64::try_from(ids.len()).unwrap()
    );

    let spans = collector.spans();
    let moves = spans.iter().filter(|span| span.name == "move");
    assert_eq!(moves.clone().count(), ids.len());
    for span in moves {
        // As if it had none: a trace of its own.
        assert!(
            span.parent.is_empty() && span.trace != FOREIGN_TRACE,
            "{span:#?}"
        );
        assert!(
            ids.iter()
                .any(|id| id == span.attribute("bucket_brigade.row_id"))
        );
    }
}

#[tokio::test]
async fn a_foreign_trace_is_continued_and_nothing_more() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let collector = TraceCollector::start().await;
    let seen =
        feed_with_attribute(&rig, string_attribute("String", &foreign_traceparent("01"))).await;
    let unseen =
        feed_with_attribute(&rig, string_attribute("String", &foreign_traceparent("00"))).await;
    let consumer = rig.spawn_consumer(&trace_settings(&collector));
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    for id in [&seen, &unseen] {
        assert!(rig.path_of(id).await.unwrap().starts_with("avatar/"));
    }
    let spans = collector.spans();
    let moves: Vec<_> = spans.iter().filter(|span| span.name == "move").collect();
    assert_eq!(moves.len(), 1);
    assert_eq!(moves[0].attribute("bucket_brigade.row_id"), seen);
    assert_eq!(
        (&*moves[0].trace, &*moves[0].parent),
        (FOREIGN_TRACE, FOREIGN_SPAN)
    );

    // With traces off, it is not even asked for.
    feed_with_attribute(&rig, string_attribute("String", "x")).await;
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("moves").await, 3);
}
