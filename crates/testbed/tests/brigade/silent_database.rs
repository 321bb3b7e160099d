//! A database that falls silent without a reset, a killed client, a role with limits of its own.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::proxy::{CutRates, PostgresProxy, SilenceMode, SilentProxy};
use tokio::net::TcpListener;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};
use crate::shared_queue::spawn_consumer_of_all;

/// Whatever falls silent is given up by then.
const RECOVERY_TIME: Duration = Duration::from_mins(1);

/// The feeder's advisory locks of this database.
const COUNT_LOCKS: &str =
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 25186
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The server's port, and the address of the database through a proxy on another.
fn split_url(rig: &TestRig) -> (u16, impl Fn(u16) -> String) {
    let (front, rest) = rig.application.database_url.rsplit_once(':').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let url = move |port| format!("{front}:{port}/{database}");
    (server.parse().unwrap(), url)
}

async fn start_proxy(rig: &TestRig) -> (PostgresProxy, String) {
    let (server, url) = split_url(rig);
    let proxy = PostgresProxy::start(server, CutRates::NONE).await.unwrap();
    let url = url(proxy.port());
    (proxy, url)
}

/// One that keeps its sessions at the server while it is silent.
async fn start_silent_proxy(rig: &TestRig) -> (SilentProxy, String) {
    let (server, url) = split_url(rig);
    let proxy = SilentProxy::start(server).await.unwrap();
    let url = url(proxy.port());
    (proxy, url)
}

/// Each update of a path takes this long.
async fn slow_updates(rig: &TestRig, seconds: f32) {
    rig.execute_sql(&format!(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep({seconds}); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION slow()"
    ))
    .await;
}

#[tokio::test]
async fn a_consumer_goes_on_after_its_connections_fell_silent() {
    let rig = TestRig::new().await;
    slow_updates(&rig, 0.05).await;
    let (proxy, url) = start_proxy(&rig).await;
    rig.open_run().await;
    let ids = rig.add_images(200).await;
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    wait_until("some to move", async || rig.count_rows("moves").await > 0).await;
    proxy.silence_connections();
    let began = Instant::now();
    let moved = rig.count_rows("moves").await;
    wait_until("more to move", async || {
        rig.count_rows("moves").await > moved
    })
    .await;
    assert!(began.elapsed() < RECOVERY_TIME, "{:?}", began.elapsed());
    rig.wait_until_drained().await;
    assert_eq!(rig.ledger_counter("moved").await, 200);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_run_is_taken_on_after_its_database_was_silent() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(1),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.open_run().await;
    let id = rig.add_image("image/0.png").await;
    let (proxy, url) = start_silent_proxy(&rig).await;
    let consumer = spawn_consumer_of_all(&rig, &[("DATABASE_URL", &url)]);
    wait_until("its connection", async || proxy.accepted_connections() > 0).await;
    proxy.silence(SilenceMode::Dropping, true);
    rig.feed_row(&id, "image/0.png").await;
    let began = Instant::now();
    wait_until("the reason", async || {
        let log = consumer.log_tail(100);
        log.contains("cannot connect to the database (DATABASE_URL") && log.contains("no response")
    })
    .await;
    assert!(began.elapsed() < RECOVERY_TIME, "{:?}", began.elapsed());
    proxy.end_silence();
    let ended = Instant::now();
    rig.wait_until_drained().await;
    assert!(ended.elapsed() < RECOVERY_TIME, "{:?}", ended.elapsed());
    assert_eq!(
        (rig.count_rows("moves").await, rig.dead_letters().await),
        (1, 0)
    );
    stop_consumer(consumer).await;
}

const COUNT_SLEEPERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'
    AND datname = current_database() AND application_name = 'bucket-brigade consumer'";

/// A batch on a table with AFTER triggers is a transaction of several round trips.
#[tokio::test]
async fn silence_in_the_middle_of_a_batch_holds_its_rows_for_seconds_only() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF current_setting('application_name') = 'bucket-brigade consumer' THEN PERFORM pg_sleep(3); END IF;
            RETURN NULL; END $$;
         CREATE TRIGGER slow AFTER UPDATE ON images FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let (proxy, url) = start_silent_proxy(&rig).await;
    rig.open_run().await;
    let id = rig.add_image("image/0.png").await;
    rig.feed_row(&id, "image/0.png").await;
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    wait_until("the commit", async || {
        rig.query_number(COUNT_SLEEPERS).await == 1
    })
    .await;
    proxy.silence(SilenceMode::Dropping, false);
    let began = Instant::now();
    rig.execute_sql(&format!(
        "UPDATE images SET path = 'elsewhere/0.png' WHERE id = {id}"
    ))
    .await;
    assert!(
        began.elapsed() > Duration::from_secs(1),
        "it has not waited"
    );
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    rig.wait_until_drained().await;
    assert!(began.elapsed() < RECOVERY_TIME, "{:?}", began.elapsed());
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("changes").await
        ),
        (0, 1)
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_feeder_that_waits_for_its_first_connection_can_be_stopped() {
    let rig = TestRig::new().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://app@{}/app", silent.local_addr().unwrap());
    let mut feeder = rig.spawn("feeder", &[("DATABASE_URL", &url)], &[]);
    let _connection = silent.accept().await.unwrap();
    let began = Instant::now();
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_command_that_waits_for_its_first_connection_can_be_stopped() {
    let rig = TestRig::new().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://app@{}/app", silent.local_addr().unwrap());
    for (arguments, code) in [
        (&["verify"][..], 3),
        (&["rollback", "--all"], 3),
        (&["clean", "--older-than", "0s"], 3),
        (&["plan"], 3),
        (&["retry", "--yes"], 3),
        (&["failures"], 3),
        (&["report"], 3),
        (&["runs"], 3),
        (&["pause"], 3),
        (&["status"], 3),
        (&["status", "--watch"], 0),
        (&["dashboard", "--status-addr", "127.0.0.1:0"], 0),
    ] {
        let mut command = rig.spawn("feeder", &[("DATABASE_URL", &url)], arguments);
        let _connection = silent.accept().await.unwrap();
        let began = Instant::now();
        command.terminate().unwrap();
        let ended = wait_for_exit(&mut command).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.log);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{arguments:?}: {took:?}");
    }
}

#[tokio::test]
async fn a_feeder_takes_its_lock_anew_after_its_connections_fell_silent() {
    let rig = TestRig::new().await;
    let (proxy, url) = start_proxy(&rig).await;
    rig.add_images(5).await;
    let mut feeder = rig.spawn("feeder", &[("DATABASE_URL", &url)], &[]);
    wait_until("the rows to be fed", async || {
        rig.queued_messages().await == 5
    })
    .await;
    proxy.silence_connections();
    let began = Instant::now();
    wait_until("the lock's end", async || {
        rig.query_number(COUNT_LOCKS).await == 0
    })
    .await;
    wait_until("the lock", async || {
        rig.query_number(COUNT_LOCKS).await == 1
    })
    .await;
    assert!(began.elapsed() < RECOVERY_TIME, "{:?}", began.elapsed());
    let consumer = rig.spawn_consumer(&[]);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
}

/// The proxy stays connected to the server, which goes on holding the lock for the session of before.
#[tokio::test]
async fn a_feeder_knows_its_own_lock_after_a_long_silence() {
    let rig = TestRig::new().await;
    let (proxy, url) = start_silent_proxy(&rig).await;
    rig.add_images(5).await;
    let mut feeder = rig.spawn("feeder", &[("DATABASE_URL", &url)], &[]);
    wait_until("the rows to be fed", async || {
        rig.queued_messages().await == 5
    })
    .await;
    let holder = "SELECT pid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = 25186
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let before = rig.query_number(holder).await;
    proxy.silence(SilenceMode::Dropping, true);
    // Longer than a session whose client is gone lasts.
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert_eq!(rig.query_number(holder).await, before, "the session ended");
    proxy.end_silence();
    wait_until("the lock of another session", async || {
        rig.query_number(COUNT_LOCKS).await == 1 && rig.query_number(holder).await != before
    })
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn the_statement_of_a_killed_consumer_ends() {
    let rig = TestRig::new().await;
    slow_updates(&rig, 25.0).await;
    rig.open_run().await;
    let id = rig.add_image("image/0.png").await;
    rig.feed_row(&id, "image/0.png").await;
    let mut consumer = rig.spawn_consumer(&[]);
    wait_until("the commit", async || {
        rig.query_number(COUNT_SLEEPERS).await == 1
    })
    .await;
    consumer.kill().await.unwrap();
    let began = Instant::now();
    wait_until("its end", async || {
        rig.query_number(COUNT_SLEEPERS).await == 0
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_timeout_of_the_role_is_not_ours() {
    let rig = TestRig::new().await;
    slow_updates(&rig, 0.1).await;
    rig.add_images(10).await;
    let role = format!("hasty_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'poor'; ALTER ROLE {role} SET statement_timeout = '50ms'"
    ))
    .await;
    let url = rig.url_as(&role);
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    let ended = rig.run_program("feeder", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 10);
    stop_consumer(consumer).await;
}
