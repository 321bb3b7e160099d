//! What a look at the run costs the database, at a thousand rows and at ten million.

use std::time::{Duration, Instant};

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_operator::dashboard::newest_moves;
use bucket_brigade_operator::status::StatusSnapshot;

use crate::rig::TestRig;

const READ_COUNT: u32 = 500;

/// The table and the ledger as they are when so many rows have moved, one in a thousand failed, and a
/// hundred processes took part.
async fn insert_moved_rows(rig: &TestRig, rows: u64) {
    rig.execute_sql(&format!(
        "INSERT INTO images (path) SELECT 'avatar/' || n FROM generate_series(1, {rows}) n;
         INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
         SELECT 1, n::text, 'image/' || n, 'avatar/' || n, md5(n::text), 'consumer-' || n % 100
           FROM generate_series(1, {rows}) n;
         INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
         SELECT 1, n::text, 'image/' || n, 'NoSuchKey', 'gone', true FROM generate_series(1, {rows}, 1000) n;
         INSERT INTO bucket_brigade.counters (run_id, worker, moved, failed)
         SELECT 1, 'consumer-' || n, {rows} / 100, {rows} / 100000 FROM generate_series(0, 99) n;
         INSERT INTO bucket_brigade.workers (run_id, worker, role, state)
         SELECT 1, 'consumer-' || n, 'consumer', 'running' FROM generate_series(0, 99) n;
         UPDATE bucket_brigade.run SET in_scope = {rows};"
    ))
    .await;
    rig.execute_sql("VACUUM ANALYZE").await;
}

/// What `status` and the live page ask of the database.
async fn read_status(ledger: &PostgresLedger) {
    let (pool, run) = (ledger.pool(), Some(ledger.run_id()));
    let read = StatusSnapshot::read_runs(pool, run, None).await;
    assert_eq!(read.unwrap().len(), 1);
}

/// The median of many.
async fn median_time(what: impl AsyncFn()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..READ_COUNT {
        let began = Instant::now();
        what().await;
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// A look, and the live page's search for thumbnails.
async fn measure_cost(rows: u64) -> [Duration; 2] {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    insert_moved_rows(&rig, rows).await;
    let newest = async || {
        let found = newest_moves(&ledger, 12).await.unwrap();
        assert_eq!(found.len(), 12);
    };
    [
        median_time(async || read_status(&ledger).await).await,
        median_time(newest).await,
    ]
}

#[tokio::test]
#[ignore = "fills some gigabytes of disk; run it by hand: -- --ignored status_cost --nocapture"]
async fn a_status_read_costs_the_same_at_a_thousand_rows_and_at_ten_million() {
    let ([few, _], [some, some_newest]) = (measure_cost(1000).await, measure_cost(100_000).await);
    let [many, many_newest] = measure_cost(10_000_000).await;
    println!(
        "a look takes {few:?} at 1,000 rows, {some:?} at 100,000, {many:?} at 10,000,000; \
         the newest twelve {some_newest:?} at 100,000, {many_newest:?} at 10,000,000 (medians of {READ_COUNT})"
    );
    assert!(many < few * 2, "{few:?}, {many:?}");
    assert!(many_newest < some_newest * 2);
}
