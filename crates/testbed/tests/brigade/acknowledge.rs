//! Acknowledge: deletes that fail in part, and leases that are lost.

use std::time::Duration;

use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, eventually, stop};

#[tokio::test]
async fn failed_entries_of_a_delete_are_deleted_in_the_end() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let ids = rig.images(30).await;
    let failing = Effect::FailEntries {
        code: "InternalError".into(),
        sender_fault: false,
    };
    let partly = rig
        .cloud
        .inject(Fault::new("DeleteMessageBatch", failing).times(3));
    for (number, id) in ids.iter().enumerate() {
        rig.feed(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.consumer(&[]);
    rig.drained().await;
    assert_eq!(partly.hits(), 3);
    assert_eq!((rig.count("moves").await, rig.dead().await), (30, 0));
    stop(consumer).await;
}

#[tokio::test]
async fn a_lost_lease_is_never_acknowledged() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let id = rig.image("image/a.png").await;
    let refusing = Effect::FailEntries {
        code: "ReceiptHandleIsInvalid".into(),
        sender_fault: true,
    };
    let no_renewal = rig
        .cloud
        .inject(Fault::new("ChangeMessageVisibilityBatch", refusing));
    let _slow = rig
        .cloud
        .inject(Fault::new("CopyObject", Effect::Delay(Duration::from_secs(4))).times(1));
    rig.feed(&id, "image/a.png").await;
    let consumer = rig.consumer(&[("VISIBILITY_TIMEOUT", "2s"), ("CONDITIONAL_COPY", "on")]);
    eventually("the renewal to be refused", async || no_renewal.hits() > 0).await;
    eventually("the move", async || rig.count("moves").await == 1).await;
    // Its second delivery is acknowledged, not its first.
    rig.drained().await;
    assert_eq!(
        (rig.count("moves").await, rig.counter("moved").await),
        (1, 1)
    );
    assert_eq!(rig.count("changes").await, 0);
    stop(consumer).await;
}

#[tokio::test]
async fn a_message_is_not_deleted_before_its_commit() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let id = rig.image("image/a.png").await;
    let mut lock = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    rig.feed(&id, "image/a.png").await;
    let mut consumer = rig.consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    eventually("the copy", async || {
        rig.destination("avatar/a.png").await.is_some()
    })
    .await;
    assert_eq!(
        rig.cloud
            .requests()
            .count_by("consumer", "DeleteMessageBatch"),
        0
    );
    consumer.kill().await.unwrap();
    lock.rollback().await.unwrap();
    assert_eq!(rig.queued().await, 1);
    let second = rig.consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    rig.drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/a.png");
    stop(second).await;
}

#[tokio::test]
async fn a_consumer_killed_between_commit_and_delete_moves_nothing_twice() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let id = rig.image("image/a.png").await;
    let never = Effect::Delay(Duration::from_mins(10));
    let no_delete = rig
        .cloud
        .inject(Fault::new("DeleteMessageBatch", never).times(1));
    rig.feed(&id, "image/a.png").await;
    let settings = [("VISIBILITY_TIMEOUT", "2s"), ("CONDITIONAL_COPY", "on")];
    let mut first = rig.consumer(&settings);
    eventually("the delete to hang", async || no_delete.hits() == 1).await;
    assert_eq!(rig.count("moves").await, 1);
    first.kill().await.unwrap();
    let second = rig.consumer(&settings);
    rig.drained().await;
    assert_eq!(rig.cloud.requests().count_by("consumer", "CopyObject"), 1);
    assert_eq!(
        (rig.count("moves").await, rig.counter("moved").await),
        (1, 1)
    );
    let others = rig.count("changes").await + rig.count("orphans").await;
    assert_eq!((others, rig.count("failures").await), (0, 0));
    stop(second).await;
}
