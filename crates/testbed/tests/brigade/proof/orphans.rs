//! clean --orphans: copies that lost their row.

use std::time::Duration;

use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, eventually, sha, stop};

const CLEAN: [&str; 4] = ["clean", "--orphans", "--confirm", "images-new"];

/// Images whose rows are deleted while they are copied.
async fn orphans(rig: &Rig, count: usize) {
    rig.open_run().await;
    let ids = rig.images(count).await;
    let slow = Effect::Delay(Duration::from_secs(1));
    let slow = rig.cloud.inject(Fault::new("CopyObject", slow));
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    for (number, id) in ids.iter().enumerate() {
        rig.feed(id, &format!("image/{number}.png")).await;
    }
    let expected = u64::try_from(count).unwrap();
    eventually("the copies to start", async || slow.hits() == expected).await;
    rig.sql("DELETE FROM images").await;
    rig.drained().await;
    stop(consumer).await;
    assert_eq!(rig.count("orphans").await, i64::try_from(count).unwrap());
}

#[tokio::test]
async fn only_our_own_copies_that_nobody_names_go() {
    let rig = Rig::new().await;
    orphans(&rig, 4).await;
    rig.object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.row("avatar/2.png").await;
    rig.remove("images-new", "avatar/3.png").await;
    let told = rig.tell(&["clean", "--orphans"]).await;
    assert_eq!((told.code, told.number("objects")), (0, 4));
    let ended = rig
        .command(&["clean", "--orphans", "--confirm", "images-old"])
        .await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    let told = rig.tell(&CLEAN).await;
    assert_eq!(
        (told.code, told.number("removed"), told.number("left_alone")),
        (2, 2, 2)
    );
    assert!(!rig.exists("images-new", "avatar/0.png").await);
    assert_eq!(
        rig.destination("avatar/1.png").await.unwrap(),
        sha(b"the application's")
    );
    assert!(rig.exists("images-new", "avatar/2.png").await);
    assert_eq!(rig.count("orphans").await, 2);
    rig.counts_agree().await;
    assert!(
        rig.exists("images-old", "image/0.png").await,
        "sources stay"
    );
}

#[tokio::test]
async fn an_orphan_replaced_in_that_very_moment_stays() {
    let rig = Rig::new().await;
    orphans(&rig, 1).await;
    let slow = Fault::new("DeleteObjects", Effect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject(slow);
    let mut clean = rig.begin(&CLEAN);
    eventually("the removal", async || slow.hits() > 0).await;
    rig.object("images-new", "avatar/0.png", b"the application's")
        .await;
    assert_eq!(clean.wait().await.unwrap().code(), Some(2));
    assert_eq!(
        rig.destination("avatar/0.png").await.unwrap(),
        sha(b"the application's")
    );
    assert_eq!(rig.count("orphans").await, 1);
}

#[tokio::test]
async fn they_stay_while_a_consumer_could_point_a_row_at_one() {
    let rig = Rig::new().await;
    orphans(&rig, 1).await;
    let again = rig.row("image/0.png").await;
    rig.feed(&again, "image/0.png").await;
    eventually("the message", async || rig.visible().await == 1).await;
    let ended = rig.command(&CLEAN).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.drained().await;
    stop(consumer).await;
    // The copy has a row again, and is none any more.
    assert_eq!(rig.path_of(&again).await.unwrap(), "avatar/0.png");
    let told = rig.tell(&CLEAN).await;
    assert_eq!((told.code, told.number("objects")), (0, 0));
}

#[tokio::test]
async fn copies_of_rows_that_went_back_can_go_and_are_made_anew() {
    let rig = Rig::new().await;
    let ids = rig.moved(2).await;
    assert_eq!(rig.tell(&["rollback", "--all", "--yes"]).await.code, 0);
    let told = rig.tell(&CLEAN).await;
    assert_eq!((told.code, told.number("removed")), (0, 2));
    assert!(!rig.exists("images-new", "avatar/0.png").await);
    rig.migrate().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.tell(&["verify", "--full"]).await.code, 0);
    rig.counts_agree().await;
}
