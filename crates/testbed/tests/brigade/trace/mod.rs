//! Traces: one image's way is one trace, and whatever becomes of traces, images move all the same.

pub(crate) mod collector;
mod context;
mod export_failures;

use std::collections::BTreeSet;

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};
use collector::{ReceivedSpan, TraceCollector};

/// What switches traces on.
fn trace_settings(collector: &TraceCollector) -> [(&'static str, &str); 1] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())]
}

/// Feeds all that is in scope, with a consumer that stops at the end, so that all spans have been sent.
async fn run_migration(rig: &TestRig, more: &[(&str, &str)]) -> (Option<i32>, [String; 2]) {
    let consumer = rig.spawn_consumer(more);
    let ended = wait_for_exit(&mut rig.spawn("feeder", more, &[])).await;
    let consumed = stop_consumer(consumer).await;
    (ended.code, [ended.log, consumed])
}

fn span_names(trace: &[ReceivedSpan]) -> Vec<&str> {
    trace.iter().map(|span| span.name.as_str()).collect()
}

/// Every span but the first belongs under one of the same trace, steps under a move, moves under the feed.
fn assert_linked(trace: &[ReceivedSpan]) {
    let name_of = |id: &str| {
        let parent = trace.iter().find(|span| span.id == id);
        parent.map_or("", |span| span.name.as_str())
    };
    for span in trace {
        let expected = match span.name.as_str() {
            "feed" => "",
            "move" => "feed",
            _ => "move",
        };
        assert_eq!(name_of(&span.parent), expected, "{span:#?}");
        assert!(span.ended >= span.began);
    }
    assert_eq!(trace[0].parent, "");
}

fn span_outcomes<'a>(trace: &'a [ReceivedSpan], name: &str) -> Vec<&'a str> {
    let of_name = trace.iter().filter(|span| span.name == name);
    of_name
        .map(|span| span.attribute("bucket_brigade.outcome"))
        .collect()
}

#[tokio::test]
async fn an_images_way_is_one_trace_from_feed_to_delete() {
    let rig = TestRig::new().await;
    let collector = TraceCollector::start().await;
    let ids = rig.add_images(12).await;
    let more = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=tr4ces-s3cret"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
        ("CONSUMER_NAME", "consumer-7"),
    ];
    let (code, logs) = run_migration(&rig, &more).await;
    assert_eq!(code, Some(0), "{logs:?}");

    let mut traces = BTreeSet::new();
    for (number, id) in ids.iter().enumerate() {
        let trace = collector.trace_of(id);
        assert_eq!(
            span_names(&trace),
            ["feed", "move", "decide", "copy", "commit", "delete"]
        );
        assert_linked(&trace);
        assert_described(&trace, id, number);
        traces.insert(trace[0].trace.clone());
    }
    assert_eq!(traces.len(), ids.len());
    assert_eq!(collector.spans().len(), 6 * ids.len());
    for request in collector.requests() {
        assert_eq!(request["x-api-key"], "tr4ces-s3cret");
        assert_eq!(request["content-encoding"], "gzip");
    }
    for log in &logs {
        assert!(
            log.contains("traces are exported") && !log.contains("s3cret"),
            "{log}"
        );
    }
    let all = format!("{:?}", collector.spans());
    assert!(
        !all.contains("postgres://") && !all.contains("s3cret"),
        "{all}"
    );
}

fn assert_described(trace: &[ReceivedSpan], id: &str, number: usize) {
    let (feed, moved) = (&trace[0], &trace[1]);
    for (span, service) in [(feed, "feeder"), (moved, "consumer")] {
        let named = format!("bucket-brigade-{service}");
        assert_eq!(span.resource["service.name"], named);
        assert_eq!(span.resource["deployment.environment.name"], "test");
        assert_eq!(span.attribute("bucket_brigade.row_id"), id);
        assert_eq!(span.attribute("messaging.system"), "aws_sqs");
    }
    assert_eq!(moved.resource["service.instance.id"], "consumer-7");
    for (key, value) in [
        ("bucket_brigade.source_bucket", "images-old".to_owned()),
        ("bucket_brigade.source_key", format!("image/{number}.png")),
        ("bucket_brigade.destination_bucket", "images-new".to_owned()),
        (
            "bucket_brigade.destination_key",
            format!("avatar/{number}.png"),
        ),
        ("bucket_brigade.receive_count", "1".to_owned()),
    ] {
        assert_eq!(moved.attribute(key), value, "{key}");
    }
    let outcomes: Vec<&str> = trace
        .iter()
        .map(|span| span.attribute("bucket_brigade.outcome"))
        .collect();
    // The end of a delete has no other outcome than that it did not fail.
    assert_eq!(
        outcomes,
        ["sent", "moved", "wanted", "copied", "committed", ""]
    );
    assert!(trace.iter().all(|span| !span.is_failed));
    for shared in [&trace[2], &trace[4], &trace[5]] {
        let (name, said) = &shared.events[0];
        let size: usize = said["bucket_brigade.batch_size"].parse().unwrap();
        assert!(name == "batch sent" && (1..=100).contains(&size));
    }
}

#[tokio::test]
async fn a_delete_that_is_tried_again_is_one_step() {
    let rig = TestRig::new().await;
    let collector = TraceCollector::start().await;
    let id = rig.add_image("image/a.png").await;
    let failing = FaultEffect::FailEntries {
        code: "InternalError".into(),
        sender_fault: false,
    };
    // As often as a batch is tried.
    let _failing = rig
        .cloud
        .inject_fault(Fault::new("DeleteMessageBatch", failing).times(5));
    let more = [trace_settings(&collector)[0]];
    let (code, logs) = run_migration(&rig, &more).await;
    assert_eq!(code, Some(0), "{logs:?}");

    let trace = collector.trace_of(&id);
    assert_linked(&trace);
    assert_eq!(span_outcomes(&trace, "move"), ["moved"]);
    assert_eq!(span_outcomes(&trace, "delete"), [""]);
    assert!(trace.iter().all(|span| !span.is_failed));
}

#[tokio::test]
async fn failures_retries_and_redrive_stay_in_their_trace() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(3),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    let collector = TraceCollector::start().await;
    let missing = rig.add_row("image/missing.png").await;
    let conflict = rig.add_image("image/conflict.png").await;
    rig.put_object("images-new", "avatar/conflict.png", b"other")
        .await;
    let slow = rig.add_image("image/slow.png").await;
    let throttled = Fault::new("CopyObject", FaultEffect::error(503, "SlowDown"));
    let _throttled = rig
        .cloud
        .inject_fault(throttled.key_contains("slow.png").times(2));
    let more = trace_settings(&collector);
    let (code, logs) = run_migration(&rig, &more).await;
    assert_eq!(code, Some(2), "{logs:?}");

    let trace = collector.trace_of(&slow);
    assert_linked(&trace);
    let copy = trace.iter().find(|span| span.name == "copy").unwrap();
    let tried = |event: &(String, _)| event.0 == "attempt failed";
    assert_eq!(copy.events.iter().filter(|event| tried(event)).count(), 2);
    assert_eq!(copy.events[0].1["error.type"], "SlowDown");
    assert!(!copy.is_failed);

    let trace = collector.trace_of(&missing);
    assert_linked(&trace);
    let moves: Vec<&ReceivedSpan> = trace.iter().filter(|span| span.name == "move").collect();
    assert!(moves[0].is_failed && moves[0].attribute("error.type") == "NoSuchKey");
    assert_eq!(moves[0].attribute("bucket_brigade.outcome"), "failed");
    assert!(span_names(&trace).contains(&"dead letter"));
    let trace = collector.trace_of(&conflict);
    assert_linked(&trace);
    assert!(span_names(&trace).contains(&"release"));

    // Mended and redriven out of the dead-letter queue, it goes on in the trace it began in.
    wait_until("the dead letter", async || rig.dead_letters().await == 2).await;
    rig.put_object("images-old", "image/missing.png", b"found")
        .await;
    assert_eq!(rig.run_feeder(&["retry", "--yes"]).await.code, 0);
    let consumer = rig.spawn_consumer(&more);
    wait_until("the move", async || rig.count_rows("moves").await == 2).await;
    stop_consumer(consumer).await;
    let trace = collector.trace_of(&missing);
    assert_linked(&trace);
    assert_eq!(span_outcomes(&trace, "move").last(), Some(&"moved"));
}
