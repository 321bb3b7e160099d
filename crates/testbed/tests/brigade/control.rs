//! What an operator sets once for all of a run: a query and hours that hold it, how many rows may fail, where to
//! report what becomes of it.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const PAUSED: &str = "SELECT count(*) FROM bucket_brigade.workers WHERE state = 'paused'";
const FED: &str = "SELECT fed FROM bucket_brigade.feed_cursors";

async fn status(rig: &TestRig) -> (String, String) {
    let status = rig.feeder_json(&["status", "--json"]).await;
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

fn copies(rig: &TestRig) -> u64 {
    let requests = rig.cloud.request_counts();
    requests.count_operation_by("consumer", "CopyObject")
}

/// A rig whose application has a brake.
async fn with_brake() -> TestRig {
    let rig = TestRig::new().await;
    rig.execute_sql("CREATE TABLE brake (pulled integer); INSERT INTO brake VALUES (2)")
        .await;
    rig
}

#[tokio::test]
async fn a_query_holds_feeding_and_copying_while_it_is_true() {
    let rig = with_brake().await;
    let ids = rig.add_images(5).await;
    let query = "SELECT pulled > 1 FROM brake -- the brake\n;";
    let mut feeder = rig.spawn("feeder", &[("THROTTLE_QUERY", query)], &[]);
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    wait_until("both to hold", async || rig.query_number(PAUSED).await == 2).await;
    rig.feed_row(&ids[0], "image/0.png").await;
    let (state, reason) = status(&rig).await;
    assert_eq!(state, "paused");
    let expected = "THROTTLE_QUERY is true: SELECT pulled > 1 FROM brake -- the brake";
    assert_eq!(reason, expected);
    assert_eq!((rig.query_number(FED).await, copies(&rig)), (0, 0));
    rig.execute_sql("UPDATE brake SET pulled = 0").await;
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 5);
    stop_consumer(consumer).await;
}

/// A query that fails when it is asked again holds, and what a killed feeder held is given up after a minute.
#[tokio::test]
async fn what_a_killed_feeder_held_lapses() {
    let rig = with_brake().await;
    let id = rig.add_image("image/a.png").await;
    let query = [("THROTTLE_QUERY", "(SELECT pulled FROM brake) > 2")];
    rig.open_run().await;
    rig.execute_sql("UPDATE bucket_brigade.run SET paused = true")
        .await;
    let mut feeder = rig.spawn("feeder", &query, &[]);
    let consumer = rig.spawn_consumer(&[]);
    wait_until("both", async || rig.query_number(PAUSED).await == 2).await;
    rig.execute_sql("DROP TABLE brake").await;
    let fails = "SELECT count(*) FROM bucket_brigade.workers WHERE held LIKE 'THROTTLE_QUERY fails: %brake%'";
    wait_until("the failure", async || rig.query_number(fails).await == 1).await;
    feeder.kill().await.unwrap();
    rig.execute_sql("UPDATE bucket_brigade.run SET paused = false")
        .await;
    rig.feed_row(&id, "image/a.png").await;
    let held = "SELECT count(*) FROM bucket_brigade.workers WHERE reason LIKE 'THROTTLE_QUERY%'
                   AND role = 'consumer' AND state = 'paused'";
    wait_until("the hold", async || rig.query_number(held).await == 1).await;
    assert_eq!(rig.count_rows("moves").await, 0);
    rig.execute_sql(
        "UPDATE bucket_brigade.workers SET seen_at = now() - interval '61 seconds' WHERE role = 'feeder'",
    )
    .await;
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn what_the_database_does_not_understand_is_refused_by_name() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    for (name, value, problem) in [
        ("THROTTLE_QUERY", "selec 1", "syntax error"),
        (
            "THROTTLE_QUERY",
            "SELECT 'maybe'",
            "neither true, false, null nor a number",
        ),
        ("THROTTLE_QUERY", "SELECT 1, 2", "one column"),
        (
            "THROTTLE_QUERY",
            "SELECT n FROM generate_series(1, 2) n",
            "more than one row",
        ),
        (
            "THROTTLE_QUERY",
            "SELECT nextval('images_id_seq')",
            "read-only transaction",
        ),
        ("FEED_WINDOW", "22:00", "is not HH:MM-HH:MM"),
        ("FEED_WINDOW", "22:00-06:00 Nowhere/Land", "Nowhere/Land"),
        ("MAX_FAILURES", "many", "nor off"),
        ("NOTIFY_URL", "hooks.example/mArkerHook", "https://"),
    ] {
        let ended = rig.run_program("feeder", &[(name, value)]).await;
        assert_eq!(ended.code, Some(64), "{name}={value}: {}", ended.log);
        for word in [name, problem] {
            assert!(ended.log.contains(word), "{value}: {}", ended.log);
        }
        assert!(!ended.log.contains("mArker"), "{}", ended.log);
    }
    assert_eq!(rig.queued_messages().await, 0);
}

/// The hours from so many hours ago, or ahead, to others, where the images are.
async fn hours(rig: &TestRig, from: i32, to: i32) -> String {
    let sql = "SELECT to_char(now() AT TIME ZONE 'Asia/Tokyo' + make_interval(hours => $1), 'HH24:MI') || '-' ||
                      to_char(now() AT TIME ZONE 'Asia/Tokyo' + make_interval(hours => $2), 'HH24:MI') || ' Asia/Tokyo'";
    let query = sqlx::query_scalar(sql).bind(from).bind(to);
    query.fetch_one(&rig.pool).await.unwrap()
}

#[tokio::test]
async fn rows_are_fed_in_the_window_only() {
    let rig = TestRig::new().await;
    let ids = rig.add_images(5).await;
    let later = hours(&rig, 2, 3).await;
    let mut feeder = rig.spawn("feeder", &[("FEED_WINDOW", &later)], &[]);
    let consumer = rig.spawn_consumer(&[]);
    wait_until("the hold", async || rig.query_number(PAUSED).await == 1).await;
    // What is in the queue is copied at any hour.
    rig.feed_row(&ids[0], "image/0.png").await;
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    wait_until("the reason", async || {
        let (state, reason) = status(&rig).await;
        state == "paused" && reason.contains(&format!("outside FEED_WINDOW ({later})"))
    })
    .await;
    assert_eq!(rig.query_number(FED).await, 0);
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    let now = hours(&rig, -2, 2).await;
    let ended = rig.run_program("feeder", &[("FEED_WINDOW", &now)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 5);
    stop_consumer(consumer).await;
}

/// What came by POST. The first request is refused.
struct Hook {
    url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mArkerHook", listener.local_addr().unwrap());
        let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
        let received = Arc::clone(&bodies);
        tokio::spawn(async move {
            let mut is_first = true;
            while let Ok((stream, _)) = listener.accept().await {
                let body = answer_post(stream, std::mem::take(&mut is_first)).await;
                received.lock().unwrap().extend(body);
            }
        });
        Self { url, bodies }
    }

    fn find(&self, event: &str) -> Option<Value> {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().find(|body| body["event"] == event).cloned()
    }

    async fn wait_for(&self, event: &str) -> Value {
        wait_until(event, async || self.find(event).is_some()).await;
        self.find(event).unwrap()
    }
}

async fn answer_post(mut stream: TcpStream, is_refused: bool) -> Option<Value> {
    let (mut request, mut body) = (Vec::new(), None);
    while body.is_none() && stream.read_buf(&mut request).await.ok()? > 0 {
        let text = String::from_utf8_lossy(&request);
        assert!(text.starts_with("POST /mArkerHook"), "{text}");
        let parts = text.split_once("\r\n\r\n");
        body = parts.and_then(|(_, body)| serde_json::from_str(body).ok());
    }
    let status = if is_refused {
        "503 Busy"
    } else {
        "204 No Content"
    };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    body.filter(|_| !is_refused)
}

#[tokio::test]
async fn too_many_failures_pause_the_run_and_a_resume_goes_on() {
    let rig = TestRig::new().await;
    let hook = Hook::start().await;
    for number in 0..6 {
        rig.add_row(&format!("image/missing-{number}.png")).await;
    }
    let settings = [("MAX_FAILURES", "5"), ("NOTIFY_URL", &*hook.url)];
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    let paused = "SELECT count(*) FROM bucket_brigade.run WHERE paused_by = 'MAX_FAILURES'";
    wait_until("the pause", async || rig.query_number(paused).await == 1).await;
    let expected = "by MAX_FAILURES: 6 rows failed, 5 may";
    assert_eq!(status(&rig).await, ("paused".into(), expected.into()));
    let news = hook.wait_for("max_failures").await;
    let text = news["text"].as_str().unwrap();
    assert!(
        text.contains("paused by MAX_FAILURES: 6 rows failed, 5 may"),
        "{text}"
    );
    assert_eq!(news["failed"], 6);
    assert_eq!(rig.run_feeder(&["resume"]).await.code, 0);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(hook.wait_for("finished").await["failed"], 6);
    stop_consumer(consumer).await;
}

/// A wrong bucket, say: a million failures and dead letters would say no more.
#[tokio::test]
async fn a_run_whose_first_thousand_rows_all_fail_pauses() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "INSERT INTO images (path, title) SELECT 'image/missing-' || n, '' FROM generate_series(1, 1500) n",
    )
    .await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    let paused = "SELECT count(*) FROM bucket_brigade.run
                   WHERE paused_by = 'MAX_FAILURES' AND pause_reason LIKE 'the first 1% rows failed, and none has moved'";
    wait_until("the pause", async || rig.query_number(paused).await == 1).await;
    assert_eq!(rig.run_feeder(&["resume"]).await.code, 0);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn what_becomes_of_a_run_is_posted_and_the_url_is_not_told() {
    let rig = TestRig::new().await;
    let hook = Hook::start().await;
    rig.add_images(3).await;
    let consumer = rig.spawn_consumer(&[]);
    let settings = [("NOTIFY_URL", &*hook.url), ("RUST_LOG", "trace")];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let news = hook.wait_for("finished").await;
    assert_eq!((&news["run"], &news["moved"]), (&1.into(), &3.into()));
    assert_eq!(news["table"], "public.images");
    rig.run_feeder(&["pause", "--by", "ana", "--reason", "release"])
        .await;
    let paused = hook.wait_for("paused").await;
    assert!(
        paused["text"]
            .as_str()
            .unwrap()
            .contains("paused by ana: release")
    );
    rig.run_feeder(&["resume"]).await;
    hook.wait_for("resumed").await;
    rig.run_feeder(&["limit", "--rate", "5"]).await;
    let limited = hook.wait_for("limited").await;
    assert!(
        limited["text"]
            .as_str()
            .unwrap()
            .contains("limited to 5 rows per second")
    );
    feeder.terminate().unwrap();
    feeder.wait_for_exit().await.unwrap();
    let log = feeder.log_tail(usize::MAX);
    assert!(!log.contains("mArker"), "the URL is in the log");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_url_that_does_not_answer_holds_nothing_up() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    // It accepts and stays silent.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mArkerHook", listener.local_addr().unwrap());
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[("NOTIFY_URL", &url)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("not sent within 5s"), "{}", ended.log);
    assert!(!ended.log.contains("mArker"), "{}", ended.log);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn the_lag_of_auroras_readers_stops_the_work() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.execute_sql(
        "CREATE FUNCTION aurora_version() RETURNS text LANGUAGE sql RETURN '15.4';
         CREATE TABLE readers (session_id text, replica_lag_in_msec double precision);
         INSERT INTO readers VALUES ('MASTER_SESSION_ID', NULL), ('a', 20), ('b', 60000);
         CREATE FUNCTION aurora_replica_status()
         RETURNS TABLE (session_id text, replica_lag_in_msec double precision)
         LANGUAGE sql AS 'SELECT * FROM readers'",
    )
    .await;
    let settings = [("MAX_REPLICA_LAG", "5s")];
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    let consumer = rig.spawn_consumer(&settings);
    let slow = "SELECT count(*) FROM bucket_brigade.workers WHERE reason LIKE 'a replica is 60.0 s behind%'";
    wait_until("both to wait", async || rig.query_number(slow).await == 2).await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output
            .contains("Aurora's readers; with MAX_REPLICA_LAG"),
        "{}",
        plan.output
    );
    rig.execute_sql("UPDATE readers SET replica_lag_in_msec = 30")
        .await;
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    stop_consumer(consumer).await;
}
