//! Source and destination in two stores, and S3 elsewhere than the queue.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::proxy::SilenceMode;
use bucket_brigade_testbed::{Cloud, CloudOptions, Fault, FaultEffect};

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};
use crate::silent_cloud::{feed_images, start_proxy};
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
        let words = format!("{setting}: there is no profile 'nobody', or it has no credentials");
        assert!(ended.log.contains(&words), "{}", ended.log);
    }
}

/// Both stores have such a bucket: a row would name nothing in the one that is meant.
#[tokio::test]
async fn a_consumer_whose_settings_name_one_of_two_stores_moves_nothing() {
    let rig = TestRig::new().await;
    let other = second_store().await;
    let url = other.endpoint_url();
    rig.add_images(3).await;
    let mut feeder = rig.spawn("feeder", &[("DESTINATION_ENDPOINT", &*url)], &[]);
    wait_until("the messages", async || rig.visible_messages().await == 3).await;
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    let names_it = ended
        .log
        .contains("DESTINATION_ENDPOINT: the run is from one store");
    assert!(names_it, "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 0);
    let consumer = rig.spawn_consumer(&[("DESTINATION_ENDPOINT", &*url)]);
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(other.count_objects("images-new"), 3);
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

/// Within a minute `/healthz` says what has no response, and names the store.
async fn assert_names_silence(address: &str, what: &str, store: &str) {
    let began = Instant::now();
    wait_until("the outage", async || {
        let health = http_get(address, "/healthz").await;
        health.contains("503") && health.contains(what) && health.contains(store)
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_mins(1), "{took:?}");
}

async fn assert_all_move(rig: &TestRig, count: i64) {
    rig.wait_until_drained().await;
    assert_eq!(rig.ledger_counter("moved").await, count);
    assert_eq!(rig.count_rows("failures").await, 0);
    assert!(rig.cloud.highest_receive_count() <= 1);
}

async fn assert_names_silent_source(is_silent_at_start: bool) {
    let rig = TestRig::new().await;
    let other = second_store().await;
    let (url, address) = (other.endpoint_url(), free_address());
    feed_images(&rig, 400).await;
    let stall = || {
        let stall = Fault::new("GetObject", FaultEffect::StalledBody);
        rig.cloud.inject_fault(stall.caller("consumer"))
    };
    let mut stalled = is_silent_at_start.then(stall);
    // COPY_TIMEOUT is its default, two minutes.
    let settings = [
        ("DESTINATION_ENDPOINT", url.as_str()),
        ("METRICS_ADDR", address.as_str()),
        ("MAX_CONCURRENCY", "8"),
    ];
    let consumer = rig.spawn_consumer(&settings);
    if !is_silent_at_start {
        wait_until("some to move", async || rig.count_rows("moves").await > 0).await;
        stalled = Some(stall());
    }
    assert_names_silence(&address, "no response to reads", "from the source store").await;
    drop(stalled);
    assert_all_move(&rig, 400).await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_source_whose_bytes_do_not_come_is_named() {
    assert_names_silent_source(false).await;
}

/// Nothing else is known to be readable there.
#[tokio::test]
async fn so_is_one_whose_bytes_have_never_come() {
    assert_names_silent_source(true).await;
}

#[tokio::test]
async fn a_destination_that_falls_silent_is_named() {
    let rig = TestRig::new().await;
    let other = second_store().await;
    let (proxy, url) = start_proxy(&other).await;
    feed_images(&rig, 400).await;
    let address = free_address();
    let settings = [
        ("DESTINATION_ENDPOINT", url.as_str()),
        ("METRICS_ADDR", address.as_str()),
        ("MAX_CONCURRENCY", "8"),
    ];
    let consumer = rig.spawn_consumer(&settings);
    wait_until("some to move", async || rig.count_rows("moves").await > 0).await;
    proxy.silence(SilenceMode::Acknowledging, true);
    let store = format!("from the destination store, {url}");
    assert_names_silence(&address, "no response to anything", &store).await;
    proxy.end_silence();
    assert_all_move(&rig, 400).await;
    stop_consumer(consumer).await;
}
