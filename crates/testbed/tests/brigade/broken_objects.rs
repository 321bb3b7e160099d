//! What is no outage: objects that cannot be copied, however many.

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_until};

async fn feed_bad_images(rig: &TestRig, count: usize) {
    for number in 0..count {
        let path = format!("image/bad-{number}.png");
        let id = rig.add_image(&path).await;
        rig.feed_row(&id, &path).await;
    }
}

#[tokio::test]
async fn one_object_that_is_refused_by_condition_is_no_outage() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let refusal = Fault::new("CopyObject", FaultEffect::error(412, "PreconditionFailed"));
    let refusal = refusal.with_header("if-none-match").key_contains("bad");
    let _refusal = rig.cloud.inject_fault(refusal);
    let bad = rig.add_image("image/bad.png").await;
    rig.feed_row(&bad, "image/bad.png").await;
    for (number, id) in rig.add_images(40).await.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("its failure", async || {
        rig.count_rows("failures").await == 1
    })
    .await;
    wait_until("the others", async || rig.count_rows("moves").await == 40).await;
    let code = rig.failure_code(&bad).await;
    assert_eq!(code.as_deref(), Some("DestinationVanished"));
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("receiving stops"), "{log}");
}

#[tokio::test]
async fn a_few_broken_objects_at_the_end_are_no_outage() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let good = rig.add_image("image/good.png").await;
    rig.feed_row(&good, "image/good.png").await;
    let consumer = rig.spawn_consumer(&[]);
    wait_until("the good one", async || rig.count_rows("moves").await == 1).await;
    let _denied = rig.cloud.inject_fault(
        Fault::new("CopyObject", FaultEffect::error(403, "AccessDenied")).key_contains("bad"),
    );
    feed_bad_images(&rig, 6).await;
    wait_until("their failures", async || {
        rig.count_rows("failures").await == 6
    })
    .await;
    let last = rig.add_image("image/last.png").await;
    rig.feed_row(&last, "image/last.png").await;
    wait_until("another good one", async || {
        rig.count_rows("moves").await == 2
    })
    .await;
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("receiving stops"), "{log}");
}

/// As after `clean` and `retry`: the only rows left are denied, and this process has copied nothing.
#[tokio::test]
async fn denied_objects_are_no_outage_where_nothing_else_is_left() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let denied = rig.cloud.inject_fault(
        Fault::new("CopyObject", FaultEffect::error(403, "AccessDenied")).key_contains("bad"),
    );
    feed_bad_images(&rig, 6).await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("their failures", async || {
        rig.count_rows("failures").await == 6
    })
    .await;
    wait_until("the dead letters", async || rig.dead_letters().await == 6).await;
    // One verdict is enough for all deliveries: fewer than the seven tries of a single one.
    assert!(denied.hits() < 6 * 7, "{} copies", denied.hits());
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("receiving stops"), "{log}");
    let listing = rig.cloud.s3_client().list_objects_v2().bucket("images-new");
    assert_eq!(listing.send().await.unwrap().contents(), []);
}

/// More than are in doubt, and none was copied before: the last rows of the table show that others can be.
#[tokio::test]
async fn many_denied_objects_are_no_outage_where_others_can_be_copied() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let _denied = rig.cloud.inject_fault(
        Fault::new("CopyObject", FaultEffect::error(403, "AccessDenied")).key_contains("bad"),
    );
    feed_bad_images(&rig, 30).await;
    rig.add_image("image/later.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("their failures", async || {
        rig.count_rows("failures").await == 30
    })
    .await;
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("receiving stops"), "{log}");
}

/// S3 names them in the answer to a copy; that to a HEAD has no body.
#[tokio::test]
async fn rotated_credentials_are_named() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let unknown = |operation| {
        let effect = FaultEffect::error(403, "InvalidAccessKeyId");
        let fault = Fault::new(operation, effect).caller("consumer");
        rig.cloud.inject_fault(fault)
    };
    let faults = ["CopyObject", "HeadObject"].map(unknown);
    let id = rig.add_image("image/0.png").await;
    rig.feed_row(&id, "image/0.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("the credentials to be named", async || {
        let log = consumer.log_tail(100);
        log.contains("InvalidAccessKeyId") && log.contains("check the credentials")
    })
    .await;
    for fault in faults {
        fault.remove();
    }
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    stop_consumer(consumer).await;
}
