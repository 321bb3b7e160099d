//! Source and destination in two stores, and S3 elsewhere than the queue.

use bucket_brigade_testbed::{Cloud, CloudOptions};

use crate::rig::{TestRig, wait_for_exit};
use crate::stores::{CLEAN, migrate};

/// A destination of its own, and the settings that name it.
async fn second_store() -> Cloud {
    let other = Cloud::start(CloudOptions::default()).unwrap();
    other.create_bucket("images-new").await.unwrap();
    other
}

#[tokio::test]
async fn images_move_between_two_stores_and_back() {
    let rig = TestRig::new().await;
    let other = second_store().await;
    let url = other.endpoint_url();
    let files = tempfile::TempDir::new().unwrap();
    let credentials = files.path().join("credentials");
    let profile = "[other]\naws_access_key_id = elsewhere\naws_secret_access_key = secret\n";
    std::fs::write(&credentials, profile).unwrap();
    let settings = [
        ("DESTINATION_ENDPOINT", url.as_str()),
        ("DESTINATION_PROFILE", "other"),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
    ];
    let ids = rig.add_images(3).await;
    migrate(&rig, &settings).await;
    assert_eq!(rig.count_rows("moves").await, 3);
    assert_eq!(
        (
            other.count_objects("images-new"),
            rig.cloud.count_objects("images-new")
        ),
        (3, 0)
    );
    let counts = other.request_counts();
    assert_eq!(counts.count_operation_by("elsewhere", "CopyObject"), 0);
    assert!(counts.count_operation_by("elsewhere", "PutObject") >= 3);
    for (arguments, code) in [
        (&["verify", "--full"][..], 0),
        // Written since, which their clocks do not tell.
        (&["verify", "--recopy"], 0),
        (&["verify"], 0),
        (&["rollback", "--ids", ids[0].as_str(), "--yes"], 0),
        (&CLEAN, 0),
    ] {
        if arguments.contains(&"--recopy") {
            rig.put_object("images-old", "image/1.png", b"newer").await;
        }
        let mut command = rig.spawn("feeder", &settings, arguments);
        let ended = wait_for_exit(&mut command).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.log);
    }
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
    assert_eq!(rig.cloud.count_objects("images-old"), 1);
    // What no store can do.
    let server = [&settings[..], &[("COPY_METHOD", "server")]].concat();
    let ended = rig.run_program("feeder", &server).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(ended.log.contains("COPY_METHOD"), "{}", ended.log);
    for setting in ["S3_PROFILE", "SOURCE_PROFILE", "DESTINATION_PROFILE"] {
        let nobody = [&settings[..1], &[(setting, "nobody")]].concat();
        let ended = rig.run_program("consumer", &nobody).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        let words = format!("{setting}: profile 'nobody' has no credentials");
        assert!(ended.log.contains(&words), "{}", ended.log);
    }
}

#[tokio::test]
async fn s3_elsewhere_than_the_queue_with_credentials_of_its_own() {
    let rig = TestRig::new().await;
    let other = second_store().await;
    other.create_bucket("images-old").await.unwrap();
    let s3 = other.s3_client();
    let put = s3.put_object().bucket("images-old").key("image/0.png");
    put.send().await.unwrap();
    rig.add_row("image/0.png").await;
    let url = other.endpoint_url();
    let files = tempfile::TempDir::new().unwrap();
    let credentials = files.path().join("credentials");
    let profile = "[store]\naws_access_key_id = elsewhere\naws_secret_access_key = secret\n";
    std::fs::write(&credentials, profile).unwrap();
    let settings = [
        ("AWS_ENDPOINT_URL_S3", url.as_str()),
        ("S3_PROFILE", "store"),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
    ];
    migrate(&rig, &settings).await;
    assert_eq!(rig.count_rows("moves").await, 1);
    let counts = other.request_counts();
    assert_eq!(
        counts.count_operation_by("elsewhere", "CopyObject"),
        2,
        "with the probe's"
    );
    assert_eq!(counts.count_operation_by("consumer", "CopyObject"), 0);
}
