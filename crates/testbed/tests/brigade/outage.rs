//! Outages: nothing reaches the dead-letter queue, each is said once, and the work goes on by itself.

use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, eventually, stop};

/// Feeds images into an outage of this operation, ends it, and expects that all move.
async fn survives(operation: &str, effect: Effect, words: &str) {
    let rig = Rig::new().await;
    rig.open_run().await;
    let ids = rig.images(40).await;
    let outage = rig
        .cloud
        .inject(Fault::new(operation, effect).caller("consumer"));
    for (number, id) in ids.iter().enumerate() {
        rig.feed(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    eventually("the outage to be told", async || {
        consumer.log_tail(200).contains(words)
    })
    .await;
    let hits = outage.hits();
    eventually("some probes", async || outage.hits() >= hits + 2).await;
    outage.remove();
    eventually("all to move", async || rig.count("moves").await == 40).await;
    rig.drained().await;
    assert_eq!((rig.dead().await, rig.count("failures").await), (0, 0));
    let log = stop(consumer).await;
    assert_eq!(log.matches("receiving stops").count(), 1, "{log}");
    assert!(log.contains("can be used again"), "{log}");
}

#[tokio::test]
async fn of_the_rights_to_the_destination() {
    survives(
        "CopyObject",
        Effect::error(403, "AccessDenied"),
        "s3:PutObject",
    )
    .await;
}

#[tokio::test]
async fn of_the_credentials() {
    survives(
        "CopyObject",
        Effect::error(400, "ExpiredToken"),
        "check the credentials",
    )
    .await;
}

#[tokio::test]
async fn of_s3_itself() {
    survives(
        "CopyObject",
        Effect::error(500, "InternalError"),
        "S3 cannot be used",
    )
    .await;
}

#[tokio::test]
async fn of_the_queue() {
    survives(
        "ReceiveMessage",
        Effect::error(400, "AWS.SimpleQueueService.NonExistentQueue"),
        "check QUEUE_URL",
    )
    .await;
}

#[tokio::test]
async fn a_few_broken_objects_at_the_end_are_no_outage() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let good = rig.image("image/good.png").await;
    rig.feed(&good, "image/good.png").await;
    let consumer = rig.consumer(&[]);
    eventually("the good one", async || rig.count("moves").await == 1).await;
    let _denied = rig
        .cloud
        .inject(Fault::new("CopyObject", Effect::error(403, "AccessDenied")).key_contains("bad"));
    for number in 0..6 {
        let path = format!("image/bad-{number}.png");
        let id = rig.image(&path).await;
        rig.feed(&id, &path).await;
    }
    eventually("their failures", async || rig.count("failures").await == 6).await;
    let last = rig.image("image/last.png").await;
    rig.feed(&last, "image/last.png").await;
    eventually("another good one", async || rig.count("moves").await == 2).await;
    let log = stop(consumer).await;
    assert!(!log.contains("receiving stops"), "{log}");
}
