//! Decide: rows that were moved, changed or deleted since they were fed.

use std::time::Duration;

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, sha256, stop_consumer, wait_until};

#[tokio::test]
async fn a_duplicate_moves_nothing_twice() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/a.png").await;
    for _ in 0..5 {
        rig.feed_row(&id, "image/a.png").await;
    }
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    rig.feed_row(&id, "image/a.png").await;
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/a.png");
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.ledger_counter("moved").await
        ),
        (1, 1)
    );
    assert_eq!(
        rig.count_rows("changes").await
            + rig.count_rows("failures").await
            + rig.count_rows("orphans").await,
        0
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn changed_and_deleted_rows_are_left_alone_without_a_copy() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let changed = rig.add_image("image/a.png").await;
    let deleted = rig.add_image("image/b.png").await;
    rig.execute_sql(&format!("UPDATE images SET path = 'elsewhere/a' WHERE id = {changed}; DELETE FROM images WHERE id = {deleted}")).await;
    rig.feed_row(&changed, "image/a.png").await;
    rig.feed_row(&deleted, "image/b.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&changed).await.unwrap(), "elsewhere/a");
    assert_eq!(
        (
            rig.count_rows("changes").await,
            rig.ledger_counter("changed").await
        ),
        (2, 2)
    );
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "CopyObject"),
        0
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_row_that_changes_while_its_image_is_copied_leaves_an_orphan_on_record() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let changed = rig.add_image("image/a.png").await;
    let deleted = rig.add_image("image/b.png").await;
    let slow = rig.cloud.inject_fault(Fault::new(
        "CopyObject",
        FaultEffect::Delay(Duration::from_secs(2)),
    ));
    rig.feed_row(&changed, "image/a.png").await;
    rig.feed_row(&deleted, "image/b.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("both copies to start", async || slow.hits() == 2).await;
    rig.put_object("images-new", "avatar/new-a.png", b"newer")
        .await;
    rig.execute_sql(&format!("UPDATE images SET path = 'avatar/new-a.png' WHERE id = {changed}; DELETE FROM images WHERE id = {deleted}")).await;
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&changed).await.unwrap(), "avatar/new-a.png");
    assert_eq!(
        (
            rig.count_rows("changes").await,
            rig.count_rows("moves").await
        ),
        (2, 0)
    );
    assert_eq!(
        (
            rig.count_rows("orphans").await,
            rig.ledger_counter("orphans").await
        ),
        (2, 2)
    );
    assert!(rig.destination_sha256("avatar/b.png").await.is_some());
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn the_orphan_of_a_consumer_that_was_killed_is_found() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/a.png").await;
    rig.feed_row(&id, "image/a.png").await;
    // The commit cannot happen: the row is locked. The consumer is killed with its copy made.
    let mut lock = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let mut first = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    wait_until("the copy", async || {
        rig.destination_sha256("avatar/a.png").await.is_some()
    })
    .await;
    first.kill().await.unwrap();
    lock.rollback().await.unwrap();
    rig.execute_sql("DELETE FROM images").await;
    let second = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    wait_until("the orphan", async || rig.count_rows("orphans").await == 1).await;
    rig.wait_until_drained().await;
    assert_eq!(rig.count_rows("changes").await, 1);
    stop_consumer(second).await;
}

#[tokio::test]
async fn an_image_replaced_under_the_copys_own_key_stays_the_applications() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let before = rig.add_image("image/a.png").await;
    let after = rig.add_image("image/b.png").await;
    // One object is put before our copy of it, one after; each application then sets its row.
    rig.put_object("images-new", "avatar/a.png", b"replaced")
        .await;
    let slow = rig.cloud.inject_fault(Fault::new(
        "CopyObject",
        FaultEffect::Delay(Duration::from_secs(1)),
    ));
    rig.feed_row(&before, "image/a.png").await;
    rig.feed_row(&after, "image/b.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("both copies to start", async || slow.hits() >= 2).await;
    rig.execute_sql(&format!(
        "UPDATE images SET path = 'avatar/a.png' WHERE id = {before}"
    ))
    .await;
    wait_until("the second to move", async || {
        rig.count_rows("moves").await == 1
    })
    .await;
    rig.put_object("images-new", "avatar/b.png", b"replaced")
        .await;
    rig.wait_until_drained().await;
    for key in ["avatar/a.png", "avatar/b.png"] {
        assert_eq!(
            rig.destination_sha256(key).await.unwrap(),
            sha256(b"replaced")
        );
    }
    // The first is the application's change, the second was moved and then replaced.
    assert_eq!(
        (
            rig.count_rows("changes").await,
            rig.count_rows("failures").await
        ),
        (1, 0)
    );
    assert_eq!(rig.count_rows("orphans").await, 0);
    stop_consumer(consumer).await;
}
