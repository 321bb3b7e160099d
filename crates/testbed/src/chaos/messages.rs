//! Messages besides the feeder's own: further copies of those, and poison.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_sqs::Client;
use fastrand::Rng;
use tokio::sync::mpsc::UnboundedReceiver;

use super::delete_checker::DeleteChecker;

/// A message is delivered once and up to so many times more.
const MAX_EXTRA_COPIES: usize = 4;
/// Larger than any message of ours, smaller than SQS's own limit.
const LARGE_BODY_BYTES: usize = 200 * 1024;

/// Sends up to four further copies of each message that was fed.
pub(super) async fn send_duplicates(
    sqs: Client,
    queue_url: String,
    mut fed: UnboundedReceiver<String>,
    sent: Arc<AtomicU64>,
    mut random: Rng,
) {
    while let Some(body) = fed.recv().await {
        for _ in 0..random.usize(0..=MAX_EXTRA_COPIES) {
            send_message(&sqs, &queue_url, &body, &sent).await;
        }
    }
}

/// Sends `count` messages that are none of ours, evenly over `duration`.
pub(super) async fn send_poison(
    sqs: Client,
    queue_url: String,
    auditor: Arc<DeleteChecker>,
    (count, duration): (u32, Duration),
    sent: Arc<AtomicU64>,
    mut random: Rng,
) {
    let mut ticks = tokio::time::interval(duration / count.max(1));
    for number in 0..count {
        ticks.tick().await;
        let body = poison_body(number, &mut random);
        auditor.expect_poison(&body);
        send_message(&sqs, &queue_url, &body, &sent).await;
    }
}

async fn send_message(sqs: &Client, queue_url: &str, body: &str, sent: &AtomicU64) {
    let request = sqs.send_message().queue_url(queue_url).message_body(body);
    if request.send().await.is_ok() {
        sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// One of many kinds; the number makes it unlike every other where its form allows.
fn poison_body(number: u32, random: &mut Rng) -> String {
    let id = random.u32(1..1000);
    let bodies = [
        " ".to_owned(),
        format!("poison {number}"),
        format!("[{number}]"),
        "null".to_owned(),
        "{}".to_owned(),
        format!(r#"{{"id":"{id}"}}"#),
        format!(r#"{{"path":"image/avatar-{id}.png"}}"#),
        format!(r#"{{"id":{id},"path":"image/avatar-{id}.png"}}"#),
        format!(r#"{{"id":"{id}","path":null}}"#),
        format!(r#"{{"id":"{id}","path":["image/avatar-{id}.png"]}}"#),
        format!(r#"{{"id":"{id}","path":"image/avatar-{id}.png","bucket":"images-new"}}"#),
        format!(r#"{{"id":"{id}","path":"image/avatar-{id}.png"}} trailing"#),
        format!(r#"{{"id":"{id}","path":"image/avatar-{id}.png""#),
        format!(r#"{{"id":"{id}","path":"logo/a.png"}}"#),
        format!(r#"{{"id":"{id}","path":"/image/avatar-{id}.png"}}"#),
        format!(r#"{{"id":"{id}","path":"IMAGE/avatar-{id}.png"}}"#),
        format!(r#"{{"id":"{id}","path":"../image/avatar-{id}.png"}}"#),
        format!(r#"{{"id":"{id}","path":""}}"#),
        format!(r#"{{"id":"{id}","path":"image/\u0000{number}"}}"#),
        format!(r#"{{"id":"{id}","path":"image/{}"}}"#, "long-".repeat(300)),
        format!(r#"{{"id":"{id}; DROP TABLE images; --","path":"image/{number}"}}"#),
        format!(r#"{{"id":"{id}' OR '1'='1","path":"image/{number}"}}"#),
        format!(r#"{{"id":"1e{number}","path":"image/{number}"}}"#),
        format!(r#"{{"id":"","path":"image/{number}"}}"#),
        format!(r#"{{"id":"99999999999999999999{id}","path":"image/{number}"}}"#),
        format!("{number}{}", "x".repeat(LARGE_BODY_BYTES)),
    ];
    let at = random.usize(..bodies.len());
    bodies.into_iter().nth(at).unwrap_or_default()
}
