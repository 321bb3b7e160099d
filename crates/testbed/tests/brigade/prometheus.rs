//! A real Prometheus with our settings asks real processes in mid-run: each panel of the dashboard has
//! figures, and each alert rule can be decided.

use std::process::Command;

use bucket_brigade_testbed::process::ChildProcess;
use serde_json::Value;
use tempfile::TempDir;

use crate::http_endpoint::{free_address, http_get};
use crate::installed::{prometheus_tool, skip_test};
use crate::observability::{dashboard, deployed, queries};
use crate::rig::{TestRig, stop_consumer, wait_until};

/// More rows than move while the test looks, at so many per second.
const ROWS: usize = 900;
const ROWS_PER_SECOND: &str = "20";

/// `prometheus.yml` as deployed, but with addresses in place of the compose stack's names, and impatient.
fn settings(feeder: &str, consumer: &str) -> String {
    let mut settings = std::fs::read_to_string(deployed("prometheus.yml")).unwrap();
    for (name, address) in [("feeder", feeder), ("consumer", consumer)] {
        let by_name = format!(
            "dns_sd_configs:\n      - names: [{name}]\n        type: A\n        port: 9100\n        refresh_interval: 10s"
        );
        assert!(settings.contains(&by_name), "{settings}");
        let by_address = format!("static_configs:\n      - targets: ['{address}']");
        settings = settings.replace(&by_name, &by_address);
    }
    let rules = deployed("alerts.yml").display().to_string();
    settings
        .replace("[alerts.yml]", &format!("['{rules}']"))
        .replace("interval: 10s", "interval: 1s")
}

/// Prometheus and where it listens, its data in the directory; none where it is not installed.
async fn start_prometheus(
    directory: &TempDir,
    settings: &str,
) -> Option<(tokio::process::Child, String)> {
    let file = directory.path().join("prometheus.yml");
    std::fs::write(&file, settings).unwrap();
    let address = free_address();
    let process = tokio::process::Command::new(prometheus_tool("prometheus"))
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.path().display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    wait_until("Prometheus", async || {
        http_get(&address, "/-/ready").await.contains("200 OK")
    })
    .await;
    Some((process, address))
}

/// The value of each series that an expression gives. Panics when it cannot be evaluated.
fn query_values(address: &str, expression: &str) -> Vec<f64> {
    let output = Command::new(prometheus_tool("promtool"))
        .args(["query", "instant", "-o", "json"])
        .arg(format!("http://{address}"))
        .arg(expression)
        .output()
        .unwrap();
    assert!(output.status.success(), "{expression}: {output:?}");
    let series: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let value = |one: &Value| one["value"][1].as_str().unwrap().parse().unwrap();
    series.iter().map(value).collect()
}

/// Waits until an expression gives figures that are numbers.
async fn assert_has_values(address: &str, expression: &str) {
    wait_until(expression, async || {
        let values = query_values(address, expression);
        !values.is_empty() && values.iter().all(|value| value.is_finite())
    })
    .await;
}

/// The alert rules as Prometheus has them, once it has decided each.
async fn read_rules(address: &str) -> Vec<Value> {
    let read = async || -> Vec<Value> {
        let answer = http_get(address, "/api/v1/rules").await;
        let json = answer.find('{').zip(answer.rfind('}'));
        let answer = json.map_or("{}", |(start, end)| &answer[start..=end]);
        let answer: Value = serde_json::from_str(answer).unwrap_or_default();
        let rules = answer["data"]["groups"][0]["rules"].as_array();
        rules.cloned().unwrap_or_default()
    };
    wait_until("the rules", async || {
        let rules = read().await;
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] != "unknown")
    })
    .await;
    read().await
}

/// The question of a rule, answered with 1 or 0 also where there is no sample.
fn rule_as_query(rule: &Value) -> String {
    let question = rule["query"].as_str().unwrap();
    question.replace("== ", "== bool ").replace("> ", "> bool ")
}

/// A feeder and a consumer at work, slowly, and where they serve their metrics.
async fn start_programs(rig: &TestRig) -> ([ChildProcess; 2], [String; 2]) {
    rig.add_images(ROWS).await;
    rig.open_run().await;
    let limited = rig.run_feeder(&["limit", "--rate", ROWS_PER_SECOND]).await;
    assert_eq!(limited.code, 0, "{}", limited.log);
    let addresses = [free_address(), free_address()];
    let feeder = rig.spawn("feeder", &[("METRICS_ADDR", &addresses[0])], &[]);
    let consumer = rig.spawn_consumer(&[("METRICS_ADDR", &addresses[1])]);
    ([feeder, consumer], addresses)
}

#[tokio::test]
async fn every_panel_has_figures_and_every_alert_is_decided() {
    let rig = TestRig::new().await;
    let ([feeder, consumer], [of_feeder, of_consumer]) = start_programs(&rig).await;
    let directory = TempDir::new().unwrap();
    let settings = settings(&of_feeder, &of_consumer);
    let Some((_process, address)) = start_prometheus(&directory, &settings).await else {
        return skip_test("prometheus is missing");
    };
    wait_until("both jobs", async || {
        query_values(&address, "sum by (job) (up)") == [1.0, 1.0]
    })
    .await;
    let dashboard = dashboard();
    let queries = queries(&dashboard);
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries {
        assert_has_values(&address, &query.replace("$__rate_interval", "15s")).await;
    }
    for rule in read_rules(&address).await {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_has_values(&address, &rule_as_query(&rule)).await;
        let is_quiet = rule["state"] == "inactive";
        assert!(is_quiet, "nothing is wrong, and yet: {rule}");
    }
    let moved = rig.ledger_counter("moved").await;
    assert!(moved > 0 && moved < i64::try_from(ROWS).unwrap(), "{moved}");
    drop(feeder);
    stop_consumer(consumer).await;
}
