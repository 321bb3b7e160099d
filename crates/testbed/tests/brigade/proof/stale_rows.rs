//! An application that saves a row whole writes the old path of an image that has moved.

use crate::rig::{TestRig, sha256};

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

#[tokio::test]
async fn a_row_set_back_before_clean_moves_again() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    rig.set_path(&ids[0], "image/0.png").await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    rig.assert_counts_agree().await;
}

/// Its image is what the application has put there since.
#[tokio::test]
async fn a_row_set_back_to_nothing_goes_forward_to_what_replaced_its_copy_or_fails() {
    let rig = TestRig::new().await;
    let ids = add_cleaned_images(&rig, 2).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.delete_object("images-new", "avatar/1.png").await;
    rig.set_path(&ids[0], "image/0.png").await;
    rig.set_path(&ids[1], "image/1.png").await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    let replaced = rig.destination_sha256("avatar/0.png").await;
    assert_eq!(replaced, Some(sha256(b"the application's")));
    let failed = rig.failure_code(&ids[1]).await;
    assert_eq!(failed.as_deref(), Some("NoSuchKey"));
    assert_eq!(rig.path_of(&ids[1]).await.unwrap(), "image/1.png");
}
