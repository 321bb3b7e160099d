//! Health and figures over HTTP.

use std::net::TcpListener;

use bucket_brigade_testbed::{Fault, FaultEffect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{ExitedProcess, TestRig, stop_consumer, wait_for_exit, wait_until};

/// An address that is free. The system gives away none of these ports by itself: nobody has it a moment later.
pub(crate) fn free_address() -> String {
    loop {
        let address = format!("127.0.0.1:{}", fastrand::u16(20_000..32_000));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// The whole answer to a GET; empty when there is none.
pub(crate) async fn http_get(address: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address).await {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.read_to_string(&mut answer).await;
    }
    answer
}

#[tokio::test]
async fn a_consumer_serves_health_and_metrics() {
    let rig = TestRig::new().await;
    let address = free_address();
    let settings = [
        ("METRICS_ADDR", address.as_str()),
        ("CONDITIONAL_COPY", "on"),
    ];
    let consumer = rig.spawn_consumer(&settings);
    // Already while it waits for its run.
    wait_until("an answer", async || {
        http_get(&address, "/healthz").await.contains("200 OK")
    })
    .await;
    rig.open_run().await;
    let outage = rig.cloud.inject_fault(Fault::new(
        "CopyObject",
        FaultEffect::error(400, "ExpiredToken"),
    ));
    let ids = rig.add_images(5).await;
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    wait_until("the outage", async || {
        let answer = http_get(&address, "/healthz").await;
        answer.contains("503") && answer.contains("ExpiredToken")
    })
    .await;
    assert!(
        http_get(&address, "/metrics")
            .await
            .contains("bucket_brigade_healthy 0")
    );
    outage.remove();
    wait_until("the moves", async || {
        http_get(&address, "/metrics")
            .await
            .contains("bucket_brigade_moved_total 5")
    })
    .await;
    assert!(http_get(&address, "/healthz").await.contains("200 OK"));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_feeder_serves_the_runs_metrics() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let address = free_address();
    let consumer = rig.spawn_consumer(&[]);
    let settings = [
        ("METRICS_ADDR", address.as_str()),
        ("WATCH_INTERVAL", "200ms"),
    ];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    wait_until("the figures", async || {
        http_get(&address, "/metrics")
            .await
            .contains("bucket_brigade_run_moved 5")
    })
    .await;
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    stop_consumer(consumer).await;
}

/// Asks as a container's health check does.
async fn run_healthcheck(
    rig: &TestRig,
    program: &str,
    address: &str,
    arguments: &[&str],
) -> ExitedProcess {
    let arguments = [&["healthcheck"], arguments].concat();
    let settings = [("METRICS_ADDR", address)];
    wait_for_exit(&mut rig.spawn(program, &settings, &arguments)).await
}

#[tokio::test]
async fn a_container_can_ask_for_the_health() {
    let rig = TestRig::new().await;
    let address = free_address();
    for program in ["feeder", "consumer"] {
        let unanswered = run_healthcheck(&rig, program, &address, &[]).await;
        assert_eq!(unanswered.code, Some(1));
        assert!(
            unanswered.log.contains("does not respond"),
            "{}",
            unanswered.log
        );
        let nowhere = run_healthcheck(&rig, program, "-", &[]).await;
        assert_eq!(nowhere.code, Some(64));
        assert!(nowhere.log.contains("METRICS_ADDR"), "{}", nowhere.log);
    }
    let settings = [("METRICS_ADDR", address.as_str())];
    let consumer = rig.spawn_consumer(&settings);
    wait_until("health", async || {
        run_healthcheck(&rig, "consumer", &address, &[]).await.code == Some(0)
    })
    .await;
    rig.open_run().await;
    let outage = rig.cloud.inject_fault(Fault::new(
        "ReceiveMessage",
        FaultEffect::error(403, "AccessDenied"),
    ));
    wait_until("the outage", async || {
        let asked = run_healthcheck(&rig, "consumer", &address, &[]).await;
        asked.code == Some(1) && asked.log.contains("AccessDenied")
    })
    .await;
    // A restart would not help it.
    let alive = run_healthcheck(&rig, "consumer", &address, &["--alive"]).await;
    assert_eq!(alive.code, Some(0), "{}", alive.log);
    outage.remove();
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_reported() {
    let rig = TestRig::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for address in ["9100", &address] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run_program(program, &[("METRICS_ADDR", address)]).await;
            assert_eq!(ended.code, Some(64), "{}", ended.log);
            assert!(ended.log.contains("METRICS_ADDR"), "{}", ended.log);
        }
    }
}

/// Of a client that sends half a request and nothing more.
async fn send_half_requests(address: &str, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost")
            .await
            .unwrap();
        held.push(stream);
    }
    held
}

#[tokio::test]
async fn half_requests_take_neither_the_files_nor_the_health() {
    let rig = TestRig::new().await;
    let (metrics, page) = (free_address(), free_address());
    let settings = [
        ("METRICS_ADDR", metrics.as_str()),
        ("STATUS_ADDR", page.as_str()),
    ];
    let feeder = rig.spawn("feeder", &settings, &["--watch"]);
    for (address, path) in [(&metrics, "/readyz"), (&page, "/status.json")] {
        wait_until("its answer", async || {
            http_get(address, path).await.contains("200 OK")
        })
        .await;
        let held = send_half_requests(address, 120).await;
        wait_until("an answer beside them", async || {
            http_get(address, path).await.contains("200 OK")
        })
        .await;
        let files = std::fs::read_dir(format!("/proc/{}/fd", feeder.id().unwrap()));
        let files = files.unwrap().count();
        assert!(files < 120, "{files} open files");
        drop(held);
    }
}
