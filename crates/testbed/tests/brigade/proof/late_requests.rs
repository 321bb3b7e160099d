//! What was sent, or decided, before an operator's command, and arrives after it.

use std::time::Duration;

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove};
use bucket_brigade_testbed::cloud::FaultHandle;
use bucket_brigade_testbed::process::ChildProcess;
use bucket_brigade_testbed::{Fault, FaultEffect};

use super::{CLEAN_ORPHANS, age_requests};
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

/// Whose looks at objects are answered, whatever is held.
const ANOTHER: (&str, &str) = ("AWS_ACCESS_KEY_ID", "another");

/// A command's looks at an object are not answered until this is dropped, and its page waits: it gives each look up,
/// and looks anew.
fn hold_looks(rig: &TestRig, key: &str) -> FaultHandle {
    let never = FaultEffect::Delay(Duration::from_mins(5));
    let held = Fault::new("HeadObject", never).caller("feeder");
    rig.cloud.inject_fault(held.key_contains(key))
}

/// It has looked at the sources, and not yet at a copy, when a clean removes them.
#[tokio::test]
async fn a_rollback_that_lost_its_lock_sets_no_row_back_to_a_source_that_is_gone() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(VERIFY_AND_CLEAN[0]).await.code, 0);
    let held = hold_looks(&rig, "avatar/0.png");
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("the look at the copies", async || held.hits() > 0).await;
    end_sessions(&rig, "rollback").await;
    let mut clean = rig.spawn("feeder", &[ANOTHER], VERIFY_AND_CLEAN[1]);
    let cleaned = wait_for_exit(&mut clean).await;
    assert_eq!(cleaned.code, Some(0), "{}", cleaned.log);
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
    drop(held);
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
    rig.run_json_command(&CLEAN_ORPHANS).await;
    let mut late = PendingMove {
        id: ledger.id_type().parse(&ids[0]).unwrap(),
        old_path: "image/0.png".into(),
        new_path: "avatar/0.png".into(),
        destination_key: "avatar/0.png".into(),
        etag: "e".into(),
        size_bytes: None,
        is_source_gone: false,
        is_found: false,
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
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'bucket-brigade rollback' AND query LIKE '%virtualtransaction%'";
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

/// The raise of its fence comes late, or its lock was lost.
#[tokio::test]
async fn a_feeder_that_is_shut_out_ends() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    for loses_lock in [false, true] {
        let mut feeder = rig.spawn("feeder", &[("WATCH_INTERVAL", "1s")], &["--watch"]);
        let feeds = "SELECT count(*) FROM bucket_brigade.workers WHERE role = 'feeder'";
        wait_until("the feeder", async || rig.query_number(feeds).await == 1).await;
        rig.execute_sql("UPDATE bucket_brigade.run SET fence = fence + 1")
            .await;
        if loses_lock {
            end_sessions(&rig, "feeder").await;
        }
        let ended = wait_for_exit(&mut feeder).await;
        assert_eq!(ended.code, Some(75), "{}", ended.log);
        assert!(ended.log.contains("start it again"), "{}", ended.log);
        rig.execute_sql("DELETE FROM bucket_brigade.workers").await;
    }
}

/// Another rollback, a clean of orphans and a migration may have gone through meanwhile.
#[tokio::test]
async fn a_rollback_that_was_overtaken_ends() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    let held = hold_looks(&rig, "avatar/0.png");
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("the look at the copies", async || held.hits() > 0).await;
    end_sessions(&rig, "rollback").await;
    rig.execute_sql("UPDATE bucket_brigade.run SET fence = fence + 1")
        .await;
    drop(held);
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
}

/// Updates by one program stand still until the gate is open.
async fn add_gate(rig: &TestRig, program: &str) {
    rig.execute_sql(&format!(
        "CREATE TABLE gate (is_open boolean);
         CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.02); END LOOP; RETURN NEW; END $$;
         CREATE TRIGGER gate BEFORE UPDATE ON images FOR EACH ROW
            WHEN (current_setting('application_name') LIKE 'bucket-brigade {program}%')
            EXECUTE FUNCTION wait_at_gate()"
    ))
    .await;
}

async fn wait_until_at_gate(rig: &TestRig) {
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep'";
    wait_until("the update", async || rig.query_number(waits).await > 0).await;
}

/// Lets the clean go on, which must find that its locks are lost before it removes anything, and then the others.
async fn overtake(rig: &TestRig, clean: &ChildProcess, held: FaultHandle) {
    drop(held);
    wait_until("the clean to go on", async || {
        let log = clean.log_tail(50);
        log.contains("taking the lock anew") || log.contains("removed")
    })
    .await;
    rig.execute_sql("INSERT INTO gate VALUES (true)").await;
}

/// A feeder has taken the lock since, and a consumer is about to point rows at the copies.
#[tokio::test]
async fn a_clean_of_orphans_that_lost_its_locks_removes_no_copy_that_rows_come_to_name() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    add_gate(&rig, "consumer").await;
    let held = hold_looks(&rig, "avatar/0.png");
    let mut clean = rig.spawn("feeder", &[], &CLEAN_ORPHANS);
    wait_until("the look at the copies", async || held.hits() > 0).await;
    end_sessions(&rig, "clean").await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until_at_gate(&rig).await;
    overtake(&rig, &clean, held).await;
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    let ended = wait_for_exit(&mut clean).await;
    assert!(matches!(ended.code, Some(0 | 2)), "{}", ended.log);
    for (number, id) in ids.iter().enumerate() {
        let path = format!("avatar/{number}.png");
        assert_eq!(rig.path_of(id).await.unwrap(), path);
        assert!(rig.object_exists("images-new", &path).await, "{path}");
    }
    rig.assert_counts_agree().await;
}

/// A rollback has taken the lock since, and its update is not committed yet.
#[tokio::test]
async fn a_clean_that_lost_its_locks_removes_no_source_that_rows_go_back_to() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(VERIFY_AND_CLEAN[0]).await.code, 0);
    add_gate(&rig, "rollback").await;
    let held = hold_looks(&rig, "image/0.png");
    let mut clean = rig.spawn("feeder", &[], VERIFY_AND_CLEAN[1]);
    wait_until("the look at the sources", async || held.hits() > 0).await;
    end_sessions(&rig, "clean").await;
    let rollback = ["rollback", "--all", "--yes"];
    let mut rollback = rig.spawn("feeder", &[ANOTHER], &rollback);
    wait_until_at_gate(&rig).await;
    overtake(&rig, &clean, held).await;
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let ended = wait_for_exit(&mut clean).await;
    assert!(matches!(ended.code, Some(0 | 2)), "{}", ended.log);
    for (number, id) in ids.iter().enumerate() {
        let path = format!("image/{number}.png");
        assert_eq!(rig.path_of(id).await.unwrap(), path);
        assert!(rig.object_exists("images-old", &path).await, "{path}");
    }
    rig.assert_counts_agree().await;
}

/// Another table's rows are to become the same copies, or have been moved off the same sources.
#[tokio::test]
async fn what_a_clean_removes_or_may_still_remove_is_known_to_other_runs() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    rig.execute_sql("CREATE TABLE others (id bigint PRIMARY KEY, path text)")
        .await;
    let others = [("IMAGES_TABLE", "others")];
    assert_eq!(rig.run_program("feeder", &others).await.code, Some(0));
    assert_eq!(rig.run_json_command(VERIFY_AND_CLEAN[0]).await.code, 0);
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let never = rig.cloud.inject_fault(Fault::new("DeleteObjects", never));
    let mut killed = rig.spawn_json_command(VERIFY_AND_CLEAN[1]);
    wait_until("the request", async || never.hits() > 0).await;
    killed.kill().await.unwrap();
    let mut rollback = rig.spawn("feeder", &others, &["rollback", "--all", "--yes"]);
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("--orphans) of run 1"), "{}", ended.log);
    rig.execute_sql("DELETE FROM bucket_brigade.removals").await;
    let fence = "SELECT fence FROM bucket_brigade.run WHERE id = 2";
    let before = rig.query_number(fence).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    let hits = never.hits();
    let mut killed = rig.spawn_json_command(&CLEAN_ORPHANS);
    wait_until("the request", async || never.hits() > hits).await;
    killed.kill().await.unwrap();
    let ended = rig.run_program("feeder", &others).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    // What it had sent before is shut out.
    assert!(rig.query_number(fence).await > before);
}

/// The request that had no response may be carried out after the one that was sent again.
#[tokio::test]
async fn what_a_request_without_a_response_may_still_remove_stays_in_removal() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    let lost = Fault::new("DeleteObjects", FaultEffect::Reset).times(1);
    let lost = rig.cloud.inject_fault(lost);
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((lost.hits(), cleaned.code), (1, 2));
    assert_eq!(cleaned.number_of("left_alone"), 2);
    assert_eq!(rig.cloud.count_objects("images-new"), 0);
    let feeder = rig.run_program("feeder", &[]).await;
    assert_eq!(feeder.code, Some(75), "{}", feeder.log);
    // Another clean at once knows no more, and a plan says so.
    assert_eq!(rig.run_json_command(&CLEAN_ORPHANS).await.code, 2);
    let feeder = rig.run_program("feeder", &[]).await;
    assert_eq!(feeder.code, Some(75), "{}", feeder.log);
    assert_eq!(rig.run_feeder(&["plan"]).await.code, 1);
    age_requests(&rig).await;
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((cleaned.code, cleaned.number_of("removed")), (0, 2));
    rig.run_migration().await;
    assert_eq!(rig.count_rows("moves").await, 2);
}

/// Nothing was sent, or S3 has refused all of it: no feeder has to wait.
#[tokio::test]
async fn what_no_request_can_have_removed_does_not_stay_in_removal() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    let denied = Fault::new("DeleteObjects", FaultEffect::error(403, "AccessDenied"));
    let denied = rig.cloud.inject_fault(denied);
    let cleaned = rig.run_command(&CLEAN_ORPHANS).await;
    assert_eq!(cleaned.code, Some(77), "{}", cleaned.log);
    assert!(!cleaned.log.contains("half an hour"), "{}", cleaned.log);
    drop(denied);
    rig.run_migration().await;
    assert_eq!(rig.count_rows("moves").await, 2);
}

#[tokio::test]
async fn a_verify_misses_no_source_that_a_clean_may_have_removed() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(VERIFY_AND_CLEAN[0]).await.code, 0);
    let lost = Fault::new("DeleteObjects", FaultEffect::Reset).times(1);
    let _lost = rig.cloud.inject_fault(lost);
    let cleaned = rig.run_json_command(VERIFY_AND_CLEAN[1]).await;
    assert_eq!((cleaned.code, cleaned.number_of("left_alone")), (2, 2));
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
    let verified = rig.run_json_command(&["verify"]).await;
    assert_eq!((verified.code, verified.number_of("sound")), (0, 2));
    age_requests(&rig).await;
    let cleaned = rig.run_json_command(VERIFY_AND_CLEAN[1]).await;
    assert_eq!((cleaned.code, cleaned.number_of("removed")), (0, 2));
}

/// Where the server does not wait for its disk, a crash would bring back rows and forget the mark.
#[tokio::test]
async fn what_is_marked_survives_a_crash_of_the_server() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    rig.execute_sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF current_setting('synchronous_commit') = 'off' THEN RAISE 'not durable'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON bucket_brigade.removals FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((cleaned.code, cleaned.number_of("removed")), (0, 1));
}
