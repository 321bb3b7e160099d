//! verify: what it finds, what it leaves, and what `--recopy` mends.

use std::time::Duration;

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, sha256, stop_consumer, wait_for_exit, wait_until};

#[tokio::test]
async fn a_sound_migration_is_sound() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(4).await;
    rig.add_row("elsewhere/5.png").await;
    let result = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(
        (
            result.code,
            result.number_of("checked"),
            result.number_of("sound")
        ),
        (0, 4, 4)
    );
    assert_eq!(
        (
            result.number_of("table_rows"),
            result.number_of("table_outside")
        ),
        (5, 1)
    );
    let verified = "SELECT count(*) FROM bucket_brigade.moves
        WHERE verified_at > moved_at AND source_etag = etag AND size_bytes > 0";
    assert_eq!(rig.query_number(verified).await, 4);
    // A source that was written again, but is the same, has not changed.
    rig.put_object("images-old", "image/0.png", b"image/0.png")
        .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
}

#[tokio::test]
async fn each_mismatch_is_found_and_named() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(8).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.delete_object("images-new", "avatar/1.png").await;
    rig.delete_object("images-old", "image/2.png").await;
    rig.put_object("images-old", "image/3.png", b"newer").await;
    rig.set_path(&ids[4], "elsewhere/4.png").await;
    rig.execute_sql(&format!("DELETE FROM images WHERE id = {}", ids[5]))
        .await;
    // The copies of rows that name them no more are not checked.
    rig.delete_object("images-new", "avatar/5.png").await;
    rig.execute_sql(&format!(
        "UPDATE bucket_brigade.moves SET size_bytes = 1 WHERE row_id = '{}'",
        ids[6]
    ))
    .await;
    let result = rig.run_json_command(&["verify"]).await;
    assert_eq!(result.code, 1);
    let code = |number: usize| result.field_of("mismatches", &ids[number], "code");
    assert_eq!(code(0), "not listed", "the application's own");
    assert_eq!(code(1), "CopyGone");
    assert_eq!(code(2), "SourceGone");
    assert_eq!(code(3), "SourceChanged");
    assert_eq!(code(6), "SizeDiffers");
    assert_eq!(result.number_of("mismatched"), 4);
    assert_eq!(
        (result.number_of("outdated"), result.number_of("sound")),
        (3, 2)
    );
    // What was verified before is so no more.
    let unverified = "SELECT count(*) FROM bucket_brigade.moves WHERE verified_at IS NULL";
    assert_eq!(rig.query_number(unverified).await, 6);
    let seen = rig.run_command(&["verify"]).await.log;
    assert!(
        seen.contains(&format!(
            "CopyGone  row {}  avatar/1.png: the copy does not exist",
            ids[1]
        )),
        "{seen}"
    );
    assert!(seen.contains("4 mismatches"), "{seen}");
}

#[tokio::test]
async fn full_mode_finds_every_row_without_an_object() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    let old = rig.add_row("image/never.png").await;
    let new = rig.add_row("avatar/never.png").await;
    rig.add_row("elsewhere/never.png").await;
    let result = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!((result.code, result.number_of("mismatched")), (1, 2));
    for id in [old, new] {
        assert_eq!(result.field_of("mismatches", &id, "code"), "NoObject");
    }
    assert_eq!(
        rig.run_json_command(&["verify"]).await.code,
        0,
        "the moves are sound"
    );
}

#[tokio::test]
async fn recopy_repairs_copies_that_are_still_ours() {
    let rig = TestRig::new().await;
    let first = rig.add_image("image/0.png").await;
    let second = rig.add_row("image/0.png").await;
    rig.add_image("image/1.png").await;
    let outdated = rig.add_image("image/2.png").await;
    rig.add_image("image/3.png").await;
    let deleted = rig.add_image("image/4.png").await;
    rig.run_migration().await;
    for name in ["0", "1", "2"] {
        let key = format!("image/{name}.png");
        rig.put_object("images-old", &key, b"newer, and longer")
            .await;
    }
    rig.put_object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.set_path(&outdated, "elsewhere/2.png").await;
    rig.delete_object("images-new", "avatar/3.png").await;
    rig.delete_object("images-new", "avatar/4.png").await;
    rig.execute_sql(&format!("DELETE FROM images WHERE id = {deleted}"))
        .await;
    let result = rig.run_json_command(&["verify", "--recopy"]).await;
    assert_eq!(
        (
            result.code,
            result.number_of("recopied"),
            result.number_of("outdated")
        ),
        (0, 3, 3)
    );
    assert_eq!(result.number_of("mismatched"), 0);
    assert_eq!(
        rig.destination_sha256("avatar/3.png").await.unwrap(),
        sha256(b"image/3.png")
    );
    assert!(!rig.object_exists("images-new", "avatar/4.png").await);
    assert_eq!(
        rig.destination_sha256("avatar/0.png").await.unwrap(),
        sha256(b"newer, and longer")
    );
    assert_eq!(
        rig.destination_sha256("avatar/1.png").await.unwrap(),
        sha256(b"the application's")
    );
    assert_eq!(
        rig.destination_sha256("avatar/2.png").await.unwrap(),
        sha256(b"image/2.png")
    );
    for id in [first, second] {
        let evidence = format!(
            "SELECT count(*) FROM bucket_brigade.moves WHERE row_id = '{id}' AND size_bytes = 17
              AND etag = md5('newer, and longer') AND verified_at IS NOT NULL AND recopied_at IS NOT NULL"
        );
        assert_eq!(rig.query_number(&evidence).await, 1);
    }
}

/// The store answers HEADs of both, and HEADs of others: it is no outage.
#[tokio::test]
async fn a_copy_that_fails_again_and_again_delays_its_own_row_alone() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    for number in 0..2 {
        let key = format!("image/{number}.png");
        rig.put_object("images-old", &key, b"newer").await;
    }
    let broken = Fault::new("CopyObject", FaultEffect::error(500, "InternalError"));
    let _broken = rig
        .cloud
        .inject_fault(broken.caller("feeder").key_contains("avatar/1"));
    let result = rig.run_json_command(&["verify", "--recopy"]).await;
    assert_eq!(
        (
            result.code,
            result.number_of("recopied"),
            result.number_of("mismatched")
        ),
        (1, 1, 1),
        "{}",
        result.json
    );
    let code = result.field_of("mismatches", &ids[1], "code");
    assert_eq!(code, "RecopyFailed");
}

#[tokio::test]
async fn recopy_never_overwrites_concurrent_writes_of_the_application() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    rig.put_object("images-old", "image/0.png", b"newer").await;
    let slow = FaultEffect::Delay(Duration::from_secs(1));
    let slow = rig
        .cloud
        .inject_fault(Fault::new("CopyObject", slow).caller("feeder"));
    let mut verify = rig.spawn_json_command(&["verify", "--recopy"]);
    wait_until("the copy to start", async || slow.hits() > 0).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    assert_eq!(verify.wait_for_exit().await.unwrap().code(), Some(0));
    assert_eq!(
        rig.destination_sha256("avatar/0.png").await.unwrap(),
        sha256(b"the application's")
    );
    assert_eq!(rig.count_rows("mismatches").await, 0);
    let theirs = "SELECT outdated FROM bucket_brigade.verifications";
    assert_eq!(rig.query_number(theirs).await, 1);
}

/// Killed between the new copy and its evidence, the ledger has the old ETag.
#[tokio::test]
async fn a_new_copy_that_was_not_written_down_is_taken_over() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    for (bucket, key) in [
        ("images-old", "image/0.png"),
        ("images-new", "avatar/0.png"),
    ] {
        rig.put_object(bucket, key, b"newer").await;
    }
    let result = rig.run_json_command(&["verify"]).await;
    assert_eq!((result.code, result.number_of("mismatched")), (0, 0));
    assert_eq!(
        (result.number_of("outdated"), result.number_of("sound")),
        (1, 0)
    );
    let result = rig.run_json_command(&["verify", "--recopy"]).await;
    assert_eq!((result.code, result.number_of("recopied")), (0, 1));
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("feeder", "CopyObject"),
        1,
        "that of a probe object: the copy that is there is taken over"
    );
}

#[tokio::test]
async fn a_row_that_changes_while_it_is_read_is_no_mismatch() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    rig.delete_object("images-new", "avatar/0.png").await;
    let late = Fault::new(
        "HeadObject",
        FaultEffect::DelayedResponse(Duration::from_secs(1)),
    );
    let late = rig
        .cloud
        .inject_fault(late.caller("feeder").key_contains("avatar/"));
    let mut verify = rig.spawn_json_command(&["verify"]);
    wait_until("the look at the copy", async || late.hits() > 0).await;
    rig.set_path(&ids[0], "elsewhere/0.png").await;
    assert_eq!(verify.wait_for_exit().await.unwrap().code(), Some(0));
    assert_eq!(rig.count_rows("mismatches").await, 0);
}

#[tokio::test]
async fn a_run_that_does_not_exist_and_a_wrong_sample_are_refused() {
    let rig = TestRig::new().await;
    let ended = rig.run_command(&["verify"]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    for sample in ["0", "101", "some"] {
        let ended = rig.run_command(&["verify", "--sample", sample]).await;
        assert_eq!(ended.code, Some(64));
        assert!(ended.log.contains("--sample"), "{}", ended.log);
    }
}

#[tokio::test]
async fn rows_whose_path_is_no_key_are_counted() {
    let rig = TestRig::new().await;
    rig.execute_sql("ALTER TABLE images ALTER COLUMN path DROP NOT NULL")
        .await;
    rig.put_object("images-old", "a.png", b"bytes").await;
    rig.add_row("https://old.example/a.png").await;
    let urls = [
        ("OLD_PREFIX", "https://old.example/"),
        ("NEW_PREFIX", ""),
        ("SOURCE_KEY_PREFIX", ""),
        ("DESTINATION_KEY_PREFIX", ""),
    ];
    let consumer = rig.spawn_consumer(&urls);
    assert_eq!(rig.run_program("feeder", &urls).await.code, Some(0));
    stop_consumer(consumer).await;
    rig.execute_sql(
        "INSERT INTO images (path) VALUES (NULL), (''), ('https://old.example/'), (repeat('x', 1025))",
    )
    .await;
    let mut verify = rig.spawn("feeder", &urls, &["verify", "--full"]);
    let ended = wait_for_exit(&mut verify).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let result = "5 rows of the table, 4 outside the path rule; 0 mismatches";
    assert!(ended.log.contains(result), "{}", ended.log);
}

#[tokio::test]
async fn an_object_that_needs_a_key_of_the_customers_ends_no_verify() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    let secret = rig.add_row("image/secret.png").await;
    let _faults = rig.hide_behind_customer_key("secret");
    let result = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!((result.code, result.number_of("mismatched")), (1, 1));
    assert_eq!(result.field_of("mismatches", &secret, "code"), "Unreadable");
}

/// They are not each to blame.
#[tokio::test]
async fn where_no_object_can_be_read_it_is_not_the_objects() {
    let rig = TestRig::new().await;
    rig.add_moved_images(12).await;
    let denied = Fault::new("HeadObject", FaultEffect::error(403, "AccessDenied"));
    let denied = rig.cloud.inject_fault(denied.caller("feeder"));
    let result = rig.run_command(&["verify"]).await;
    assert_eq!(result.code, Some(69), "{}", result.log);
    assert!(
        result.log.contains("no object could be read"),
        "{}",
        result.log
    );
    drop(denied);
    assert_eq!(rig.run_json_command(&["verify", "--anew"]).await.code, 0);
}
