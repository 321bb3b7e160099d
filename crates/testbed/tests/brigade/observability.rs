//! What `deploy/observability` and the template for ECS ask for is what the programs serve and log, and promtool
//! understands all of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::http_endpoint::{free_address, http_get};
use crate::installed::{prometheus_tool, skip_test};
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// The start of each of our metrics' names.
const PREFIX: &str = "bucket_brigade_";

pub(crate) fn deployed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy/observability")
        .join(file)
}

/// The metrics named in a text.
fn named(text: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(|letter| !is_part(letter))
        .filter(|word| word.starts_with(PREFIX))
        .map(str::to_owned)
        .collect()
}

/// The series in an answer of `/metrics`.
fn served(answer: &str) -> BTreeSet<String> {
    let series = answer.lines().filter(|line| line.starts_with(PREFIX));
    let names = series.filter_map(|line| line.split(['{', ' ']).next());
    names.map(str::to_owned).collect()
}

pub(crate) fn dashboard() -> serde_json::Value {
    let text = std::fs::read_to_string(deployed("grafana/dashboard.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The query of each panel.
pub(crate) fn queries(dashboard: &serde_json::Value) -> Vec<&str> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap())
        .collect()
}

/// What promtool says; none where there is none.
fn promtool(arguments: &[&str]) -> Option<Output> {
    let output = Command::new(prometheus_tool("promtool"))
        .args(arguments)
        .current_dir(deployed(""))
        .output();
    if output.is_err() {
        skip_test("promtool is missing");
    }
    output.ok()
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_what_is_served() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let (of_consumer, of_feeder) = (free_address(), free_address());
    let consumer = rig.spawn_consumer(&[("METRICS_ADDR", &of_consumer)]);
    let settings = [
        ("METRICS_ADDR", of_feeder.as_str()),
        ("WATCH_INTERVAL", "200ms"),
    ];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    // Every message has an age, every copy and commit a time; the feeder has counted the scope.
    wait_until("the figures", async || {
        let figures = http_get(&of_consumer, "/metrics").await;
        figures.contains("bucket_brigade_message_age_seconds_count 5")
            && figures.contains("bucket_brigade_copy_seconds_count 5")
            && figures.contains("bucket_brigade_moved_total 5")
            && http_get(&of_feeder, "/metrics")
                .await
                .contains("run_in_scope 5")
    })
    .await;
    let figures = http_get(&of_consumer, "/metrics").await;
    assert!(!figures.contains("commit_seconds_count 0"), "{figures}");
    let mut all = served(&figures);
    all.extend(served(&http_get(&of_feeder, "/metrics").await));
    stop_consumer(consumer).await;
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));

    let dashboard = dashboard();
    let alerts = std::fs::read_to_string(deployed("alerts.yml")).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.iter().all(|query| !named(query).is_empty()));
    // What a description names is no metric but a table.
    let expressions = alerts.lines().filter(|line| !line.contains("description:"));
    let expressions: String = expressions.collect();
    let asked = named(&(queries.join("\n") + &expressions));
    let unknown: Vec<_> = asked.difference(&all).collect();
    assert!(asked.len() > 12, "{asked:?}");
    assert!(unknown.is_empty(), "not served: {unknown:?}");
}

#[test]
fn promtool_understands_rules_and_settings() {
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts.test.yml"],
    ] {
        if let Some(output) = promtool(&arguments) {
            assert!(output.status.success(), "{output:?}");
        }
    }
}

#[tokio::test]
async fn a_process_is_ready_once_its_checks_are_through_and_not_in_an_outage() {
    let rig = TestRig::new().await;
    let address = free_address();
    let consumer = rig.spawn_consumer(&[("METRICS_ADDR", &address)]);
    wait_until("an answer", async || {
        http_get(&address, "/healthz").await.contains("200 OK")
    })
    .await;
    let answer = http_get(&address, "/readyz").await;
    assert!(
        answer.contains("503") && answer.contains("starting"),
        "{answer}"
    );
    let figures = http_get(&address, "/metrics").await;
    assert!(figures.contains("bucket_brigade_ready 0"), "{figures}");
    assert!(figures.contains("version=0.0.4"), "{figures}");
    rig.open_run().await;
    wait_until("readiness", async || {
        http_get(&address, "/readyz").await.contains("200 OK")
    })
    .await;
    let outage = rig.cloud.inject_fault(Fault::new(
        "CopyObject",
        FaultEffect::error(400, "ExpiredToken"),
    ));
    let ids = rig.add_images(1).await;
    rig.feed_row(&ids[0], "image/0.png").await;
    wait_until("the outage", async || {
        http_get(&address, "/readyz").await.contains("ExpiredToken")
    })
    .await;
    outage.remove();
    wait_until("readiness again", async || {
        http_get(&address, "/readyz").await.contains("200 OK")
    })
    .await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn the_feeder_logs_how_many_consumers_are_held_back() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.open_run().await;
    assert_eq!(rig.run_feeder(&["pause"]).await.code, 0);
    let consumers = [rig.spawn_consumer(&[]), rig.spawn_consumer(&[])];
    let mut feeder = rig.spawn("feeder", &[("LOG_FORMAT", "json")], &[]);
    let logged = |consumers: u64, held_back: u64| {
        let wanted = move |line: &serde_json::Value| {
            line["consumers"] == consumers && line["held_back"] == held_back
        };
        let log = feeder.log_tail(400);
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.any(|line| wanted(&line))
    };
    wait_until("paused consumers", async || logged(2, 2)).await;
    assert_eq!(rig.run_feeder(&["resume"]).await.code, 0);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
}
