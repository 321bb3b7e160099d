//! clean: which sources may go by what the ledger knows of them, and what a preview does.

use std::time::Duration;

use bucket_brigade_testbed::{Fault, FaultEffect};

use super::clean::CLEAN;
use crate::rig::{TestRig, wait_for_exit, wait_until};

/// What its rows name is not known from then on.
#[tokio::test]
async fn nothing_more_goes_once_the_table_is_another_one() {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(2500).await;
    rig.execute_sql(
        "UPDATE bucket_brigade.moves SET verified_at = clock_timestamp(), source_etag = etag",
    )
    .await;
    let slow = FaultEffect::Delay(Duration::from_millis(100));
    let slow = rig
        .cloud
        .inject_fault(Fault::new("HeadObject", slow).key_contains(".png"));
    let mut clean = rig.spawn("feeder", &[], &CLEAN);
    wait_until("the first page", async || slow.hits() > 0).await;
    rig.execute_sql(
        "ALTER TABLE images RENAME TO images_before; CREATE TABLE images (LIKE images_before INCLUDING ALL)",
    )
    .await;
    let ended = wait_for_exit(&mut clean).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("another one"), "{}", ended.log);
    let removed = "SELECT count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL";
    assert!(rig.query_number(removed).await < 2500);
}

#[tokio::test]
async fn columns_that_are_not_asked_are_named() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    rig.execute_sql(
        r#"ALTER TABLE images ADD "Thumb" text;
           INSERT INTO images (path) VALUES ('image/later-1.png'), ('image/later-2.png');
           UPDATE images SET "Thumb" = 'image/' || id || '.png';
           ANALYZE images"#,
    )
    .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let preview = ["clean", "--older-than", "0s"];
    let ended = wait_for_exit(&mut rig.spawn("feeder", &[], &preview)).await;
    assert!(
        ended.log.contains("public.images.\"Thumb\""),
        "{}",
        ended.log
    );
    assert!(!ended.log.contains("public.images.path"), "{}", ended.log);
}

/// Of two rows that share a source, one was verified against a newer copy.
#[tokio::test]
async fn the_newest_verification_of_a_shared_source_counts() {
    let rig = TestRig::new().await;
    let id = rig.add_image("image/shared.png").await;
    rig.add_row("image/shared.png").await;
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.execute_sql(&format!(
        "UPDATE bucket_brigade.moves SET etag = 'older', verified_at = verified_at - interval '1 microsecond',
                moved_at = moved_at - interval '1 second' WHERE row_id = '{id}'"
    ))
    .await;
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 1));
}

/// The application deletes pictures, and replaces them under their new key: their sources are nobody's.
#[tokio::test]
async fn sources_of_images_that_the_application_replaced_or_deleted_since_go() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(6).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.execute_sql(&format!("DELETE FROM images WHERE id = {}", ids[1]))
        .await;
    rig.set_path(&ids[2], "elsewhere/other.png").await;
    for name in ["1", "2"] {
        rig.delete_object("images-new", &format!("avatar/{name}.png"))
            .await;
    }
    // Replaced too, but the source is not what was copied any more, or a row may mean it.
    for name in ["3", "4"] {
        rig.put_object(
            "images-new",
            &format!("avatar/{name}.png"),
            b"the application's",
        )
        .await;
    }
    rig.put_object("images-old", "image/3.png", b"newer").await;
    rig.add_row("image/4.png?v=2").await;
    let result = rig.run_json_command(&["verify"]).await;
    assert_eq!(
        (
            result.code,
            result.number_of("sound"),
            result.number_of("outdated")
        ),
        (0, 1, 5),
        "{}",
        result.json
    );
    let result = rig.run_json_command(&CLEAN[..3]).await;
    assert_eq!(
        (result.number_of("objects"), result.number_of("unverified")),
        (5, 1)
    );
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (result.code, result.number_of("removed")),
        (2, 4),
        "{}",
        result.json
    );
    for (name, is_there) in [
        ("0", false),
        ("1", false),
        ("2", false),
        ("3", true),
        ("4", true),
    ] {
        let key = format!("image/{name}.png");
        let found = rig.object_exists("images-old", &key).await;
        assert_eq!(found, is_there, "{name}");
    }
    assert_eq!(
        rig.destination_sha256("avatar/0.png").await.unwrap(),
        crate::rig::sha256(b"the application's")
    );
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
}

/// What verify once saw of a source whose ETag says nothing proves that it is the same.
#[tokio::test]
async fn a_source_that_was_verified_before_its_copy_was_replaced_goes() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    // As if the copy had another ETag than its source, as under KMS.
    rig.execute_sql("UPDATE bucket_brigade.moves SET etag = 'kms'")
        .await;
    rig.execute_sql(
        "UPDATE bucket_brigade.moves SET source_etag = 'other' WHERE old_path = 'image/1.png'",
    )
    .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 1));
    assert!(!rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn a_preview_writes_nothing() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    // The transactions that wrote the rows as they are; the server's own counts come late.
    let written = "SELECT sum(xmin::text::bigint)::bigint FROM bucket_brigade.moves";
    let before = rig.query_number(written).await;
    let result = rig.run_json_command(&CLEAN[..3]).await;
    assert_eq!((result.code, result.number_of("objects")), (0, 3));
    assert_eq!(rig.count_rows("removals").await, 0);
    assert_eq!(rig.query_number(written).await, before);
}

/// A source that very many rows share is one object.
#[tokio::test]
async fn a_source_that_many_rows_share_goes_once() {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(2).await;
    rig.execute_sql(
        "INSERT INTO images (path) SELECT 'avatar/0.png' FROM generate_series(1, 3000);
         INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
         SELECT 1, id::text, 'image/0.png', path, md5('one for all'), 'test' FROM images WHERE id > 2;
         UPDATE bucket_brigade.moves SET verified_at = clock_timestamp(), source_etag = etag, size_bytes = 11",
    )
    .await;
    let result = rig.run_json_command(&CLEAN[..3]).await;
    assert_eq!(
        (result.number_of("moves"), result.number_of("objects")),
        (3002, 2)
    );
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 2));
    let left = "SELECT count(*) FROM bucket_brigade.moves WHERE source_settled_at IS NULL";
    assert_eq!(rig.query_number(left).await, 0);
}

/// As where the key of the new bucket may be used to write alone: nothing could be brought back.
#[tokio::test]
async fn nothing_goes_while_no_copy_can_be_read() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let denied = Fault::new("GetObject", FaultEffect::error(403, "AccessDenied"));
    let denied = rig.cloud.inject_fault(denied.key_contains("avatar/"));
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(
        ended.log.contains("could not be brought back"),
        "{}",
        ended.log
    );
    assert_eq!(rig.cloud.count_objects("images-old"), 3);
    drop(denied);
    // One that is denied alone is no reason.
    let first = Fault::new("GetObject", FaultEffect::error(403, "AccessDenied"));
    let _first = rig.cloud.inject_fault(first.key_contains("avatar/0.png"));
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
}
