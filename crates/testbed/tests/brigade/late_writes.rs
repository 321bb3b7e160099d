//! Statements of the ledger that come later than what they rest on.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::move_ledger::{ChangedRow, MoveFailure, MoveLedger};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::proof::CLEAN_ORPHANS;
use crate::rig::{TestRig, wait_until};

fn failure(id: &str, path: &str) -> MoveFailure {
    MoveFailure {
        id: RowId::from_database(id.into()),
        path: path.into(),
        code: "NoSuchKey".into(),
        message: "there is no such object".into(),
        permanent: true,
        orphan: None,
    }
}

/// The sweep may have passed the rows that are to be fed again.
#[tokio::test]
async fn a_sweep_during_which_failures_are_retried_is_not_the_last() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    let path = "image/missing.png";
    let id = rig.add_row(path).await;
    ledger.record_failures(&[failure(&id, path)]).await.unwrap();
    ledger.begin_sweep().await.unwrap();
    let retry = ["retry", "--code", "NoSuchKey", "--yes"];
    let retried = rig.run_json_command(&retry).await;
    assert_eq!(retried.number_of("rows"), 1, "{}", retried.json);
    assert!(!ledger.finish_run().await.unwrap());
    let finished = "SELECT count(*) FROM bucket_brigade.run WHERE finished_at IS NOT NULL";
    assert_eq!(rig.query_number(finished).await, 0);
    ledger.begin_sweep().await.unwrap();
    assert!(ledger.finish_run().await.unwrap());
    assert_eq!(rig.query_number(finished).await, 1);
}

/// A ledger that was made anew has another run of the number.
#[tokio::test]
async fn what_is_recorded_of_a_run_that_is_gone_is_not_recorded_of_its_successor() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    let path = "image/missing.png";
    let id = rig.add_row(path).await;
    rig.execute_sql("UPDATE bucket_brigade.run SET started_at = started_at + interval '1 second'")
        .await;
    ledger.record_failures(&[failure(&id, path)]).await.unwrap();
    let changed = ChangedRow {
        id: RowId::from_database(id),
        old_path: path.into(),
        new_path: "avatar/missing.png".into(),
        found_path: None,
        is_final: true,
        orphan: None,
    };
    ledger.record_changed_rows(&[changed]).await.unwrap();
    for table in ["failures", "changes"] {
        assert_eq!(rig.count_rows(table).await, 0, "{table}");
    }
}

/// What an earlier rollback set back, as it is where that was killed before it looked again.
async fn interrupt_rollback(rig: &TestRig, age: &str) {
    rig.execute_sql(&format!(
        "UPDATE bucket_brigade.rollbacks SET looked_at = NULL, rolled_back_at = now() - interval '{age}'"
    ))
    .await;
}

/// Long after, another row's image may stand in the copy's place.
#[tokio::test]
async fn a_rollback_that_was_cut_off_takes_no_later_image_for_a_replacement() {
    for (age, is_replaced) in [("0s", true), ("1 hour", false)] {
        let rig = TestRig::new().await;
        let id = rig.add_moved_images(1).await.remove(0);
        let back = ["rollback", "--all", "--yes"];
        assert_eq!(
            rig.run_json_command(&back).await.number_of("rolled_back"),
            1
        );
        rig.put_object("images-new", "avatar/0.png", b"another")
            .await;
        interrupt_rollback(&rig, age).await;
        rig.run_json_command(&back).await;
        let path = if is_replaced {
            "avatar/0.png"
        } else {
            "image/0.png"
        };
        assert_eq!(rig.path_of(&id).await.as_deref(), Some(path), "{age}");
        let unseen = "SELECT count(*) FROM bucket_brigade.rollbacks WHERE looked_at IS NULL";
        assert_eq!(rig.query_number(unseen).await, 0);
    }
}

#[tokio::test]
async fn a_copy_that_clean_has_removed_was_not_replaced() {
    let rig = TestRig::new().await;
    let id = rig.add_moved_images(1).await.remove(0);
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    interrupt_rollback(&rig, "0s").await;
    assert_eq!(
        rig.run_json_command(&CLEAN_ORPHANS)
            .await
            .number_of("removed"),
        1
    );
    rig.put_object("images-new", "avatar/0.png", b"another")
        .await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(rig.path_of(&id).await.as_deref(), Some("image/0.png"));
}

/// Otherwise it would look like the application's.
#[tokio::test]
async fn a_copy_that_verify_makes_is_on_record_at_once() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    for key in ["image/0.png", "image/1.png"] {
        rig.put_object("images-old", key, b"newer").await;
    }
    let stuck = FaultEffect::Delay(Duration::from_mins(1));
    let stuck = Fault::new("CopyObject", stuck).key_contains("1.png");
    let stuck = rig.cloud.inject_fault(stuck);
    let mut verify = rig.spawn("feeder", &[], &["verify", "--recopy"]);
    let recopied = "SELECT count(*) FROM bucket_brigade.moves WHERE recopied_at IS NOT NULL";
    wait_until("the copy", async || rig.query_number(recopied).await == 1).await;
    verify.kill().await.unwrap();
    drop(stuck);
    rig.put_object("images-old", "image/0.png", b"the newest")
        .await;
    let verified = rig.run_json_command(&["verify", "--anew"]).await;
    assert_eq!(verified.number_of("mismatched"), 2, "{}", verified.json);
    let verify = ["verify", "--recopy"];
    assert_eq!(rig.run_json_command(&verify).await.code, 0);
}
