//! S3 and SQS that fall silent without a reset.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::process::ChildProcess;
use bucket_brigade_testbed::proxy::{SilenceMode, SilentProxy};
use bucket_brigade_testbed::{Cloud, Fault, FaultEffect};

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, stop_consumer, wait_until};

pub(crate) async fn start_proxy(cloud: &Cloud) -> (SilentProxy, String) {
    let (_, port) = cloud.endpoint_url().rsplit_once(':').map_or_else(
        || panic!("no port"),
        |(host, port)| (host.to_owned(), port.trim_end_matches('/').to_owned()),
    );
    let proxy = SilentProxy::start(port.parse().unwrap()).await.unwrap();
    let url = format!("http://127.0.0.1:{}", proxy.port());
    (proxy, url)
}

pub(crate) async fn feed_images(rig: &TestRig, count: usize) {
    rig.open_run().await;
    let ids = rig.add_images(count).await;
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
}

#[tokio::test]
async fn copies_go_on_after_all_connections_to_s3_fell_silent() {
    for mode in [SilenceMode::Acknowledging, SilenceMode::Dropping] {
        let rig = TestRig::new().await;
        let (proxy, url) = start_proxy(&rig.cloud).await;
        feed_images(&rig, 200).await;
        // COPY_TIMEOUT is its default, two minutes.
        let settings = [
            ("AWS_ENDPOINT_URL_S3", url.as_str()),
            ("MAX_CONCURRENCY", "8"),
            ("CONDITIONAL_COPY", "on"),
        ];
        let consumer = rig.spawn_consumer(&settings);
        wait_until("some to move", async || rig.count_rows("moves").await > 0).await;
        proxy.silence(mode, false);
        let began = Instant::now();
        rig.wait_until_drained().await;
        assert!(
            began.elapsed() < Duration::from_mins(1),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(rig.ledger_counter("moved").await, 200);
        assert_eq!(rig.count_rows("failures").await, 0);
        stop_consumer(consumer).await;
    }
}

async fn wait_for_outage(address: &str) {
    wait_until("the outage", async || {
        let health = http_get(address, "/healthz").await;
        health.contains("503") && health.contains("the queue")
    })
    .await;
}

fn assert_told(process: &ChildProcess, began: Instant) {
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    let log = process.log_tail(1000);
    assert!(log.contains("the queue cannot be used"), "{log}");
}

#[tokio::test]
async fn a_silent_queue_is_told_within_twenty_seconds() {
    let rig = TestRig::new().await;
    let (proxy, url) = start_proxy(&rig.cloud).await;
    rig.add_images(5).await;
    let (feeder_address, consumer_address) = (free_address(), free_address());
    let settings = |address| {
        [
            ("AWS_ENDPOINT_URL_SQS", url.as_str()),
            ("METRICS_ADDR", address),
            ("WATCH_INTERVAL", "200ms"),
        ]
    };
    let feeder = rig.spawn("feeder", &settings(&feeder_address), &["--watch"]);
    let consumer = rig.spawn_consumer(&settings(&consumer_address));
    wait_until("all to move", async || rig.count_rows("moves").await == 5).await;
    proxy.silence(SilenceMode::Acknowledging, true);
    let began = Instant::now();
    // Something to feed.
    rig.add_image("image/later.png").await;
    wait_for_outage(&consumer_address).await;
    assert_told(&consumer, began);
    wait_for_outage(&feeder_address).await;
    assert_told(&feeder, began);
    proxy.end_silence();
    wait_until("the last to move", async || {
        rig.count_rows("moves").await == 6
    })
    .await;
    for address in [&feeder_address, &consumer_address] {
        wait_until("good health", async || {
            http_get(address, "/healthz").await.contains("200 OK")
        })
        .await;
    }
    stop_consumer(consumer).await;
    drop(feeder);
}

#[tokio::test]
async fn a_silent_store_is_told_within_a_minute_whatever_the_time_limit_of_copies() {
    let rig = TestRig::new().await;
    let (proxy, url) = start_proxy(&rig.cloud).await;
    feed_images(&rig, 200).await;
    let address = free_address();
    // COPY_TIMEOUT is its default, two minutes.
    let settings = [
        ("AWS_ENDPOINT_URL_S3", url.as_str()),
        ("METRICS_ADDR", address.as_str()),
        ("MAX_CONCURRENCY", "8"),
        ("CONDITIONAL_COPY", "on"),
    ];
    let consumer = rig.spawn_consumer(&settings);
    wait_until("some to move", async || rig.count_rows("moves").await > 0).await;
    proxy.silence(SilenceMode::Acknowledging, true);
    let began = Instant::now();
    wait_until("the outage", async || {
        let health = http_get(&address, "/healthz").await;
        health.contains("503") && health.contains("S3: no response")
    })
    .await;
    assert!(began.elapsed() < Duration::from_mins(1));
    // Only the question whether it is back is sent into the silence.
    let accepted = proxy.accepted_connections();
    wait_until("the question", async || {
        proxy.accepted_connections() > accepted
    })
    .await;
    proxy.end_silence();
    let began = Instant::now();
    rig.wait_until_drained().await;
    assert!(began.elapsed() < Duration::from_mins(1));
    assert_eq!(rig.ledger_counter("moved").await, 200);
    assert_eq!(rig.count_rows("failures").await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn an_answer_that_stops_in_its_middle_is_given_up() {
    let rig = TestRig::new().await;
    let (proxy, url) = start_proxy(&rig.cloud).await;
    feed_images(&rig, 10).await;
    // The head of an answer, and not all of its body.
    proxy.silence_after_bytes(150);
    let settings = [
        ("AWS_ENDPOINT_URL_S3", url.as_str()),
        ("COPY_TIMEOUT", "2s"),
        ("CONDITIONAL_COPY", "on"),
    ];
    let consumer = rig.spawn_consumer(&settings);
    wait_until("some connections", async || {
        proxy.accepted_connections() > 4
    })
    .await;
    proxy.silence_after_bytes(u64::MAX);
    rig.wait_until_drained().await;
    assert_eq!(rig.ledger_counter("moved").await, 10);
    assert_eq!(rig.count_rows("failures").await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn an_instance_role_that_cannot_be_asked_for_is_no_wrong_setting() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let no_keys = [
        ("AWS_ACCESS_KEY_ID", "-"),
        ("AWS_SECRET_ACCESS_KEY", "-"),
        ("AWS_EC2_METADATA_DISABLED", "-"),
    ];
    let closed = format!("http://{}", free_address());
    let role = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", closed.as_str());
    let settings: Vec<_> = no_keys.into_iter().chain([role]).collect();
    let ended = rig.run_program("consumer", &settings).await;
    assert_eq!(ended.code, Some(69), "{}", ended.log);
    let disabled = [
        no_keys[0],
        no_keys[1],
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let ended = rig.run_program("consumer", &disabled).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
}

/// Received again and again, messages would end as dead letters, though nothing is wrong with them.
#[tokio::test]
async fn leases_that_are_not_renewed_are_told_and_cost_no_dead_letter() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    for effect in [
        FaultEffect::Delay(Duration::from_hours(1)),
        FaultEffect::error(403, "AccessDenied"),
    ] {
        let before = rig.count_rows("moves").await;
        let silent = Fault::new("ChangeMessageVisibilityBatch", effect).caller("consumer");
        let silent = rig.cloud.inject_fault(silent);
        let slow = FaultEffect::Delay(Duration::from_secs(12));
        let slow = rig
            .cloud
            .inject_fault(Fault::new("CopyObject", slow).key_contains("image/"));
        for number in 0..60 {
            let path = format!("image/{before}-{number}.png");
            let id = rig.add_image(&path).await;
            rig.feed_row(&id, &path).await;
        }
        let address = free_address();
        let consumer = rig.spawn_consumer(&[
            ("METRICS_ADDR", &address),
            ("VISIBILITY_TIMEOUT", "10s"),
            ("MAX_CONCURRENCY", "16"),
        ]);
        wait_until("the outage", async || {
            let health = http_get(&address, "/healthz").await;
            health.contains("503") && health.contains("renewing leases")
        })
        .await;
        wait_until("another receive", async || {
            rig.cloud.highest_receive_count() >= 2
        })
        .await;
        silent.remove();
        slow.remove();
        wait_until("all to move", async || {
            rig.count_rows("moves").await == before + 60
        })
        .await;
        wait_until("good health", async || {
            http_get(&address, "/healthz").await.contains("200 OK")
        })
        .await;
        rig.wait_until_drained().await;
        let receives = rig.cloud.highest_receive_count();
        assert!(receives <= 4, "{receives} receives");
        assert_eq!(rig.dead_letters().await, 0);
        stop_consumer(consumer).await;
    }
}
