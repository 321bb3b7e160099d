//! Two at once: a command twice, or a command beside what would fight it.

use std::time::Duration;

use bucket_brigade_testbed::{Effect, Fault};

use super::Told;
use crate::rig::{Rig, end, eventually, stop};

const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];
const ROLLBACK: [&str; 3] = ["rollback", "--all", "--yes"];

fn slowly(operation: &str) -> Fault {
    Fault::new(operation, Effect::Delay(Duration::from_millis(300)))
}

/// Begins `first`, and `second` once the first is under way: one of them does the work, the other is told.
async fn the_second_is_kept_out(rig: &Rig, first: &[&str], second: &[&str]) {
    let slow = rig.cloud.inject(slowly("HeadObject").caller("feeder"));
    let mut at_work = rig.begin(first);
    eventually("the first to be at work", async || slow.hits() > 0).await;
    let refused = rig.command(second).await;
    assert_eq!(refused.code, Some(75), "{second:?}: {}", refused.log);
    drop(slow);
    let ended = end(&mut at_work).await;
    assert_eq!(ended.code, Some(0), "{first:?}: {}", ended.log);
}

#[tokio::test]
async fn commands_that_prove_undo_and_clean_keep_each_other_out() {
    let rig = Rig::new().await;
    rig.moved(200).await;
    for second in [&["verify"][..], &ROLLBACK, &CLEAN, &["rollback", "--all"]] {
        the_second_is_kept_out(&rig, &["verify"], second).await;
    }
    the_second_is_kept_out(&rig, &ROLLBACK, &ROLLBACK).await;
    assert_eq!(
        (rig.count("moves").await, rig.count("rollbacks").await),
        (0, 200)
    );
    rig.migrate().await;
    the_second_is_kept_out(&rig, &["verify"], &CLEAN).await;
    the_second_is_kept_out(&rig, &CLEAN, &CLEAN).await;
    assert_eq!(rig.cloud.objects_in("images-old"), 0);
    rig.counts_agree().await;
}

#[tokio::test]
async fn a_feeder_that_comes_while_rows_go_back_is_turned_away() {
    let rig = Rig::new().await;
    rig.moved(250).await;
    let slow = rig.cloud.inject(slowly("HeadObject").caller("feeder"));
    let mut rollback = rig.begin(&ROLLBACK);
    eventually("the rollback", async || slow.hits() > 0).await;
    let refused = rig.run("feeder", &[]).await;
    assert_eq!(refused.code, Some(75), "{}", refused.log);
    drop(slow);
    assert_eq!(end(&mut rollback).await.code, Some(0));
    let back = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!(rig.number(back).await, 250);
    rig.migrate().await;
    assert_eq!((rig.number(back).await, rig.count("moves").await), (0, 250));
}

/// Dead letters that come back while rows go back would move some of them again.
#[tokio::test]
async fn messages_that_come_meanwhile_stop_a_rollback_before_its_next_page() {
    let rig = Rig::new().await;
    rig.moved(450).await;
    let slow = rig.cloud.inject(slowly("HeadObject").caller("feeder"));
    let mut rollback = rig.begin(&ROLLBACK);
    eventually("the first page", async || slow.hits() > 0).await;
    rig.send("a dead letter that came back").await;
    drop(slow);
    let ended = end(&mut rollback).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(
        ended.log.contains("1 messages wait in the queue"),
        "{}",
        ended.log
    );
    let back = rig.count("rollbacks").await;
    assert!((1..450).contains(&back), "{back}");
    rig.counts_agree().await;
    // Once the queue is empty again, the same command goes on.
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    eventually("the dead letter to die again", async || {
        rig.dead().await == 1
    })
    .await;
    stop(consumer).await;
    let told = rig.tell(&ROLLBACK).await;
    assert_eq!((told.code, told.number("rolled_back")), (0, 450 - back));
}

#[tokio::test]
async fn retries_at_once_and_retries_cut_off_count_each_row_once() {
    let rig = Rig::new().await;
    for number in 0..20 {
        rig.row(&format!("image/missing-{number}.png")).await;
    }
    rig.image("image/there.png").await;
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    assert_eq!(rig.run("feeder", &[]).await.code, Some(2));
    eventually("the dead letters", async || rig.dead().await == 20).await;
    stop(consumer).await;
    // Killed after it took the failures off the record, and before the dead letters were sent back.
    let never = Effect::Delay(Duration::from_mins(1));
    let never = rig
        .cloud
        .inject(Fault::new("GetQueueAttributes", never).caller("feeder"));
    let mut killed = rig.begin(&["retry"]);
    eventually("the question to the queue", async || never.hits() > 0).await;
    killed.kill().await.unwrap();
    drop(never);
    assert_eq!((rig.counter("failed").await, rig.dead().await), (0, 20));
    let [one, other]: [Told; 2] =
        futures::future::join_all([rig.tell(&["retry"]), rig.tell(&["retry"])])
            .await
            .try_into()
            .unwrap_or_else(|_| panic!("two were asked for"));
    assert_eq!((one.code, other.code), (0, 0));
    assert_eq!((one.number("rows"), other.number("rows")), (0, 0));
    eventually("the dead letters to be back", async || {
        rig.dead().await == 0 && rig.visible().await >= 20
    })
    .await;
    for number in 0..20 {
        let key = format!("image/missing-{number}.png");
        rig.object("images-old", &key, b"found").await;
    }
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    let ended = rig.run("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop(consumer).await;
    assert_eq!(
        (rig.count("moves").await, rig.count("failures").await),
        (21, 0)
    );
    rig.counts_agree().await;
}

/// Sources go while consumers move what is left, rows that share a source with moved ones among it.
#[tokio::test]
async fn sources_go_while_consumers_are_at_work() {
    let rig = Rig::new().await;
    rig.moved(120).await;
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    // Forty rows more, each sharing a source that has been moved off and verified; forty of their own.
    for number in 0..40 {
        rig.row(&format!("image/{number}.png")).await;
        rig.image(&format!("image/new-{number}.png")).await;
    }
    let slow = rig.cloud.inject(slowly("CopyObject").caller("consumer"));
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on"), ("MAX_CONCURRENCY", "4")]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    eventually("the consumer to be at work", async || slow.hits() > 4).await;
    let moved = rig.count("moves").await;
    assert!(moved < 190, "it was too fast");
    let told = rig.tell(&CLEAN).await;
    assert!((0..=2).contains(&told.code), "{}", told.json);
    assert!(told.number("removed") >= 80, "{}", told.json);
    drop(slow);
    let ended = end(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop(consumer).await;
    assert_eq!(rig.count("failures").await, 0);
    // Every row resolves, and nothing is broken.
    let told = rig.tell(&["verify", "--full"]).await;
    assert_eq!(
        (told.code, told.number("mismatched")),
        (0, 0),
        "{}",
        told.json
    );
    assert_eq!(told.number("checked"), 200);
    rig.counts_agree().await;
}
