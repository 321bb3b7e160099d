//! The live page over HTTP: what it shows, what it lets a browser do, and who may control the fleet.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const DASHBOARD_TOKEN: &str = "a-token-of-some-length";

/// The whole answer to an order.
async fn post_order(address: &str, path: &str, token: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn is_paused(rig: &TestRig) -> bool {
    rig.query_number("SELECT count(*) FROM bucket_brigade.run WHERE paused")
        .await
        == 1
}

#[tokio::test]
async fn renders_the_run_and_takes_commands_with_the_token() {
    let rig = TestRig::new().await;
    rig.add_images(12).await;
    let address = free_address();
    let settings = [
        ("STATUS_ADDR", address.as_str()),
        ("STATUS_TOKEN", DASHBOARD_TOKEN),
    ];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let consumer = rig.spawn_consumer(&[]);
    wait_until("the page", async || {
        http_get(&address, "/").await.contains("200 OK")
    })
    .await;
    let page = http_get(&address, "/").await.to_lowercase();
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self'"));
    // Everything it names is served by itself.
    for asset in [
        "/page.js",
        "/page.css",
        "/charts.js",
        "/uplot.js",
        "/uplot.css",
    ] {
        assert!(page.contains(&asset[1..]), "{asset}");
        assert!(
            http_get(&address, asset).await.contains("200 OK"),
            "{asset}"
        );
    }
    wait_until("the moves", async || {
        http_get(&address, "/status.json")
            .await
            .contains("\"moved\":12")
    })
    .await;
    assert!(
        post_order(&address, "/pause", "not-the-token-at-all", "{}")
            .await
            .contains("401")
    );
    assert!(http_get(&address, "/pause").await.contains("40"));
    assert!(!is_paused(&rig).await);
    assert!(
        post_order(&address, "/pause", DASHBOARD_TOKEN, "{}")
            .await
            .contains("200 OK")
    );
    assert!(is_paused(&rig).await);
    assert!(
        post_order(&address, "/limit", DASHBOARD_TOKEN, "{\"rate\":-1}")
            .await
            .contains("400")
    );
    assert!(
        post_order(&address, "/limit", DASHBOARD_TOKEN, "{\"rate\":5}")
            .await
            .contains("200 OK")
    );
    rig.execute_sql(
        "INSERT INTO bucket_brigade.run (images_table, id_column, path_column, old_prefix, new_prefix,
            source_bucket, source_key_prefix, destination_bucket, destination_key_prefix, name)
         SELECT images_table, id_column, path_column, old_prefix, 'pics/', source_bucket,
            source_key_prefix, destination_bucket, destination_key_prefix, 'rival' FROM bucket_brigade.run",
    )
    .await;
    for (rival, status) in [("at work", "409"), ("paused", "200 OK")] {
        let answer = post_order(&address, "/resume?run=1", DASHBOARD_TOKEN, "").await;
        assert!(answer.contains(status), "{rival}: {answer}");
        rig.execute_sql("UPDATE bucket_brigade.run SET paused = name = 'rival' OR paused")
            .await;
    }
    rig.execute_sql("DELETE FROM bucket_brigade.run WHERE name = 'rival'")
        .await;
    assert!(!is_paused(&rig).await);
    let limited = "SELECT count(*) FROM bucket_brigade.run WHERE rate_limit = 5";
    assert_eq!(rig.query_number(limited).await, 1);
    stop_consumer(consumer).await;
    feeder.terminate().unwrap();
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert!(!ended.log.contains(DASHBOARD_TOKEN), "{}", ended.log);
}

#[tokio::test]
async fn without_a_token_it_is_read_only() {
    let rig = TestRig::new().await;
    let address = free_address();
    let mut feeder = rig.spawn("feeder", &[("STATUS_ADDR", address.as_str())], &["--watch"]);
    wait_until("the page", async || {
        http_get(&address, "/status.json").await.contains("200 OK")
    })
    .await;
    assert!(
        post_order(&address, "/pause", DASHBOARD_TOKEN, "{}")
            .await
            .contains("404")
    );
    feeder.terminate().unwrap();
    wait_for_exit(&mut feeder).await;
}

async fn get_by_name(address: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /status.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn another_sites_name_is_not_answered() {
    let rig = TestRig::new().await;
    let address = free_address();
    let settings = [
        ("STATUS_ADDR", address.as_str()),
        ("STATUS_HOST", "brigade.example.com"),
    ];
    let _feeder = rig.spawn("feeder", &settings, &["--watch"]);
    wait_until("the page", async || {
        http_get(&address, "/status.json").await.contains("200 OK")
    })
    .await;
    for own in ["localhost:9101", "brigade.example.com", "[::1]:1"] {
        let answer = get_by_name(&address, own).await;
        assert!(answer.contains("200 OK"), "{own}: {answer}");
    }
    let answer = get_by_name(&address, "rebound.example:9101").await;
    assert!(answer.contains(" 421 "), "{answer}");
    assert!(!answer.contains("images-new"), "{answer}");
}

#[tokio::test]
async fn thumbnails_come_from_where_browsers_reach_the_store() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let address = free_address();
    let endpoint = rig.cloud.endpoint_url().replace("127.0.0.1", "localhost");
    let store = endpoint.trim_start_matches("http://");
    let settings = [
        ("STATUS_ADDR", address.as_str()),
        ("STATUS_THUMBNAILS", "true"),
        ("STATUS_THUMBNAILS_ENDPOINT", &endpoint),
    ];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let consumer = rig.spawn_consumer(&[]);
    let start = format!("\"url\":\"{endpoint}/images-new/avatar/");
    wait_until("thumbnails", async || {
        http_get(&address, "/status.json").await.contains(&start)
    })
    .await;
    let status = http_get(&address, "/status.json").await;
    let (_, path) = status.split_once(&format!("\"url\":\"{endpoint}")).unwrap();
    let image = http_get(store, path.split('"').next().unwrap()).await;
    assert!(image.contains("200 OK"), "{image}");
    let page = http_get(&address, "/").await.to_lowercase();
    let allowed = format!("img-src 'self' {endpoint};");
    assert!(page.contains(&allowed), "{page}");
    feeder.terminate().unwrap();
    wait_for_exit(&mut feeder).await;
    stop_consumer(consumer).await;
}

/// Every setting left out but the database's address.
pub(crate) fn database_alone(rig: &TestRig) -> Vec<(String, String)> {
    let names = rig.environment("feeder", &[]).into_iter();
    let names = names.filter(|(name, _)| name != "DATABASE_URL" && name != "PATH");
    names.map(|(name, _)| (name, "-".to_owned())).collect()
}

/// Run 1, and a run `faces` of another column.
pub(crate) async fn open_two_runs(rig: &TestRig) {
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.run (name, images_table, id_column, path_column, old_prefix, new_prefix,
            source_bucket, source_key_prefix, destination_bucket, destination_key_prefix, options, in_scope)
         SELECT 'faces', images_table, id_column, 'face', old_prefix, new_prefix, source_bucket, source_key_prefix,
            destination_bucket, destination_key_prefix, options, 40 FROM bucket_brigade.run;
         INSERT INTO bucket_brigade.feed_cursors (run_id) VALUES (2);
         INSERT INTO bucket_brigade.counters (run_id, worker, moved, changed, failed) VALUES (2, 'c', 7, 2, 1);
         INSERT INTO bucket_brigade.workers (run_id, worker, role, state, moved_per_second, seen_at)
         VALUES (2, 'c', 'consumer', 'running', 2, now() + interval '1 hour');",
    )
    .await;
}

async fn get_status(address: &str, path: &str) -> Value {
    let answer = http_get(address, path).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_default()
}

#[tokio::test]
async fn all_runs_are_on_one_page_with_the_databases_address_alone() {
    let rig = TestRig::new().await;
    let left_out = database_alone(&rig);
    let mut settings: Vec<(&str, &str)> = left_out
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let ended = rig.run_program_with("feeder", &settings, &["dashboard"]);
    let ended = ended.await;
    assert_eq!(ended.code, Some(64));
    assert!(
        ended.log.contains("STATUS_ADDR: is missing"),
        "{}",
        ended.log
    );
    open_two_runs(&rig).await;
    let address = free_address();
    settings.extend([
        ("STATUS_ADDR", &*address),
        ("STATUS_TOKEN", DASHBOARD_TOKEN),
    ]);
    let mut page = rig.spawn("feeder", &settings, &["dashboard"]);
    wait_until("both runs", async || {
        http_get(&address, "/status.json").await.contains("faces")
    })
    .await;
    let status = get_status(&address, "/status.json").await;
    assert_eq!(status["view"], Value::Null, "{status}");
    let faces = &status["runs"][1];
    assert_eq!(
        [&faces["moved"], &faces["failed"], &faces["in_scope"]],
        [7, 1, 40]
    );
    assert_eq!(
        (&faces["eta"], &faces["state"]),
        (&"15s".into(), &"at work".into())
    );
    let chosen = get_status(&address, "/status.json?run=2").await;
    assert_eq!(chosen["view"]["run"]["name"], "faces", "{chosen}");
    assert_eq!(chosen["view"]["workers"][0]["worker"], "c", "{chosen}");
    let unknown = get_status(&address, "/status.json?run=3").await;
    assert_eq!(unknown["view"], Value::Null, "{unknown}");
    for (path, code) in [
        ("/pause", 400),
        ("/pause?run=3", 400),
        ("/pause?run=2", 200),
    ] {
        let answer = post_order(&address, path, DASHBOARD_TOKEN, "{}").await;
        assert!(
            answer.contains(&format!("HTTP/1.1 {code}")),
            "{path}: {answer}"
        );
    }
    wait_until("the pause on the page", async || {
        let status = get_status(&address, "/status.json").await;
        status["runs"][1]["paused"] == "by the live page" && status["runs"][0]["paused"].is_null()
    })
    .await;
    // The same data as on the command line.
    let listed = rig.feeder_json(&["status", "--all", "--json"]).await;
    let shown = get_status(&address, "/status.json").await;
    for run in [&shown["runs"][1], &listed["runs"][1]] {
        assert_eq!(run["last_action"], "pause by the live page", "{run}");
    }
    let screen = rig.run_feeder(&["status", "--all"]).await.output;
    for words in [
        "faces (run 2): paused by the live page",
        "ETA 15s",
        "7 of 40 moved, 2 changed, 1 failed",
    ] {
        assert!(screen.contains(words), "{words}: {screen}");
    }
    page.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut page).await.code, Some(0));
}
