//! The feeder's statements are short on any table, and what they find survives the feeder.

use std::time::{Duration, Instant};

use bucket_brigade_common::ledger::feed_source::{FeedSource, scan_pages};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, SecondRun, create_pool};
use bucket_brigade_common::row_id::RowId;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// The feeder's own, but for the time that its role has for a statement.
fn hasty_options(rig: &TestRig, statement_timeout: &str) -> PgConnectOptions {
    let options: PgConnectOptions = rig.application.database_url.parse().unwrap();
    options
        .application_name("bucket-brigade feeder")
        .options([("statement_timeout", statement_timeout)])
}

async fn open_hasty(rig: &TestRig, statement_timeout: &str) -> PostgresLedger {
    let pool = create_pool(hasty_options(rig, statement_timeout).into(), 2);
    PostgresLedger::open(pool, &rig.run_spec(), "hasty", SecondRun::Refused)
        .await
        .unwrap()
}

/// Rows outside the scope of which each takes a while to compare, and one in scope after them.
async fn add_slow_rows(rig: &TestRig, rows: u32, length: u32) {
    rig.execute_sql(&format!(
        "INSERT INTO images (path) VALUES ('other/' || repeat('x', {length}));
         INSERT INTO images (path) SELECT path FROM images, generate_series(2, {rows});
         INSERT INTO images (path) VALUES ('image/last.png')"
    ))
    .await;
}

async fn count_to_the_end(ledger: &PostgresLedger) {
    while !ledger.count_scope_stretch().await.unwrap() {}
}

async fn has_rows_left(ledger: &PostgresLedger) -> Result<bool, StatementError> {
    scan_pages(async |cursor: Option<&RowId>| ledger.has_rows_left(cursor).await).await
}

const IN_SCOPE: &str = "SELECT in_scope FROM bucket_brigade.run";

#[tokio::test]
async fn they_fit_the_time_that_the_role_has() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    add_slow_rows(&rig, 2000, 3_000_000).await;
    let mut session = hasty_options(&rig, "300ms").connect().await.unwrap();
    let whole = "SELECT count(*) FROM images WHERE path COLLATE \"C\" LIKE 'image/%'";
    let refused = sqlx::query(whole).execute(&mut session).await;
    assert!(
        refused.is_err(),
        "a scan is quick here: the test says nothing"
    );
    let ledger = open_hasty(&rig, "300ms").await;
    assert!(has_rows_left(&ledger).await.unwrap());
    count_to_the_end(&ledger).await;
    assert_eq!(rig.query_number(IN_SCOPE).await, 1);
    rig.execute_sql(
        "INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
         SELECT 1, id::text, 'image/' || id, 'NoSuchKey', 'gone', true FROM images",
    )
    .await;
    let settle = async |cursor: Option<&RowId>| ledger.settle_stale_failures(cursor).await;
    scan_pages(settle).await.unwrap();
    assert_eq!(rig.count_rows("failures").await, 0);
    assert_eq!(rig.count_rows("changes").await, 2000);
}

#[tokio::test]
async fn a_role_without_time_is_told_what_to_set() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    add_slow_rows(&rig, 20, 100_000_000).await;
    let ledger = open_hasty(&rig, "100ms").await;
    let error = has_rows_left(&ledger).await.unwrap_err().to_string();
    assert!(error.contains("statement_timeout = '10s'"), "{error}");
}

#[tokio::test]
async fn rows_are_counted_once_however_many_feeders_count_them() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO images (path) SELECT 'image/' || n || '.png' FROM generate_series(1, 25000) n;
         INSERT INTO images (path) SELECT 'other/' || n || '.png' FROM generate_series(1, 5) n; ANALYZE images",
    )
    .await;
    assert!(!ledger.count_scope_stretch().await.unwrap());
    ledger.estimate_scope().await.unwrap();
    let estimate = ledger.run_progress().await.unwrap().in_scope.unwrap();
    assert!((20_000..30_000).contains(&estimate), "{estimate}");
    // Some that are counted and some that are not move meanwhile, and one is changed.
    rig.execute_sql(
        "INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
         SELECT 1, id::text, path, 'avatar/' || id, 'e', 'c' FROM images WHERE id IN (1, 2, 24000, 25000);
         INSERT INTO bucket_brigade.changes (run_id, row_id, old_path) VALUES (1, '23000', 'image/x');
         UPDATE images SET path = 'avatar/' || id WHERE id IN (1, 2, 24000, 25000, 23000)",
    )
    .await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the count", async || {
        rig.query_number(IN_SCOPE).await == 25_000
    })
    .await;
    feeder.kill().await.unwrap();
    rig.execute_sql("INSERT INTO images (path) VALUES ('image/later.png')")
        .await;
    count_to_the_end(&rig.open_run().await).await;
    assert_eq!(rig.query_number(IN_SCOPE).await, 25_000);
}

#[tokio::test]
async fn a_feeder_counts_on_where_the_one_before_was_killed() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.add_images(5).await;
    rig.execute_sql(
        "UPDATE bucket_brigade.feed_cursors SET scope_cursor = '2', scope_counted = 100",
    )
    .await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the count", async || {
        rig.query_number(IN_SCOPE).await == 103
    })
    .await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    stop_consumer(consumer).await;
    // In the end it is what came of them.
    assert_eq!(rig.query_number(IN_SCOPE).await, 5);
}

#[tokio::test]
async fn a_killed_feeder_leaves_no_session() {
    let rig = TestRig::new().await;
    add_slow_rows(&rig, 600, 10_000_000).await;
    let sessions = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'bucket-brigade feeder'";
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("its sessions", async || {
        rig.query_number(sessions).await > 2
    })
    .await;
    feeder.kill().await.unwrap();
    let killed = Instant::now();
    wait_until("their end", async || rig.query_number(sessions).await == 0).await;
    assert!(killed.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn pages_without_work_do_not_write() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "INSERT INTO images (path) SELECT 'other/' || n || '.png' FROM generate_series(1, 5000) n",
    )
    .await;
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "10")]).await;
    assert!(ended.log.contains("0 moved"), "{}", ended.log);
    let updates = "SELECT sum(n_tup_upd)::bigint FROM pg_stat_user_tables
        WHERE schemaname = 'bucket_brigade' AND relname IN ('run', 'feed_cursors')";
    wait_until("the statistics", async || {
        rig.query_number(updates).await > 0
    })
    .await;
    let updates = rig.query_number(updates).await;
    assert!(updates < 100, "{updates} updates for 500 pages");
}

/// Takes the feeder's lock as a process of this name.
async fn hold_lock(rig: &TestRig, application: &str) -> sqlx::PgConnection {
    let options: PgConnectOptions = rig.application.database_url.parse().unwrap();
    let options = options.application_name(application);
    let mut session = options.connect().await.unwrap();
    let lock = "SELECT pg_advisory_lock(25186, 1)".to_owned();
    sqlx::query(AssertSqlSafe(lock))
        .execute(&mut session)
        .await
        .unwrap();
    session
}

#[tokio::test]
async fn a_new_feeder_waits_for_the_end_of_one_whose_host_died() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/0.png").await;
    let session = hold_lock(&rig, "bucket-brigade feeder").await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the holder's name", async || {
        let log = feeder.log_tail(50);
        log.contains("waiting up to")
            && log.contains("'bucket-brigade feeder' on")
            && log.contains("since 20")
    })
    .await;
    drop(session);
    let consumer = rig.spawn_consumer(&[]);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/0.png");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_feeder_that_waits_can_be_stopped_and_one_beside_a_command_waits_a_moment() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let session = hold_lock(&rig, "bucket-brigade feeder").await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the wait", async || {
        feeder.log_tail(50).contains("waiting up to")
    })
    .await;
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    drop(session);
    let _session = hold_lock(&rig, "bucket-brigade rollback").await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("waiting up to 2s"), "{}", ended.log);
    assert!(
        ended.log.contains("'bucket-brigade rollback' on"),
        "{}",
        ended.log
    );
}
