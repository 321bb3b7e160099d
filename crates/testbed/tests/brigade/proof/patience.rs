//! verify, rollback and clean wait for what passes: an operator's pause, a database that was away.

use std::time::Duration;

use bucket_brigade_testbed::process::ChildProcess;
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, wait_for_exit, wait_until};

const ROLLBACK: [&str; 3] = ["rollback", "--all", "--yes"];
const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

/// Begins a command, each of whose requests takes a while.
async fn begin_slowly(rig: &TestRig, arguments: &[&str]) -> (ChildProcess, impl Sized) {
    let slow = FaultEffect::Delay(Duration::from_millis(300));
    let slow = rig
        .cloud
        .inject_fault(Fault::new("HeadObject", slow).caller("feeder"));
    let process = rig.spawn("feeder", &[], arguments);
    wait_until("the command to be at work", async || slow.hits() > 0).await;
    (process, slow)
}

async fn terminate_sessions(rig: &TestRig, command: &str) {
    let ended = rig
        .query_number(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
              WHERE datname = current_database() AND application_name = 'bucket-brigade {command}'"
        ))
        .await;
    assert!(ended > 0, "no session of {command}");
}

#[tokio::test]
async fn sessions_that_the_database_ends_are_made_anew() {
    let rig = TestRig::new().await;
    rig.add_moved_images(450).await;
    for (command, arguments) in [("verify", &["verify"][..]), ("rollback", &ROLLBACK)] {
        let (mut process, slow) = begin_slowly(&rig, arguments).await;
        terminate_sessions(&rig, command).await;
        let log = wait_for_exit(&mut process).await;
        assert_eq!(log.code, Some(0), "{command}: {}", log.log);
        drop(slow);
    }
    assert_eq!(rig.count_rows("rollbacks").await, 450);
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let (mut process, _slow) = begin_slowly(&rig, &CLEAN).await;
    terminate_sessions(&rig, "clean").await;
    let ended = wait_for_exit(&mut process).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn a_pause_stops_a_rollback_between_two_pages() {
    let rig = TestRig::new().await;
    rig.add_moved_images(450).await;
    let (mut rollback, slow) = begin_slowly(&rig, &ROLLBACK).await;
    assert_eq!(rig.run_feeder(&["pause"]).await.code, 0);
    wait_until("the pause", async || {
        rollback.log_tail(50).contains("paused by ")
    })
    .await;
    drop(slow);
    let back = rig.count_rows("rollbacks").await;
    assert!((1..450).contains(&back), "{back}");
    assert_eq!(rig.run_feeder(&["resume"]).await.code, 0);
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("rollbacks").await, 450);
    // A fleet that was paused before is paused for the command.
    assert_eq!(rig.run_feeder(&["pause"]).await.code, 0);
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
}

/// The fleet is paused for the command, and paused once more: now the command is meant.
#[tokio::test]
async fn a_second_pause_stops_the_commands_that_the_first_let_work() {
    let rig = TestRig::new().await;
    rig.add_moved_images(450).await;
    let commands = [
        ("verify", &["verify", "--concurrency", "8"][..]),
        (
            "rollback",
            &["rollback", "--all", "--yes", "--concurrency", "8"],
        ),
    ];
    for (command, arguments) in commands {
        assert_eq!(rig.run_feeder(&["pause"]).await.code, 0);
        let (mut process, slow) = begin_slowly(&rig, arguments).await;
        let status = rig.feeder_json(&["status", "--json"]).await;
        let worker = &status["workers"][0];
        assert_eq!(worker["role"], command, "{status}");
        assert_eq!(worker["state"], "running", "{status}");
        assert_eq!(rig.run_feeder(&["pause"]).await.code, 0);
        wait_until("the pause", async || {
            process.log_tail(50).contains("paused by ") || {
                let status = rig.feeder_json(&["status", "--json"]).await;
                status["workers"][0]["state"] == "paused"
            }
        })
        .await;
        drop(slow);
        // All of a verify of so few is under way already.
        if command == "rollback" {
            wait_until("four pages", async || {
                rig.count_rows("rollbacks").await >= 400
            })
            .await;
            assert!(process.exit_status().unwrap().is_none());
            assert_eq!(rig.count_rows("rollbacks").await, 400);
        }
        assert_eq!(rig.run_feeder(&["resume"]).await.code, 0);
        let ended = wait_for_exit(&mut process).await;
        assert_eq!(ended.code, Some(0), "{command}: {}", ended.log);
        let status = rig.feeder_json(&["status", "--json"]).await;
        assert_eq!(status["workers"].as_array().unwrap().len(), 0, "{status}");
    }
    assert_eq!(rig.count_rows("rollbacks").await, 450);
}

#[tokio::test]
async fn a_rate_limit_holds_for_a_rollback() {
    let rig = TestRig::new().await;
    rig.add_moved_images(150).await;
    assert_eq!(rig.run_feeder(&["limit", "--rate", "40"]).await.code, 0);
    let began = std::time::Instant::now();
    assert_eq!(rig.run_json_command(&ROLLBACK).await.code, 0);
    assert!(
        began.elapsed() > Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let no_replica = [("MAX_REPLICA_LAG", "5s"), ("MAX_COMMIT_LATENCY", "1h")];
    let mut verify = rig.spawn("feeder", &no_replica, &["verify"]);
    let ended = wait_for_exit(&mut verify).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

/// A page of failures at a time: a million of them fall into no statement.
#[tokio::test]
async fn failures_are_retried_page_by_page() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
         SELECT 1, n::text, 'image/' || n, CASE WHEN n % 5 = 0 THEN 'AccessDenied' ELSE 'NoSuchKey' END, 'no', true
           FROM generate_series(1, 9000) n;
         INSERT INTO bucket_brigade.counters (run_id, worker, failed) VALUES (1, 'test', 9000);
         CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF (SELECT count(*) FROM gone) > 2000 THEN RAISE 'too many at once'; END IF; RETURN NULL; END $$;
         CREATE TRIGGER few AFTER DELETE ON bucket_brigade.failures REFERENCING OLD TABLE AS gone
             FOR EACH STATEMENT EXECUTE FUNCTION few()",
    )
    .await;
    let retry = ["retry", "--code", "AccessDenied", "--yes"];
    let result = rig.run_json_command(&retry).await;
    assert_eq!((result.code, result.number_of("rows")), (0, 1800));
    let result = rig.run_json_command(&["retry", "--yes"]).await;
    assert_eq!((result.code, result.number_of("rows")), (0, 7200));
    rig.assert_counts_agree().await;
}

/// Nothing was asked to go: the rows can go back.
#[tokio::test]
async fn a_clean_that_may_not_delete_leaves_no_intention_behind() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let denied = || Fault::new("DeleteObject", FaultEffect::error(403, "AccessDenied"));
    let _one = rig.cloud.inject_fault(denied().caller("feeder"));
    let many = Fault::new("DeleteObjects", FaultEffect::error(403, "AccessDenied"));
    let _many = rig.cloud.inject_fault(many.caller("feeder"));
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((result.code, result.number_of("rolled_back")), (0, 3));
}
