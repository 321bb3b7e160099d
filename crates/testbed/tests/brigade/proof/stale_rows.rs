//! An application that saves a row whole writes the old path of an image that has moved.

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

async fn add_cleaned_images(rig: &TestRig, count: usize) -> Vec<String> {
    let ids = rig.add_moved_images(count).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    assert_eq!(rig.run_json_command(&CLEAN).await.code, 0);
    ids
}

#[tokio::test]
async fn a_row_set_back_after_clean_is_set_forward_to_its_copy() {
    let rig = TestRig::new().await;
    let ids = add_cleaned_images(&rig, 2).await;
    rig.set_path(&ids[0], "image/0.png").await;
    // A new row that names what another row named.
    let new = rig.add_row("image/1.png").await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.path_of(&new).await.unwrap(), "avatar/1.png");
    assert_eq!(rig.count_rows("moves").await, 3);
    assert_eq!(rig.count_rows("failures").await, 0);
    rig.assert_counts_agree().await;
    // Its source is known to be removed, by us.
    assert_eq!(rig.run_json_command(&["verify", "--full"]).await.code, 0);
    let again = rig.run_json_command(&CLEAN).await;
    assert_eq!((again.code, again.number_of("objects")), (0, 0));
}

/// It has the old name of another image, whose copy stands; and then its own upload.
#[tokio::test]
async fn a_row_saved_before_its_upload_gets_no_other_image() {
    let rig = TestRig::new().await;
    add_cleaned_images(&rig, 1).await;
    let new = rig.add_row("image/0.png").await;
    let releases = || {
        let counts = rig.cloud.request_counts();
        counts.count_operation_by("consumer", "ChangeMessageVisibilityBatch")
    };
    let before = releases();
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the message to wait", async || releases() > before).await;
    let upload = b"the new row's";
    rig.put_object("images-old", "image/0.png", upload).await;
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(2));
    stop_consumer(consumer).await;
    assert_eq!(rig.path_of(&new).await.unwrap(), "image/0.png");
    let failure = rig.failure_code(&new).await;
    assert_eq!(failure.as_deref(), Some("DestinationConflict"));
    let verified = rig.run_json_command(&["verify", "--recopy"]).await;
    assert_eq!(verified.code, 1);
    assert_eq!(verified.number_of("recopied"), 0, "{}", verified.json);
}

#[tokio::test]
async fn a_row_set_back_before_clean_moves_again() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    rig.set_path(&ids[0], "image/0.png").await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    rig.assert_counts_agree().await;
}

/// Only the copy on record proves anything without a source.
#[tokio::test]
async fn a_row_set_back_to_nothing_fails_when_its_copy_was_replaced() {
    let rig = TestRig::new().await;
    let ids = add_cleaned_images(&rig, 2).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.delete_object("images-new", "avatar/1.png").await;
    rig.set_path(&ids[0], "image/0.png").await;
    rig.set_path(&ids[1], "image/1.png").await;
    rig.run_migration().await;
    for id in &ids {
        assert_eq!(rig.failure_code(id).await.as_deref(), Some("NoSuchKey"));
    }
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
}
