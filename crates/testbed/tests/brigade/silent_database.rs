//! A database that falls silent without a reset, a killed client, a role with limits of its own.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::proxy::{CutRates, PostgresProxy};
use tokio::net::TcpListener;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// Whatever falls silent is given up by then.
const RECOVERY_TIME: Duration = Duration::from_mins(1);

/// The feeder's advisory locks of this database.
const COUNT_LOCKS: &str =
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 25186
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn start_proxy(rig: &TestRig) -> (PostgresProxy, String) {
    let (front, rest) = rig.application.database_url.rsplit_once(':').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let proxy = PostgresProxy::start(server.parse().unwrap(), CutRates::NONE)
        .await
        .unwrap();
    let url = format!("{front}:{}/{database}", proxy.port());
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

#[tokio::test]
async fn the_statement_of_a_killed_consumer_ends() {
    let rig = TestRig::new().await;
    slow_updates(&rig, 25.0).await;
    rig.open_run().await;
    let id = rig.add_image("image/0.png").await;
    rig.feed_row(&id, "image/0.png").await;
    let mut consumer = rig.spawn_consumer(&[]);
    let count_sleepers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'
        AND datname = current_database() AND application_name = 'bucket-brigade consumer'";
    wait_until("the commit", async || {
        rig.query_number(count_sleepers).await == 1
    })
    .await;
    consumer.kill().await.unwrap();
    let began = Instant::now();
    wait_until("its end", async || {
        rig.query_number(count_sleepers).await == 0
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
    let (_, rest) = rig.application.database_url.split_once('@').unwrap();
    let url = format!("postgres://{role}:poor@{rest}");
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    let ended = rig.run_program("feeder", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 10);
    stop_consumer(consumer).await;
}
