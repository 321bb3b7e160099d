//! What was sent, or decided, before an operator's command, and arrives after it.

use std::time::Duration;

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove};
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const VERIFY_AND_CLEAN: [&[&str]; 2] = [
    &["verify"],
    &["clean", "--older-than", "0s", "--confirm", "images-old"],
];

/// As if the process had stood still for so long that the server gave its sessions up.
async fn end_sessions(rig: &TestRig, name: &str) {
    rig.execute_sql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = 'bucket-brigade {name}'"
    ))
    .await;
}

/// It has looked at the sources, and not yet at a copy, when a clean removes them.
#[tokio::test]
async fn a_rollback_that_lost_its_lock_sets_no_row_back_to_a_source_that_is_gone() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(VERIFY_AND_CLEAN[0]).await.code, 0);
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let held = Fault::new("HeadObject", never)
        .caller("feeder")
        .key_contains("avatar/");
    let held = rig.cloud.inject_fault(held.times(3));
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("the look at the copies", async || held.hits() == 3).await;
    end_sessions(&rig, "rollback").await;
    let cleaned = rig.run_json_command(VERIFY_AND_CLEAN[1]).await;
    assert_eq!((cleaned.code, cleaned.number_of("removed")), (0, 3));
    // The requests are given up, and made anew.
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    for (number, id) in ids.iter().enumerate() {
        let path = rig.path_of(id).await.unwrap();
        assert_eq!(path, format!("avatar/{number}.png"));
    }
    assert_eq!(rig.count_rows("moves").await, 3);
    rig.assert_counts_agree().await;
}

/// The row went back, and its copy may be gone.
#[tokio::test]
async fn a_commit_that_arrives_after_a_rollback_moves_nothing() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    let ledger = rig.open_run().await;
    let before = ledger.read_fence().await.unwrap();
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    rig.run_json_command(&["clean", "--orphans", "--confirm", "images-new"])
        .await;
    let mut late = PendingMove {
        id: ledger.id_type().parse(&ids[0]).unwrap(),
        old_path: "image/0.png".into(),
        new_path: "avatar/0.png".into(),
        destination_key: "avatar/0.png".into(),
        etag: "e".into(),
        size_bytes: None,
        is_source_gone: false,
        companions: CompanionCopies::new(),
        fence: before,
    };
    assert!(ledger.commit(&[&late]).await.unwrap().is_empty());
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
    late.fence = ledger.read_fence().await.unwrap();
    assert!(late.fence > before);
    assert_eq!(ledger.commit(&[&late]).await.unwrap().len(), 1);
}

/// It began before the fence was raised, and its rows are not written yet.
#[tokio::test]
async fn a_rollback_waits_for_the_commit_of_a_killed_consumer() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    let mut statement = rig.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE bucket_brigade.moves IN ROW EXCLUSIVE MODE")
        .execute(&mut *statement)
        .await
        .unwrap();
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bucket-brigade rollback'
        AND query LIKE '%virtualtransaction%'";
    wait_until("the rollback to wait", async || {
        rig.query_number(waits).await > 0
    })
    .await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    statement.commit().await.unwrap();
    assert_eq!(wait_for_exit(&mut rollback).await.code, Some(0));
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
}

/// It may know nothing of the rollback for as long as it is cut off.
#[tokio::test]
async fn what_a_feeder_sends_that_was_cut_off_during_a_rollback_moves_nothing() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    rig.feed_row(&ids[0], "image/0.png").await;
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    rig.feed_row(&ids[0], "image/0.png").await;
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
    assert_eq!(rig.count_rows("moves").await, 0);
    assert_eq!(rig.count_rows("failures").await, 0);
    rig.assert_counts_agree().await;
    stop_consumer(consumer).await;
    rig.run_migration().await;
    assert_eq!(rig.count_rows("moves").await, 2);
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn a_feeder_ends_where_a_rollback_went_through_while_its_connection_was_lost() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    let watch = [("WATCH_INTERVAL", "1s")];
    let mut feeder = rig.spawn("feeder", &watch, &["--watch"]);
    let feeds = "SELECT count(*) FROM bucket_brigade.workers WHERE role = 'feeder'";
    wait_until("the feeder", async || rig.query_number(feeds).await == 1).await;
    // Its lock goes with its session, and it takes none while a rollback has it.
    rig.execute_sql("UPDATE bucket_brigade.run SET fence = fence + 1")
        .await;
    end_sessions(&rig, "feeder").await;
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(
        ended.log.contains("start the feeder again"),
        "{}",
        ended.log
    );
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
}
