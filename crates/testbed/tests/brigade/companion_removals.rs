//! What becomes of companions when images go back, or are removed.

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::companions::{CLEAN, PATTERNS, add_whole, assert_moved, companions, rig_with};
use crate::proof::{CLEAN_ORPHANS, age_requests};
use crate::rig::TestRig;

#[tokio::test]
async fn companions_are_undone_and_cleaned_with_their_image() {
    let rig = rig_with(&format!("{PATTERNS},{{stem}}.webp")).await;
    let first = add_whole(&rig, "1").await;
    add_whole(&rig, "2").await;
    rig.put_object("images-old", "image/u/2.webp", b"of u/2.jpg too")
        .await;
    rig.run_migration().await;
    let back = rig
        .run_json_command(&["rollback", "--ids", &first, "--yes"])
        .await;
    assert_eq!(back.number_of("rolled_back"), 1, "{}", back.json);
    rig.run_migration().await;
    assert_moved(&rig, &first, "1").await;
    let back = rig
        .run_json_command(&["rollback", "--ids", &first, "--yes"])
        .await;
    assert_eq!(back.number_of("rolled_back"), 1, "{}", back.json);
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!(
        (cleaned.code, cleaned.number_of("removed")),
        (0, 4),
        "{}",
        cleaned.json
    );
    for key in companions("1") {
        assert!(
            !rig.object_exists("images-new", &format!("avatar/{key}"))
                .await
        );
        assert!(
            rig.object_exists("images-old", &format!("image/{key}"))
                .await
        );
    }
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    // A row names one of them, another was written since.
    rig.add_row("image/u/thumb_1.png").await;
    rig.put_object("images-old", "image/u/1@2x.png", b"newer")
        .await;
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (cleaned.code, cleaned.number_of("removed")),
        (2, 6),
        "{}",
        cleaned.json
    );
    assert_eq!(cleaned.number_of("left_alone"), 3, "{}", cleaned.json);
    for (key, is_there) in [
        ("1.png", false),
        ("1.png.200x200.jpg", false),
        ("thumb_1.png", true),
        ("1@2x.png", true),
        ("thumb_2.png", false),
        ("2.webp", true),
    ] {
        let key = format!("image/u/{key}");
        assert_eq!(
            rig.object_exists("images-old", &key).await,
            is_there,
            "{key}"
        );
    }
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
}

#[tokio::test]
async fn a_companion_of_two_images_stays_as_long_as_it_may_be_needed() {
    let rig = rig_with("{stem}.webp").await;
    let first = rig.add_image("image/u/1.png").await;
    let second = rig.add_image("image/u/1.jpg").await;
    rig.put_object("images-old", "image/u/1.webp", b"of both")
        .await;
    rig.run_migration().await;
    let back = ["rollback", "--ids", &first, "--yes"];
    let back = rig.run_json_command(&back).await;
    assert_eq!((back.code, back.number_of("rolled_back")), (0, 1));
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    let counts = |cleaned: &crate::proof::JsonCommandOutput| {
        (
            cleaned.number_of("removed"),
            cleaned.number_of("left_alone"),
        )
    };
    assert_eq!(counts(&cleaned), (1, 1), "{}", cleaned.json);
    assert!(rig.object_exists("images-new", "avatar/u/1.webp").await);
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify", "--full"]).await.code, 0);
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(counts(&cleaned), (2, 2), "{}", cleaned.json);
    assert!(rig.object_exists("images-old", "image/u/1.webp").await);
    assert_eq!(rig.run_json_command(&["verify", "--full"]).await.code, 0);
    let back = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    let reason = |id: &str| back.field_of("left_alone", id, "reason");
    assert_eq!([reason(&first), reason(&second)], ["source_removed"; 2]);
}

/// A row that is set back to its old path after the sources went is set forward, with its companions.
#[tokio::test]
async fn a_row_set_back_after_clean_finds_its_companions() {
    let rig = rig_with(PATTERNS).await;
    let id = add_whole(&rig, "1").await;
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    assert_eq!(rig.run_json_command(&CLEAN).await.number_of("removed"), 4);
    rig.set_path(&id, "image/u/1.png").await;
    rig.run_migration().await;
    assert_moved(&rig, &id, "1").await;
    assert_eq!(rig.count_rows("failures").await, 0);
}

/// Thumbnails that are rows, too.
#[tokio::test]
async fn what_another_row_s_image_needs_is_not_removed() {
    let rig = rig_with("{stem}_thumb.{ext}").await;
    let image = rig.add_image("image/1.png").await;
    let thumbnail = rig.add_image("image/1_thumb.png").await;
    rig.run_migration().await;
    let roll_back = async |id: &str| {
        let back = ["rollback", "--ids", id, "--yes"];
        let back = rig.run_json_command(&back).await;
        assert_eq!(back.number_of("rolled_back"), 1, "{}", back.json);
    };
    roll_back(&image).await;
    rig.run_json_command(&["verify"]).await;
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(cleaned.number_of("left_alone"), 1, "{}", cleaned.json);
    assert!(rig.object_exists("images-old", "image/1_thumb.png").await);
    rig.run_migration().await;
    roll_back(&thumbnail).await;
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!(cleaned.number_of("left_alone"), 1, "{}", cleaned.json);
    assert!(rig.object_exists("images-new", "avatar/1_thumb.png").await);
}

/// A copy that no row names, and its companion's.
async fn rig_with_orphans() -> TestRig {
    let rig = rig_with("{key}.200x200.jpg").await;
    add_whole(&rig, "1").await;
    rig.run_migration().await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    rig
}

/// The next clean goes on with it.
#[tokio::test]
async fn a_companion_that_cannot_be_asked_for_hides_no_removal() {
    let rig = rig_with_orphans().await;
    // And for the key beside it, which shows whether it is the object's own trouble.
    let refused = ["1.png.200x200.jpg", ".bucket-brigade-probe"].map(|key| {
        let refused = Fault::new("HeadObject", FaultEffect::error(400, "BadRequest"));
        rig.cloud
            .inject_fault(refused.key_contains(format!("avatar/u/{key}")))
    });
    let cleaned = rig.run_feeder(&CLEAN_ORPHANS).await;
    assert_ne!(cleaned.code, 0, "{}", cleaned.output);
    assert!(
        cleaned.output.contains("1 object removed"),
        "{}",
        cleaned.output
    );
    assert_eq!(rig.cloud.count_objects("images-new"), 1);
    drop(refused);
    age_requests(&rig).await;
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!(cleaned.code, 0, "{}", cleaned.json);
    assert_eq!(rig.cloud.count_objects("images-new"), 0);
}

/// The image itself went by an earlier request.
#[tokio::test]
async fn a_request_for_a_companion_without_a_response_keeps_its_image_in_removal() {
    let rig = rig_with_orphans().await;
    for what in ["the image", "its companion"] {
        let lost = Fault::new("DeleteObjects", FaultEffect::Reset).times(1);
        let lost = rig.cloud.inject_fault(lost);
        let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
        assert_eq!(
            (lost.hits(), cleaned.code),
            (1, 2),
            "{what}: {}",
            cleaned.json
        );
        let refused = rig.run_program("feeder", &[]).await;
        assert_eq!(refused.code, Some(75), "{what}: {}", refused.log);
        age_requests(&rig).await;
    }
    assert_eq!(rig.run_json_command(&CLEAN_ORPHANS).await.code, 0);
    assert_eq!(rig.cloud.count_objects("images-new"), 0);
    rig.run_migration().await;
    assert_eq!(rig.cloud.count_objects("images-new"), 2);
}
