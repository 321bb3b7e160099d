//! clean --orphans: copies that lost their row.

use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::{MoveFailure, MoveLedger as _, OrphanedCopy};
use bucket_brigade_testbed::{Fault, FaultEffect};

use super::CLEAN_ORPHANS;
use crate::rig::{TestRig, sha256, stop_consumer, wait_until};

/// Images whose rows are deleted while they are copied.
async fn orphans(rig: &TestRig, count: usize) {
    rig.open_run().await;
    let ids = rig.add_images(count).await;
    let slow = FaultEffect::Delay(Duration::from_secs(1));
    let slow = rig.cloud.inject_fault(Fault::new("CopyObject", slow));
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let expected = u64::try_from(count).unwrap();
    wait_until("the copies to start", async || slow.hits() == expected).await;
    rig.execute_sql("DELETE FROM images").await;
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    assert_eq!(
        rig.count_rows("orphans").await,
        i64::try_from(count).unwrap()
    );
}

#[tokio::test]
async fn only_our_own_copies_that_no_row_names_are_deleted() {
    let rig = TestRig::new().await;
    orphans(&rig, 4).await;
    rig.put_object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.add_row("avatar/2.png").await;
    rig.delete_object("images-new", "avatar/3.png").await;
    let result = rig
        .run_json_command(&["clean", "--orphans", "--older-than", "0s"])
        .await;
    assert_eq!((result.code, result.number_of("objects")), (0, 4));
    let ended = rig
        .run_command(&[
            "clean",
            "--orphans",
            "--older-than",
            "0s",
            "--confirm",
            "images-old",
        ])
        .await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    let result = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!(
        (
            result.code,
            result.number_of("removed"),
            result.number_of("left_alone")
        ),
        (2, 2, 2)
    );
    assert!(!rig.object_exists("images-new", "avatar/0.png").await);
    assert_eq!(
        rig.destination_sha256("avatar/1.png").await.unwrap(),
        sha256(b"the application's")
    );
    // That a row names it is no finding the next time.
    assert!(rig.object_exists("images-new", "avatar/2.png").await);
    assert_eq!(rig.count_rows("orphans").await, 1);
    rig.assert_counts_agree().await;
    assert!(
        rig.object_exists("images-old", "image/0.png").await,
        "sources stay"
    );
}

/// A row that the application saved whole, with its old path, after its source was cleaned.
#[tokio::test]
async fn the_last_bytes_of_a_row_that_was_set_back_stay() {
    let rig = TestRig::new().await;
    orphans(&rig, 2).await;
    for number in 0..2 {
        let source = format!("image/{number}.png");
        rig.delete_object("images-old", &source).await;
    }
    rig.add_row("image/0.png").await;
    let ended = rig.run_feeder(&CLEAN_ORPHANS).await;
    assert_eq!(ended.code, 2, "{}", ended.log);
    let reason = "avatar/0.png: a row names its source, which is gone";
    assert!(ended.output.contains(reason), "{}", ended.output);
    assert!(rig.object_exists("images-new", "avatar/0.png").await);
    assert!(!rig.object_exists("images-new", "avatar/1.png").await);
}

#[tokio::test]
async fn an_orphan_replaced_in_that_very_moment_stays() {
    let rig = TestRig::new().await;
    orphans(&rig, 1).await;
    let slow = Fault::new("DeleteObjects", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow);
    let mut clean = rig.spawn_json_command(&CLEAN_ORPHANS);
    wait_until("the removal", async || slow.hits() > 0).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    assert_eq!(clean.wait_for_exit().await.unwrap().code(), Some(2));
    assert_eq!(
        rig.destination_sha256("avatar/0.png").await.unwrap(),
        sha256(b"the application's")
    );
    assert_eq!(rig.count_rows("orphans").await, 1);
}

#[tokio::test]
async fn they_stay_while_a_consumer_could_point_a_row_at_one() {
    let rig = TestRig::new().await;
    orphans(&rig, 1).await;
    let again = rig.add_row("image/0.png").await;
    rig.feed_row(&again, "image/0.png").await;
    wait_until("the message", async || rig.visible_messages().await == 1).await;
    let ended = rig.run_command(&CLEAN_ORPHANS).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    // The copy has a row again, and is none any more.
    assert_eq!(rig.path_of(&again).await.unwrap(), "avatar/0.png");
    let result = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((result.code, result.number_of("objects")), (0, 0));
}

#[tokio::test]
async fn copies_of_rows_that_went_back_can_go_and_are_made_anew() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    assert_eq!(
        rig.run_json_command(&["rollback", "--all", "--yes"])
            .await
            .code,
        0
    );
    let result = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 2));
    assert!(!rig.object_exists("images-new", "avatar/0.png").await);
    rig.run_migration().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.run_json_command(&["verify", "--full"]).await.code, 0);
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn they_stay_while_another_run_copies_into_their_bucket() {
    let rig = TestRig::new().await;
    orphans(&rig, 1).await;
    rig.execute_sql("CREATE TABLE others (id bigint PRIMARY KEY, path text)")
        .await;
    let others = [("IMAGES_TABLE", "others")];
    rig.run_program("feeder", &others).await;
    let consumer = rig.spawn_consumer(&others);
    let alive =
        "SELECT count(*) FROM bucket_brigade.workers WHERE run_id = 2 AND role = 'consumer'";
    wait_until("its consumer", async || rig.query_number(alive).await == 1).await;
    let ended = rig.run_command(&CLEAN_ORPHANS).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("others.path: "), "{}", ended.log);
    stop_consumer(consumer).await;
    let result = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 1));
}

/// Where its image was uploaded anew meanwhile it is in the way, until it is removed.
#[tokio::test]
async fn the_copy_of_a_row_that_failed_is_one_until_the_row_moves() {
    let rig = TestRig::new().await;
    let ids = rig.add_images(3).await;
    rig.execute_sql(
        "ALTER TABLE images ADD CONSTRAINT refuse CHECK (path NOT IN ('avatar/0.png', 'avatar/1.png'))",
    )
    .await;
    rig.run_migration().await;
    assert_eq!(rig.failure_code(&ids[0]).await.unwrap(), "23514");
    assert_eq!(rig.count_rows("orphans").await, 2);
    rig.execute_sql("ALTER TABLE images DROP CONSTRAINT refuse")
        .await;
    rig.put_object("images-old", "image/1.png", b"uploaded anew")
        .await;
    rig.run_json_command(&["retry", "--yes"]).await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.run_program("feeder", &[]).await;
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(
        rig.failure_code(&ids[1]).await.unwrap(),
        "DestinationConflict"
    );
    let result = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 1));
    rig.run_json_command(&["retry", "--yes"]).await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&ids[1]).await.unwrap(), "avatar/1.png");
    assert_eq!(
        rig.destination_sha256("avatar/1.png").await.unwrap(),
        sha256(b"uploaded anew")
    );
    assert_eq!(rig.count_rows("orphans").await, 0);
    rig.assert_counts_agree().await;
}

/// A delivery that found the copy, which another had made, fails with it; and a row that is changed by then.
#[tokio::test]
async fn no_failure_loses_the_copy_that_was_made() {
    let rig = TestRig::new().await;
    let ids = rig.add_images(2).await;
    let ledger = rig.open_run().await;
    let failure = |number: usize, has_copy: bool| MoveFailure {
        id: ledger.id_type().parse(&ids[number]).unwrap(),
        path: format!("image/{number}.png"),
        code: "RowLocked".into(),
        message: String::new(),
        permanent: false,
        orphan: has_copy.then(|| OrphanedCopy {
            destination_key: format!("avatar/{number}.png"),
            etag: "e".into(),
        }),
    };
    rig.set_path(&ids[1], "elsewhere/1.png").await;
    for [one, other] in [[false, true], [true, false]] {
        let batch = [failure(0, one), failure(0, other), failure(1, true)];
        ledger.record_failures(&batch).await.unwrap();
        let recorded = (
            rig.count_rows("failures").await,
            rig.count_rows("orphans").await,
        );
        assert_eq!(recorded, (1, 2));
        rig.assert_counts_agree().await;
        rig.execute_sql(
            "UPDATE bucket_brigade.counters SET orphans = 0; DELETE FROM bucket_brigade.orphans",
        )
        .await;
    }
}

/// It may be the application's: nothing shows that the run made it.
#[tokio::test]
async fn a_copy_that_was_there_before_is_no_orphan() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    rig.put_object("images-new", "avatar/0.png", b"image/0.png")
        .await;
    for _ in 0..2 {
        rig.run_migration().await;
        assert_eq!(rig.count_rows("moves").await, 2);
        let back = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
        assert_eq!((back.code, back.number_of("rolled_back")), (0, 2));
        // That of the first round is found again, and is known.
        assert_eq!(rig.count_rows("orphans").await, 1);
    }
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!((cleaned.code, cleaned.number_of("removed")), (0, 1));
    assert!(rig.object_exists("images-new", "avatar/0.png").await);
    assert!(!rig.object_exists("images-new", "avatar/1.png").await);
    rig.assert_counts_agree().await;
}
