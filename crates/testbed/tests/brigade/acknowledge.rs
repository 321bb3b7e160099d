//! Acknowledge: deletes that fail in part, and leases that are lost.

use std::time::Duration;

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, stop_consumer, wait_until};

#[tokio::test]
async fn failed_entries_of_a_delete_are_deleted_in_the_end() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let ids = rig.add_images(30).await;
    let failing = FaultEffect::FailEntries {
        code: "InternalError".into(),
        sender_fault: false,
    };
    let partly = rig
        .cloud
        .inject_fault(Fault::new("DeleteMessageBatch", failing).times(3));
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    assert_eq!(partly.hits(), 3);
    assert_eq!(
        (rig.count_rows("moves").await, rig.dead_letters().await),
        (30, 0)
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_lost_lease_is_never_acknowledged() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/a.png").await;
    let refusing = FaultEffect::FailEntries {
        code: "ReceiptHandleIsInvalid".into(),
        sender_fault: true,
    };
    let no_renewal = rig
        .cloud
        .inject_fault(Fault::new("ChangeMessageVisibilityBatch", refusing));
    let _slow = rig.cloud.inject_fault(
        Fault::new("CopyObject", FaultEffect::Delay(Duration::from_secs(4))).times(1),
    );
    rig.feed_row(&id, "image/a.png").await;
    let consumer = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "2s"), ("CONDITIONAL_COPY", "on")]);
    wait_until("the renewal to be refused", async || no_renewal.hits() > 0).await;
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    // Its second delivery is acknowledged, not its first.
    rig.wait_until_drained().await;
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.ledger_counter("moved").await
        ),
        (1, 1)
    );
    assert_eq!(rig.count_rows("changes").await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_message_is_not_deleted_before_its_commit() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/a.png").await;
    let mut lock = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    rig.feed_row(&id, "image/a.png").await;
    let mut consumer = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    wait_until("the copy", async || {
        rig.destination_sha256("avatar/a.png").await.is_some()
    })
    .await;
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "DeleteMessageBatch"),
        0
    );
    consumer.kill().await.unwrap();
    lock.rollback().await.unwrap();
    assert_eq!(rig.queued_messages().await, 1);
    let second = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/a.png");
    stop_consumer(second).await;
}

#[tokio::test]
async fn a_consumer_killed_between_commit_and_delete_moves_nothing_twice() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/a.png").await;
    let never = FaultEffect::Delay(Duration::from_mins(10));
    let no_delete = rig
        .cloud
        .inject_fault(Fault::new("DeleteMessageBatch", never).times(1));
    rig.feed_row(&id, "image/a.png").await;
    let settings = [("VISIBILITY_TIMEOUT", "2s"), ("CONDITIONAL_COPY", "on")];
    let mut first = rig.spawn_consumer(&settings);
    wait_until("the delete to hang", async || no_delete.hits() == 1).await;
    assert_eq!(rig.count_rows("moves").await, 1);
    first.kill().await.unwrap();
    let second = rig.spawn_consumer(&settings);
    rig.wait_until_drained().await;
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "CopyObject"),
        1
    );
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.ledger_counter("moved").await
        ),
        (1, 1)
    );
    let others = rig.count_rows("changes").await + rig.count_rows("orphans").await;
    assert_eq!((others, rig.count_rows("failures").await), (0, 0));
    stop_consumer(second).await;
}

#[tokio::test]
async fn without_the_right_to_change_visibility_it_says_so_at_once() {
    let rig = TestRig::new().await;
    let refused = rig.cloud.inject_fault(
        Fault::new(
            "ChangeMessageVisibilityBatch",
            FaultEffect::error(403, "AccessDenied"),
        )
        .caller("consumer"),
    );
    let consumer = rig.spawn_consumer(&[]);
    wait_until("the warning", async || {
        let log = consumer.log_tail(50);
        log.contains("WARN") && log.contains("allow sqs:ChangeMessageVisibility")
    })
    .await;
    rig.open_run().await;
    stop_consumer(consumer).await;
    drop(refused);
    let consumer = rig.spawn_consumer(&[]);
    wait_until("its start", async || {
        consumer.log_tail(50).contains("consuming")
    })
    .await;
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("ChangeMessageVisibility"), "{log}");
}

/// Coming back again and again, messages whose rows have moved would end as dead letters.
#[tokio::test]
async fn deletes_that_are_refused_or_silent_are_an_outage_and_cost_no_dead_letter() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    for effect in [
        FaultEffect::error(403, "InvalidClientTokenId"),
        FaultEffect::Delay(Duration::from_hours(1)),
    ] {
        let before = rig.count_rows("moves").await;
        let failing = Fault::new("DeleteMessageBatch", effect).caller("consumer");
        let failing = rig.cloud.inject_fault(failing);
        for number in 0..60 {
            let path = format!("image/{before}-{number}.png");
            let id = rig.add_image(&path).await;
            rig.feed_row(&id, &path).await;
        }
        let address = free_address();
        let consumer =
            rig.spawn_consumer(&[("METRICS_ADDR", &address), ("VISIBILITY_TIMEOUT", "30s")]);
        wait_until("the outage", async || {
            let health = http_get(&address, "/healthz").await;
            health.contains("503") && health.contains("deleting messages")
        })
        .await;
        // More than a visibility timeout.
        let renewals = rig.cloud.request_counts();
        let renewals = renewals.count_operation_by("consumer", "ChangeMessageVisibilityBatch");
        wait_until("renewals", async || {
            let counts = rig.cloud.request_counts();
            counts.count_operation_by("consumer", "ChangeMessageVisibilityBatch") >= renewals + 12
        })
        .await;
        failing.remove();
        rig.wait_until_drained().await;
        assert_eq!(rig.count_rows("moves").await, before + 60);
        wait_until("good health", async || {
            http_get(&address, "/healthz").await.contains("200 OK")
        })
        .await;
        let receives = rig.cloud.highest_receive_count();
        assert!(receives <= 2, "{receives} receives");
        assert_eq!(rig.dead_letters().await, 0);
        let log = stop_consumer(consumer).await;
        assert!(log.matches("cannot be used").count() <= 2, "{log}");
    }
}
