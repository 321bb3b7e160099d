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
        rollback.log_tail(50).contains("paused by an operator")
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
