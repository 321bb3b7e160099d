//! Two at once: a command twice, or a command beside what would fight it.

use std::time::Duration;

use bucket_brigade_testbed::{Fault, FaultEffect};

use super::JsonCommandOutput;
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];
const ROLLBACK: [&str; 3] = ["rollback", "--all", "--yes"];

/// Longer than a command waits for another's lock.
fn slow_fault(operation: &str) -> Fault {
    Fault::new(operation, FaultEffect::Delay(Duration::from_secs(4)))
}

/// Begins `first`, and `second` once the first is under way: one of them does the work, the other is result.
async fn assert_second_is_refused(rig: &TestRig, first: &[&str], second: &[&str]) {
    let slow = rig
        .cloud
        .inject_fault(slow_fault("HeadObject").caller("feeder"));
    let mut at_work = rig.spawn_json_command(first);
    wait_until("the first to be at work", async || slow.hits() > 0).await;
    let refused = rig.run_command(second).await;
    assert_eq!(refused.code, Some(75), "{second:?}: {}", refused.log);
    drop(slow);
    let ended = wait_for_exit(&mut at_work).await;
    assert_eq!(ended.code, Some(0), "{first:?}: {}", ended.log);
}

#[tokio::test]
async fn commands_that_prove_undo_and_clean_keep_each_other_out() {
    let rig = TestRig::new().await;
    rig.add_moved_images(200).await;
    for second in [&["verify"][..], &ROLLBACK, &CLEAN, &["rollback", "--all"]] {
        assert_second_is_refused(&rig, &["verify"], second).await;
    }
    assert_second_is_refused(&rig, &ROLLBACK, &ROLLBACK).await;
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("rollbacks").await
        ),
        (0, 200)
    );
    rig.run_migration().await;
    assert_second_is_refused(&rig, &["verify"], &CLEAN).await;
    assert_second_is_refused(&rig, &CLEAN, &CLEAN).await;
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn a_feeder_that_comes_while_rows_go_back_is_turned_away() {
    let rig = TestRig::new().await;
    rig.add_moved_images(250).await;
    let slow = rig
        .cloud
        .inject_fault(slow_fault("HeadObject").caller("feeder"));
    let mut rollback = rig.spawn_json_command(&ROLLBACK);
    wait_until("the rollback", async || slow.hits() > 0).await;
    let refused = rig.run_program("feeder", &[]).await;
    assert_eq!(refused.code, Some(75), "{}", refused.log);
    drop(slow);
    assert_eq!(wait_for_exit(&mut rollback).await.code, Some(0));
    let back = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!(rig.query_number(back).await, 250);
    rig.run_migration().await;
    assert_eq!(
        (rig.query_number(back).await, rig.count_rows("moves").await),
        (0, 250)
    );
}

/// Dead letters that come back while rows go back would move some of them again.
#[tokio::test]
async fn messages_that_arrive_stop_a_rollback_before_its_next_page() {
    let rig = TestRig::new().await;
    rig.add_moved_images(450).await;
    let never = FaultEffect::Delay(Duration::from_mins(5));
    let held = Fault::new("HeadObject", never).caller("feeder");
    let held = rig.cloud.inject_fault(held);
    let mut rollback = rig.spawn_json_command(&ROLLBACK);
    wait_until("the first page", async || held.hits() > 0).await;
    rig.send_message("a dead letter that came back").await;
    // That is longer than the queue is not looked at again.
    wait_until("looks to be given up", async || held.hits() > 64).await;
    drop(held);
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(
        ended.log.contains("1 message waits in the queue"),
        "{}",
        ended.log
    );
    let back = rig.count_rows("rollbacks").await;
    assert!((1..450).contains(&back), "{back}");
    rig.assert_counts_agree().await;
    // Once the queue is empty again, the same command goes on.
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("the dead letter to die again", async || {
        rig.dead_letters().await == 1
    })
    .await;
    stop_consumer(consumer).await;
    let result = rig.run_json_command(&ROLLBACK).await;
    assert_eq!(
        (result.code, result.number_of("rolled_back")),
        (0, 450 - back)
    );
}

#[tokio::test]
async fn retries_at_once_and_retries_cut_off_count_each_row_once() {
    let rig = TestRig::new().await;
    for number in 0..20 {
        rig.add_row(&format!("image/missing-{number}.png")).await;
    }
    rig.add_image("image/there.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(2));
    wait_until("the dead letters", async || rig.dead_letters().await == 20).await;
    stop_consumer(consumer).await;
    // Killed after it took the failures off the record, and before the dead letters were sent back.
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let never = rig
        .cloud
        .inject_fault(Fault::new("StartMessageMoveTask", never).caller("feeder"));
    let mut killed = rig.spawn_json_command(&["retry", "--yes"]);
    wait_until("the question to the queue", async || never.hits() > 0).await;
    killed.kill().await.unwrap();
    drop(never);
    assert_eq!(
        (rig.ledger_counter("failed").await, rig.dead_letters().await),
        (0, 20)
    );
    let [one, other]: [JsonCommandOutput; 2] = futures::future::join_all([
        rig.run_json_command(&["retry", "--yes"]),
        rig.run_json_command(&["retry", "--yes"]),
    ])
    .await
    .try_into()
    .unwrap_or_else(|_| panic!("two were asked for"));
    assert_eq!((one.code, other.code), (0, 0));
    assert_eq!((one.number_of("rows"), other.number_of("rows")), (0, 0));
    wait_until("the dead letters to be back", async || {
        rig.dead_letters().await == 0 && rig.visible_messages().await >= 20
    })
    .await;
    for number in 0..20 {
        let key = format!("image/missing-{number}.png");
        rig.put_object("images-old", &key, b"found").await;
    }
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("failures").await
        ),
        (21, 0)
    );
    rig.assert_counts_agree().await;
}

/// Sources go while consumers move what is left, rows that share a source with moved ones among it.
#[tokio::test]
async fn sources_go_while_consumers_are_at_work() {
    let rig = TestRig::new().await;
    rig.add_moved_images(120).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    // Forty rows more, each sharing a source that has been moved off and verified; forty of their own.
    for number in 0..40 {
        rig.add_row(&format!("image/{number}.png")).await;
        rig.add_image(&format!("image/new-{number}.png")).await;
    }
    let slow = rig
        .cloud
        .inject_fault(slow_fault("CopyObject").caller("consumer"));
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on"), ("MAX_CONCURRENCY", "4")]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the consumer to be at work", async || slow.hits() > 4).await;
    let moved = rig.count_rows("moves").await;
    assert!(moved < 190, "it was too fast");
    let result = rig.run_json_command(&CLEAN).await;
    assert!((0..=2).contains(&result.code), "{}", result.json);
    assert!(result.number_of("removed") >= 80, "{}", result.json);
    drop(slow);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("failures").await, 0);
    // Every row resolves, and nothing is broken.
    let result = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(
        (result.code, result.number_of("mismatched")),
        (0, 0),
        "{}",
        result.json
    );
    assert_eq!(result.number_of("checked"), 200);
    rig.assert_counts_agree().await;
}
