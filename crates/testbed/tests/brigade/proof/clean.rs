//! clean: which sources go, which stay and why.

use std::time::Duration;

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use super::age_requests;
use crate::rig::{TestRig, wait_until};

pub(super) const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

#[tokio::test]
async fn nothing_goes_without_a_verify_newer_than_the_move_and_the_buckets_name() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(
        ended.log.contains("3 of 3 moves have not been verified"),
        "{}",
        ended.log
    );
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    // Moved once more since.
    rig.execute_sql("UPDATE bucket_brigade.moves SET moved_at = now()")
        .await;
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let ended = rig
        .run_command(&["clean", "--older-than", "0s", "--confirm", "images-new"])
        .await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    let ended = rig.run_command(&["clean", "--older-than", "0s"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        ended
            .log
            .contains("3 sources (33 bytes) may go from bucket images-old"),
        "{}",
        ended.log
    );
    assert!(
        ended
            .log
            .contains("Nothing was removed. To do it, add --confirm images-old.")
    );
    let result = rig
        .run_json_command(&["clean", "--older-than", "1h", "--confirm", "images-old"])
        .await;
    assert_eq!(
        (
            result.code,
            result.number_of("objects"),
            result.number_of("young")
        ),
        (0, 0, 3)
    );
    assert_eq!(rig.run_command(&["clean"]).await.code, Some(64));
    let requests = rig.cloud.request_counts();
    assert_eq!(
        requests.count_operation_by("feeder", "DeleteObjects")
            + requests.count_operation_by("feeder", "DeleteObject"),
        0
    );
}

#[tokio::test]
async fn verified_sources_are_deleted_in_one_request_and_reported() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(5).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (
            result.code,
            result.number_of("removed"),
            result.number_of("bytes")
        ),
        (0, 5, 55)
    );
    assert_eq!(result.sorted_fields("objects", "key")[0], "image/0.png");
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("feeder", "DeleteObjects"),
        1
    );
    for number in 0..5 {
        assert!(
            !rig.object_exists("images-old", &format!("image/{number}.png"))
                .await
        );
        assert!(
            rig.object_exists("images-new", &format!("avatar/{number}.png"))
                .await
        );
    }
    let written = "SELECT count(*) FROM bucket_brigade.removals
        WHERE NOT is_orphan AND bucket = 'images-old' AND removed_at > removing_at - interval '1 second'";
    assert_eq!(rig.query_number(written).await, 5);
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    let again = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (again.code, again.number_of("objects")),
        (0, 0),
        "nothing is removed twice"
    );
    assert_eq!(rig.run_json_command(&["verify", "--full"]).await.code, 0);
}

#[tokio::test]
async fn what_is_needed_or_not_what_was_verified_stays() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(6).await;
    let sharer = rig.add_image("image/shared.png").await;
    rig.add_row("image/shared.png").await;
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.set_path(&ids[0], "image/0.png").await;
    rig.add_row("image/1.png").await;
    rig.put_object("images-old", "image/2.png", b"newer").await;
    rig.put_object("images-new", "avatar/3.png", b"the application's")
        .await;
    rig.delete_object("images-new", "avatar/4.png").await;
    // One of two rows that share a source is not verified.
    rig.execute_sql(&format!(
        "UPDATE bucket_brigade.moves SET verified_at = NULL WHERE row_id = '{sharer}'"
    ))
    .await;
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (
            result.code,
            result.number_of("removed"),
            result.number_of("left_alone")
        ),
        (2, 1, 5)
    );
    let reasons = result.sorted_fields("objects", "left_because");
    let count = |reason: &str| reasons.iter().filter(|text| text.contains(reason)).count();
    assert_eq!(count("a row names it"), 2);
    assert_eq!(count("not the object that was verified"), 1);
    assert_eq!(count("has replaced its copy"), 1);
    assert_eq!(count("its copy does not exist"), 1);
    for name in ["0", "1", "2", "3", "4", "shared"] {
        assert!(
            rig.object_exists("images-old", &format!("image/{name}.png"))
                .await,
            "{name}"
        );
    }
    assert!(!rig.object_exists("images-old", "image/5.png").await);
}

/// Two runs share a bucket: the other's table may name the object too.
#[tokio::test]
async fn a_row_of_another_runs_table_is_asked_too() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    rig.execute_sql(
        "CREATE TABLE \"Covers\" (id bigint PRIMARY KEY, \"Path\" text);
         INSERT INTO \"Covers\" VALUES (1, 'https://old.example/0.png')",
    )
    .await;
    let other = [
        ("IMAGES_TABLE", "Covers"),
        ("PATH_COLUMN", "Path"),
        ("OLD_PREFIX", "https://old.example/"),
        ("NEW_PREFIX", "https://new.example/"),
        ("SOURCE_KEY_PREFIX", "image/"),
        ("DESTINATION_KEY_PREFIX", "cover/"),
    ];
    // Its feeder only opens the run.
    let mut feeder = rig.spawn("feeder", &other, &[]);
    wait_until("the other run", async || rig.count_rows("run").await == 2).await;
    feeder.kill().await.unwrap();
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("removed")), (2, 1));
    assert!(rig.object_exists("images-old", "image/0.png").await);
    // Where it cannot be asked, nothing goes.
    rig.execute_sql("DROP TABLE \"Covers\"").await;
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(69), "{}", ended.log);
    assert!(ended.log.contains("cannot be known"), "{}", ended.log);
    assert!(rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn a_row_that_comes_to_name_it_in_that_very_moment_gets_it_back() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let slow = Fault::new("DeleteObjects", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow);
    let mut clean = rig.spawn_json_command(&CLEAN);
    wait_until("the removal", async || slow.hits() > 0).await;
    rig.set_path(&ids[0], "image/0.png").await;
    assert_eq!(clean.wait_for_exit().await.unwrap().code(), Some(2));
    assert!(
        clean.log_tail(9).contains("brought back"),
        "{}",
        clean.log_tail(9)
    );
    assert!(rig.object_exists("images-old", "image/0.png").await);
    assert!(!rig.object_exists("images-old", "image/1.png").await);
    let removed = "SELECT count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL";
    assert_eq!(rig.query_number(removed).await, 1);
}

#[tokio::test]
async fn what_cannot_be_restored_is_logged_as_an_error_and_retried() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let slow = Fault::new("DeleteObjects", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow);
    let mut clean = rig.spawn_json_command(&CLEAN);
    wait_until("the removal", async || slow.hits() > 0).await;
    let denied = Fault::new("CopyObject", FaultEffect::error(403, "AccessDenied"));
    let denied = rig.cloud.inject_fault(denied.caller("feeder"));
    rig.set_path(&ids[0], "image/0.png").await;
    assert_eq!(clean.wait_for_exit().await.unwrap().code(), Some(1));
    let result = clean.log_tail(9);
    assert!(result.contains("COULD NOT BE BROUGHT BACK"), "{result}");
    assert!(!rig.object_exists("images-old", "image/0.png").await);
    drop((slow, denied));
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("left_alone")), (2, 1));
    assert!(rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn nothing_is_removed_that_could_not_be_brought_back() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let denied = Fault::new("CopyObject", FaultEffect::error(403, "AccessDenied"));
    let denied = rig.cloud.inject_fault(denied.caller("feeder"));
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(ended.log.contains("brought back"), "{}", ended.log);
    assert!(ended.log.contains("images-old"), "{}", ended.log);
    assert!(rig.object_exists("images-old", "image/0.png").await);
    drop(denied);
    assert_eq!(rig.run_json_command(&CLEAN).await.code, 0);
}

#[tokio::test]
async fn an_object_replaced_in_that_very_moment_stays() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let slow = Fault::new("DeleteObjects", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow);
    let mut clean = rig.spawn_json_command(&CLEAN);
    wait_until("the removal", async || slow.hits() > 0).await;
    rig.put_object("images-old", "image/0.png", b"the application's")
        .await;
    assert_eq!(
        clean.wait_for_exit().await.unwrap().code(),
        Some(2),
        "{}",
        clean.log_tail(9)
    );
    assert!(rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn a_bucket_with_versions_gets_delete_markers() {
    let rig = TestRig::new().await;
    let versions = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
    let s3 = rig.cloud.s3_client();
    let put = s3.put_bucket_versioning().bucket("images-old");
    put.versioning_configuration(versions.build())
        .send()
        .await
        .unwrap();
    let ids = rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let seen = rig.run_command(&["clean", "--older-than", "0s"]).await.log;
    assert!(seen.contains("a delete marker hides each object"), "{seen}");
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("delete_markers")), (0, 2));
    assert!(!rig.object_exists("images-old", "image/0.png").await);
    let versions = s3
        .list_object_versions()
        .bucket("images-old")
        .send()
        .await
        .unwrap();
    let markers = versions.delete_markers().iter();
    let markers = markers.filter(|marker| !marker.key().unwrap_or_default().contains("probe"));
    let kept = versions.versions().iter();
    let kept = kept.filter(|version| !version.key().unwrap_or_default().contains("probe"));
    assert_eq!((kept.count(), markers.count()), (2, 2));
    let result = rig
        .run_json_command(&["rollback", "--ids", &ids[0], "--yes"])
        .await;
    assert_eq!(
        result.field_of("left_alone", &ids[0], "reason"),
        "source_removed"
    );
}

/// Moved, verified, cleaned: keys that other tools stumble over, one of which XML cannot hold.
#[tokio::test]
async fn odd_keys_go_like_any_other() {
    let rig = TestRig::new().await;
    let odd = [
        "a b+c.png",
        "50%25.png",
        "x#y?z&=.png",
        "é日本.png",
        "'\"<&>.png",
        "bell\u{7}.png",
    ];
    for name in odd {
        rig.put_object("images-old", &format!("image/{name}"), name.as_bytes())
            .await;
        rig.add_row(&format!("image/{name}")).await;
    }
    rig.run_migration().await;
    assert_eq!(rig.count_rows("moves").await, 6);
    let result = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(
        (result.code, result.number_of("sound")),
        (0, 6),
        "{}",
        result.json
    );
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (result.code, result.number_of("removed")),
        (0, 6),
        "{}",
        result.json
    );
    for name in odd {
        assert!(
            !rig.object_exists("images-old", &format!("image/{name}"))
                .await,
            "{name}"
        );
        assert!(
            rig.object_exists("images-new", &format!("avatar/{name}"))
                .await,
            "{name}"
        );
    }
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("feeder", "DeleteObject"),
        4,
        "the bell alone, and the probes of a delete and of the way back"
    );
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_read_right_before() {
    let ignoring = CloudOptions {
        conditional_copy: false,
        ..CloudOptions::default()
    };
    let rig = TestRig::with_options(ignoring, CreateQueueOptions::default()).await;
    rig.add_images(2).await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    crate::rig::stop_consumer(consumer).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.put_object("images-old", "image/0.png", b"newer").await;
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("removed")), (2, 1));
    assert!(rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn one_refused_object_does_not_keep_the_others() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let denied = Fault::new("HeadObject", FaultEffect::error(403, "AccessDenied"));
    let _denied = rig
        .cloud
        .inject_fault(denied.caller("feeder").key_contains("image/1"));
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (
            result.code,
            result.number_of("removed"),
            result.number_of("left_alone")
        ),
        (2, 2, 1)
    );
    assert!(rig.object_exists("images-old", "image/1.png").await);
}

/// A store that knows no `DeleteObjects`, or wants it signed in another way.
#[tokio::test]
async fn where_a_batch_is_refused_objects_go_one_by_one() {
    for (status, code) in [
        (400, "MissingContentMD5"),
        (501, "NotImplemented"),
        (405, "MethodNotAllowed"),
    ] {
        let rig = TestRig::new().await;
        rig.add_moved_images(3).await;
        assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
        rig.put_object("images-old", "image/0.png", b"newer").await;
        let refused = Fault::new("DeleteObjects", FaultEffect::error(status, code));
        let _refused = rig.cloud.inject_fault(refused);
        let result = rig.run_json_command(&CLEAN).await;
        assert_eq!((result.code, result.number_of("removed")), (2, 2), "{code}");
        assert!(rig.object_exists("images-old", "image/0.png").await);
        assert!(!rig.object_exists("images-old", "image/1.png").await);
    }
}

#[tokio::test]
async fn a_row_gets_its_object_back_also_when_the_removal_ended_with_an_error() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let broken = Fault::new(
        "DeleteObjects",
        FaultEffect::error_after(500, "InternalError"),
    );
    let broken = rig.cloud.inject_fault(broken.times(5));
    let denied = Fault::new("DeleteObjects", FaultEffect::error(403, "AccessDenied"));
    let denied = rig.cloud.inject_fault(denied);
    let mut clean = rig.spawn_json_command(&CLEAN);
    wait_until("the removal", async || broken.hits() > 0).await;
    rig.set_path(&ids[0], "image/0.png").await;
    assert_eq!(clean.wait_for_exit().await.unwrap().code(), Some(77));
    assert!(rig.object_exists("images-old", "image/0.png").await);
    drop((broken, denied));
    for removed in [0, 1] {
        let result = rig.run_json_command(&CLEAN).await;
        assert_eq!((result.code, result.number_of("removed")), (2, removed));
        age_requests(&rig).await;
    }
    assert!(rig.object_exists("images-old", "image/0.png").await);
}
