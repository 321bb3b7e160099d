//! Decide: rows that were moved, changed or deleted since they were fed.

use std::time::Duration;

use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, eventually, sha, stop};

#[tokio::test]
async fn a_duplicate_moves_nothing_twice() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let id = rig.image("image/a.png").await;
    for _ in 0..5 {
        rig.feed(&id, "image/a.png").await;
    }
    let consumer = rig.consumer(&[]);
    rig.drained().await;
    rig.feed(&id, "image/a.png").await;
    rig.drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/a.png");
    assert_eq!(
        (rig.count("moves").await, rig.counter("moved").await),
        (1, 1)
    );
    assert_eq!(
        rig.count("changes").await + rig.count("failures").await + rig.count("orphans").await,
        0
    );
    stop(consumer).await;
}

#[tokio::test]
async fn changed_and_deleted_rows_are_left_alone_without_a_copy() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let changed = rig.image("image/a.png").await;
    let deleted = rig.image("image/b.png").await;
    rig.sql(&format!("UPDATE images SET path = 'elsewhere/a' WHERE id = {changed}; DELETE FROM images WHERE id = {deleted}")).await;
    rig.feed(&changed, "image/a.png").await;
    rig.feed(&deleted, "image/b.png").await;
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.drained().await;
    assert_eq!(rig.path_of(&changed).await.unwrap(), "elsewhere/a");
    assert_eq!(
        (rig.count("changes").await, rig.counter("changed").await),
        (2, 2)
    );
    assert_eq!(rig.cloud.requests().count_by("consumer", "CopyObject"), 0);
    stop(consumer).await;
}

#[tokio::test]
async fn a_row_that_changes_while_its_image_is_copied_leaves_an_orphan_on_record() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let changed = rig.image("image/a.png").await;
    let deleted = rig.image("image/b.png").await;
    let slow = rig.cloud.inject(Fault::new(
        "CopyObject",
        Effect::Delay(Duration::from_secs(2)),
    ));
    rig.feed(&changed, "image/a.png").await;
    rig.feed(&deleted, "image/b.png").await;
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    eventually("both copies to start", async || slow.hits() == 2).await;
    rig.object("images-new", "avatar/new-a.png", b"newer").await;
    rig.sql(&format!("UPDATE images SET path = 'avatar/new-a.png' WHERE id = {changed}; DELETE FROM images WHERE id = {deleted}")).await;
    rig.drained().await;
    assert_eq!(rig.path_of(&changed).await.unwrap(), "avatar/new-a.png");
    assert_eq!(
        (rig.count("changes").await, rig.count("moves").await),
        (2, 0)
    );
    assert_eq!(
        (rig.count("orphans").await, rig.counter("orphans").await),
        (2, 2)
    );
    assert!(rig.destination("avatar/b.png").await.is_some());
    stop(consumer).await;
}

#[tokio::test]
async fn the_orphan_of_a_consumer_that_was_killed_is_found() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let id = rig.image("image/a.png").await;
    rig.feed(&id, "image/a.png").await;
    // The commit cannot happen: the row is locked. The consumer is killed with its copy made.
    let mut lock = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let mut first = rig.consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    eventually("the copy", async || {
        rig.destination("avatar/a.png").await.is_some()
    })
    .await;
    first.kill().await.unwrap();
    lock.rollback().await.unwrap();
    rig.sql("DELETE FROM images").await;
    let second = rig.consumer(&[("VISIBILITY_TIMEOUT", "2s")]);
    eventually("the orphan", async || rig.count("orphans").await == 1).await;
    rig.drained().await;
    assert_eq!(rig.count("changes").await, 1);
    stop(second).await;
}

#[tokio::test]
async fn an_image_replaced_under_the_copys_own_key_stays_the_applications() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let before = rig.image("image/a.png").await;
    let after = rig.image("image/b.png").await;
    // One object is put before our copy of it, one after; each application then sets its row.
    rig.object("images-new", "avatar/a.png", b"replaced").await;
    let slow = rig.cloud.inject(Fault::new(
        "CopyObject",
        Effect::Delay(Duration::from_secs(1)),
    ));
    rig.feed(&before, "image/a.png").await;
    rig.feed(&after, "image/b.png").await;
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    eventually("both copies to start", async || slow.hits() >= 2).await;
    rig.sql(&format!(
        "UPDATE images SET path = 'avatar/a.png' WHERE id = {before}"
    ))
    .await;
    eventually("the second to move", async || rig.count("moves").await == 1).await;
    rig.object("images-new", "avatar/b.png", b"replaced").await;
    rig.drained().await;
    for key in ["avatar/a.png", "avatar/b.png"] {
        assert_eq!(rig.destination(key).await.unwrap(), sha(b"replaced"));
    }
    // The first is the application's change, the second was moved and then replaced.
    assert_eq!(
        (rig.count("changes").await, rig.count("failures").await),
        (1, 0)
    );
    assert_eq!(rig.count("orphans").await, 0);
    stop(consumer).await;
}
