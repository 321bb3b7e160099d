//! Statements of the ledger that come later than what they rest on.

use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::move_ledger::{ChangedRow, MoveFailure, MoveLedger};
use bucket_brigade_common::row_id::RowId;

use crate::rig::TestRig;

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
