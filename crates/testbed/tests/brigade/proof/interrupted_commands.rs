//! Killed in the middle, and begun again.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::cloud::FaultHandle;
use bucket_brigade_testbed::process::{ChildProcess, Signal};
use bucket_brigade_testbed::{Fault, FaultEffect};

use super::{CLEAN_ORPHANS, age_requests};
use crate::rig::{TestRig, wait_for_exit, wait_until};

/// More than two pages of each command.
const ROWS: usize = 2100;

/// Nothing is answered of one copy, that of the row with so many moves before it: its page and those after it are
/// not recorded.
async fn hold_copy_of_row(rig: &TestRig, moves_before: usize) -> FaultHandle {
    let id = format!(
        "SELECT row_id::bigint - 1 FROM bucket_brigade.moves m ORDER BY m.row_id OFFSET {moves_before} LIMIT 1"
    );
    let copy = format!("avatar/{}.png", rig.query_number(&id).await);
    let never = FaultEffect::Delay(Duration::from_mins(5));
    rig.cloud.inject_fault(
        Fault::new("HeadObject", never)
            .caller("feeder")
            .key_contains(copy),
    )
}

/// Kills it, and waits for its session's end: in the middle of a statement the server notices later.
async fn kill_command(rig: &TestRig, command: &mut ChildProcess) {
    command.kill().await.unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name IN ('bucket-brigade verify', 'bucket-brigade rollback', 'bucket-brigade clean')";
    wait_until("its sessions to end", async || {
        rig.query_number(sessions).await == 0
    })
    .await;
}

#[tokio::test]
async fn a_stop_ends_what_waits_for_a_store_that_does_not_answer() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let never = FaultEffect::Delay(Duration::from_mins(5));
    for operation in ["HeadBucket", "HeadObject"] {
        for arguments in [
            &["verify", "--full"][..],
            &["verify", "--recopy"],
            &["rollback", "--all", "--yes"],
            &["clean", "--older-than", "0s", "--confirm", "images-old"],
        ] {
            let silence = Fault::new(operation, never.clone()).caller("feeder");
            let silence = rig.cloud.inject_fault(silence);
            let mut command = rig.spawn("feeder", &[], arguments);
            wait_until("the request", async || silence.hits() > 0).await;
            let began = Instant::now();
            command.send_signal(Signal::INT).unwrap();
            let ended = wait_for_exit(&mut command).await;
            let took = began.elapsed();
            assert_eq!(ended.code, Some(3), "{arguments:?}: {}", ended.log);
            assert!(
                took < Duration::from_secs(5),
                "{operation} of {arguments:?}: {took:?}"
            );
        }
    }
    assert_eq!(rig.count_rows("moves").await, 3);
    assert_eq!(rig.count_rows("removals").await, 0);
}

#[tokio::test]
async fn a_verify_goes_on_where_it_was() {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(ROWS).await;
    rig.delete_object("images-new", "avatar/0.png").await;
    let held = hold_copy_of_row(&rig, 1000).await;
    let mut verify = rig.spawn_json_command(&["verify"]);
    let checked = "SELECT checked FROM bucket_brigade.verifications";
    wait_until("the first page", async || {
        rig.query_number(checked).await == 1000
    })
    .await;
    kill_command(&rig, &mut verify).await;
    drop(held);
    let before = rig
        .cloud
        .request_counts()
        .count_operation_by("feeder", "HeadObject");
    // What the next one looks at is what is left.
    let result = rig.run_json_command(&["verify"]).await;
    assert_eq!(
        (
            result.code,
            result.number_of("checked"),
            result.number_of("mismatched")
        ),
        (1, 2100, 1)
    );
    let looks = rig
        .cloud
        .request_counts()
        .count_operation_by("feeder", "HeadObject")
        - before;
    assert_eq!(looks, 2 * 1100);
    // Asked for something else, it begins anew; and stopped in good order, it says so.
    let result = rig.run_json_command(&["verify", "--sample", "10"]).await;
    let sample = result.number_of("checked");
    assert!(
        (100..400).contains(&sample),
        "{sample} of 2100 in a sample of 10 %"
    );
    let held = hold_copy_of_row(&rig, 1000).await;
    let mut verify = rig.spawn("feeder", &[], &["verify"]);
    wait_until("the first page", async || {
        rig.query_number(checked).await == 1000
    })
    .await;
    verify.terminate().unwrap();
    let ended = wait_for_exit(&mut verify).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    drop(held);
    let result = rig.run_json_command(&["verify", "--anew"]).await;
    assert_eq!(result.number_of("checked"), 2100);
}

#[tokio::test]
async fn a_rollback_goes_on_with_what_is_left() {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(600).await;
    let held = hold_copy_of_row(&rig, 300).await;
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("some rows", async || rig.count_rows("rollbacks").await > 0).await;
    kill_command(&rig, &mut rollback).await;
    drop(held);
    let back = rig.count_rows("rollbacks").await;
    assert!(back < 600, "the row that was held went back");
    assert_eq!(rig.count_rows("moves").await, 600 - back);
    rig.assert_counts_agree().await;
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(
        (result.code, result.number_of("rolled_back")),
        (0, 600 - back)
    );
    let old = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!(
        (rig.query_number(old).await, rig.count_rows("moves").await),
        (600, 0)
    );
    rig.assert_counts_agree().await;
}

/// The application replaces an image while its row goes back, and the rollback is killed before its second
/// look at the copy: the next one looks.
#[tokio::test]
async fn an_image_replaced_in_the_moment_of_the_kill_is_reported_by_the_next_rollback() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    let late = FaultEffect::DelayedResponse(Duration::from_secs(1));
    let first_look = Fault::new("HeadObject", late).caller("feeder");
    let first_look = rig
        .cloud
        .inject_fault(first_look.key_contains("avatar/0").times(1));
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let second_look = Fault::new("HeadObject", never).caller("feeder");
    let second_look = rig.cloud.inject_fault(second_look.key_contains("avatar/0"));
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("the look at the copy", async || first_look.hits() > 0).await;
    // As the application does it: the object, then the row, which names it already.
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.set_path(&ids[0], "avatar/0.png").await;
    wait_until("the second look", async || second_look.hits() > 0).await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
    kill_command(&rig, &mut rollback).await;
    drop(second_look);
    // Another selection does as well.
    let result = rig
        .run_json_command(&["rollback", "--ids", &ids[1], "--yes"])
        .await;
    assert_eq!(
        result.field_of("left_alone", &ids[0], "reason"),
        "copy_replaced"
    );
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.path_of(&ids[2]).await.unwrap(), "image/2.png");
    let unseen = "SELECT count(*) FROM bucket_brigade.rollbacks WHERE looked_at IS NULL";
    assert_eq!(rig.query_number(unseen).await, 0);
    rig.assert_counts_agree().await;
    rig.run_migration().await;
    assert_eq!(rig.count_rows("failures").await, 0);
}

/// The objects are gone, and the process that removed them died before it recorded that.
#[tokio::test]
async fn a_clean_writes_down_what_the_one_before_it_removed() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let late = FaultEffect::DelayedResponse(Duration::from_mins(1));
    let late = rig.cloud.inject_fault(Fault::new("DeleteObjects", late));
    let mut killed = rig.spawn_json_command(&clean);
    wait_until("the removal", async || {
        !rig.object_exists("images-old", "image/0.png").await
    })
    .await;
    kill_command(&rig, &mut killed).await;
    drop(late);
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(
        result.field_of("left_alone", &ids[0], "reason"),
        "source_in_removal"
    );
    // Meanwhile a row came to name one of them.
    rig.set_path(&ids[1], "image/1.png").await;
    // Nor is it known at once whether another request of the killed one is under way.
    for (removed, left) in [(0, 3), (2, 1)] {
        let result = rig.run_json_command(&clean).await;
        let counts = (result.number_of("removed"), result.number_of("left_alone"));
        assert_eq!(
            (result.code, counts),
            (2, (removed, left)),
            "{}",
            result.json
        );
        age_requests(&rig).await;
    }
    assert!(
        rig.object_exists("images-old", "image/1.png").await,
        "brought back"
    );
    let removed = "SELECT count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL";
    assert_eq!(rig.query_number(removed).await, 2);
}

/// Killed before the request: what was only intended is done by the next.
#[tokio::test]
async fn a_clean_does_what_the_one_before_it_intended() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let never = rig.cloud.inject_fault(Fault::new("DeleteObjects", never));
    let mut killed = rig.spawn_json_command(&clean);
    wait_until("the request", async || never.hits() > 0).await;
    kill_command(&rig, &mut killed).await;
    drop(never);
    let intended = "SELECT count(*) FROM bucket_brigade.removals WHERE removing_at IS NOT NULL";
    assert_eq!(rig.query_number(intended).await, 3);
    // One that asks for older moves only takes the intention back, once S3 cannot carry it out any more.
    let older = ["clean", "--older-than", "1h", "--confirm", "images-old"];
    for left in [3, 0] {
        let result = rig.run_json_command(&older).await;
        assert_eq!(
            (
                result.code,
                result.number_of("removed"),
                result.number_of("left_alone")
            ),
            (2, 0, 3)
        );
        assert_eq!(rig.query_number(intended).await, left);
        if left > 0 {
            let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
            let reason = result.field_of("left_alone", &ids[0], "reason");
            assert_eq!(reason, "source_in_removal");
        }
        age_requests(&rig).await;
    }
    let result = rig.run_json_command(&clean).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 3));
}

/// More than a page stays each time: the next clean does not begin with it.
#[tokio::test]
async fn a_clean_goes_on_where_it_was_and_looks_at_the_rest_last() {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(1300).await;
    // In the order of paths the first thousand are no objects that were verified.
    rig.execute_sql(
        "UPDATE bucket_brigade.moves SET verified_at = clock_timestamp(), source_etag = etag;
         UPDATE bucket_brigade.moves SET source_etag = 'another' WHERE old_path <=
             (SELECT old_path FROM bucket_brigade.moves ORDER BY old_path OFFSET 999 LIMIT 1)",
    )
    .await;
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let never = rig.cloud.inject_fault(Fault::new("DeleteObjects", never));
    let mut killed = rig.spawn_json_command(&clean);
    wait_until("the first page and the second's request", async || {
        never.hits() > 0 && rig.count_rows("command_cursors").await == 1
    })
    .await;
    kill_command(&rig, &mut killed).await;
    drop(never);
    age_requests(&rig).await;
    let cursor = "SELECT (cursor = (SELECT old_path FROM bucket_brigade.moves
        ORDER BY old_path OFFSET 999 LIMIT 1))::integer::bigint FROM bucket_brigade.command_cursors";
    assert_eq!(rig.query_number(cursor).await, 1);
    let result = rig.run_json_command(&clean).await;
    assert_eq!(
        (
            result.code,
            result.number_of("removed"),
            result.number_of("left_alone")
        ),
        (2, 300, 1000)
    );
    let objects = result.json["objects"].as_array().unwrap();
    assert!(
        objects[..300]
            .iter()
            .all(|object| object["removed"] == true)
    );
    assert_eq!(rig.count_rows("command_cursors").await, 0);
    // Asked for something else, it begins at the beginning.
    assert_eq!(
        rig.run_json_command(&clean).await.number_of("left_alone"),
        1000
    );
}

#[tokio::test]
async fn a_rollback_of_all_goes_on_where_it_was_and_looks_at_the_rest_last() {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(900).await;
    rig.execute_sql("UPDATE images SET path = 'elsewhere/' || id WHERE id::text < '2'")
        .await;
    let changed = "SELECT count(*) FROM images WHERE path LIKE 'elsewhere/%'";
    let changed = rig.query_number(changed).await;
    let held = hold_copy_of_row(&rig, 700).await;
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("a cursor", async || {
        rig.count_rows("command_cursors").await == 1 && rig.count_rows("rollbacks").await > 0
    })
    .await;
    kill_command(&rig, &mut rollback).await;
    drop(held);
    let back = rig.count_rows("rollbacks").await;
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(
        (result.code, result.number_of("rolled_back")),
        (2, 900 - changed - back)
    );
    assert_eq!(result.json["left_alone_by_reason"]["changed"], changed);
    assert_eq!(rig.count_rows("command_cursors").await, 0);
    rig.assert_counts_agree().await;
}

/// A rollback made orphans of the copies. What would be copied anew has the same ETag, and the request that may still
/// be under way would remove it.
#[tokio::test]
async fn no_row_is_pointed_at_an_orphan_whose_removal_may_be_under_way() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let never = rig.cloud.inject_fault(Fault::new("DeleteObjects", never));
    let mut killed = rig.spawn_json_command(&CLEAN_ORPHANS);
    wait_until("the request", async || never.hits() > 0).await;
    kill_command(&rig, &mut killed).await;
    drop(never);
    let feeder = rig.run_program("feeder", &[]).await;
    assert_eq!(feeder.code, Some(75), "{}", feeder.log);
    assert!(feeder.log.contains("--orphans) of run 1"), "{}", feeder.log);
    let retry = rig.run_command(&["retry", "--yes"]).await;
    assert_eq!(retry.code, Some(75), "{}", retry.log);
    for left in [3, 0] {
        let result = rig.run_json_command(&CLEAN_ORPHANS).await;
        let (removed, kept) = (result.number_of("removed"), result.number_of("left_alone"));
        assert_eq!((removed, kept), (3 - left, left), "{}", result.json);
        age_requests(&rig).await;
    }
    rig.run_migration().await;
    assert_eq!(rig.count_rows("moves").await, 3);
}

/// Its client is dead, and the server carries it out when the lock that it waits for is free.
#[tokio::test]
async fn a_clean_waits_for_what_a_killed_rollback_left_behind() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let mut statement = rig.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE bucket_brigade.rollbacks IN ROW EXCLUSIVE MODE")
        .execute(&mut *statement)
        .await
        .unwrap();
    let mut clean =
        rig.spawn_json_command(&["clean", "--older-than", "0s", "--confirm", "images-old"]);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'bucket-brigade clean' AND query LIKE '%virtualtransaction%'";
    wait_until("the clean to wait", async || {
        rig.query_number(waits).await > 0
    })
    .await;
    sqlx::query("UPDATE images SET path = 'image/0.png' WHERE id::text = $1")
        .bind(&ids[0])
        .execute(&mut *statement)
        .await
        .unwrap();
    statement.commit().await.unwrap();
    assert_eq!(wait_for_exit(&mut clean).await.code, Some(2));
    assert!(rig.object_exists("images-old", "image/0.png").await);
    assert!(!rig.object_exists("images-old", "image/1.png").await);
}

/// All went back, and the second look at one copy is refused: that row is named, and looked at by the next rollback.
#[tokio::test]
async fn a_copy_that_cannot_be_read_again_delays_its_own_row_alone() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(4).await;
    let first = Fault::new("HeadObject", FaultEffect::Delay(Duration::ZERO)).caller("feeder");
    let first = rig
        .cloud
        .inject_fault(first.key_contains("avatar/1").times(1));
    let denied = Fault::new("HeadObject", FaultEffect::error(403, "AccessDenied"));
    let denied = rig
        .cloud
        .inject_fault(denied.caller("feeder").key_contains("avatar/1"));
    for (code, rolled_back) in [(2, 3), (2, 0)] {
        let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
        let reason = result.field_of("left_alone", &ids[1], "reason");
        assert_eq!(
            (result.code, result.number_of("rolled_back"), reason),
            (code, rolled_back, "unreadable".into()),
            "{}",
            result.json
        );
        assert!(first.hits() == 1 && denied.hits() > 0);
    }
    drop(denied);
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(result.code, 0);
    let unseen = "SELECT count(*) FROM bucket_brigade.rollbacks WHERE looked_at IS NULL";
    assert_eq!(rig.query_number(unseen).await, 0);
    let old = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!(rig.query_number(old).await, 4);
}
