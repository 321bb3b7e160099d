//! A name under the old prefix that the application uses again, and objects that are all that is left of an image.

use super::CLEAN_ORPHANS;
use crate::rig::TestRig;

const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];
const NEWER: &[u8] = b"of another row";

/// A moved image; and then another row takes its old name, with its own upload.
async fn rig_with_reused_name() -> (TestRig, String, String) {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    let copy = rig.destination_sha256("avatar/0.png").await.unwrap();
    rig.put_object("images-old", "image/0.png", NEWER).await;
    rig.add_row("image/0.png").await;
    (rig, ids[0].clone(), copy)
}

#[tokio::test]
async fn verify_does_not_copy_another_rows_image_anew() {
    let (rig, id, copy) = rig_with_reused_name().await;
    let verified = rig.run_json_command(&["verify", "--recopy"]).await;
    assert_eq!((verified.code, verified.number_of("recopied")), (1, 0));
    let code = verified.field_of("mismatches", &id, "code");
    assert_eq!(code, "SourceChanged", "{}", verified.json);
    let message = verified.field_of("mismatches", &id, "message");
    assert!(message.contains("a row names the source"), "{message}");
    assert_eq!(rig.destination_sha256("avatar/0.png").await, Some(copy));
}

#[tokio::test]
async fn a_row_goes_back_to_no_other_image() {
    let (rig, id, copy) = rig_with_reused_name().await;
    let back = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    let reason = back.field_of("left_alone", &id, "reason");
    assert_eq!(reason, "source_changed", "{}", back.json);
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/0.png");
    // Nor is its copy an orphan.
    rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!(rig.destination_sha256("avatar/0.png").await, Some(copy));
}

/// What stood at the destination before the consumer came is none of ours to overwrite.
#[tokio::test]
async fn an_object_that_was_found_is_not_overwritten() {
    let rig = TestRig::new().await;
    let id = rig.add_row("image/0.png").await;
    for (bucket, key) in [
        ("images-old", "image/0.png"),
        ("images-new", "avatar/0.png"),
    ] {
        rig.put_object(bucket, key, b"the application's").await;
    }
    let found = rig.destination_sha256("avatar/0.png").await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/0.png");
    rig.put_object("images-old", "image/0.png", NEWER).await;
    let verified = rig.run_json_command(&["verify", "--recopy"]).await;
    assert_eq!((verified.code, verified.number_of("recopied")), (1, 0));
    assert_eq!(rig.destination_sha256("avatar/0.png").await, found);
}

/// Renumbered rows are not those that moved; the copy of one is lost, and its source all that is left.
#[tokio::test]
async fn a_source_stays_while_a_row_names_its_copy_that_is_gone() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    rig.execute_sql("UPDATE images SET id = id + 1000").await;
    rig.delete_object("images-new", "avatar/0.png").await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let cleaned = rig.run_json_command(&CLEAN).await;
    let counts = ["removed", "left_alone"].map(|name| cleaned.number_of(name));
    assert_eq!((cleaned.code, counts), (2, [1, 1]), "{}", cleaned.json);
    assert!(rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn what_is_written_where_clean_removed_a_source_is_reported() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    assert_eq!(rig.run_json_command(&CLEAN).await.code, 0);
    rig.put_object("images-old", "image/0.png", NEWER).await;
    for listings in [&["verify"][..], &["verify", "--listings"]] {
        let verified = rig.run_json_command(listings).await;
        assert_eq!((verified.code, verified.number_of("sound")), (1, 1));
        let code = verified.field_of("mismatches", &ids[0], "code");
        assert_eq!(code, "SourceRewritten");
    }
}
