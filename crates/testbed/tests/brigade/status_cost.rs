//! What a look at the run costs the database, at a thousand rows and at ten million.

use std::time::{Duration, Instant};

use bucket_brigade_common::ledger::Ledger;
use bucket_brigade_common::scope::Scope;

use crate::rig::Rig;

const LOOKS: u32 = 500;

/// The table and the ledger as they are when so many rows have moved, one in a thousand failed, and a
/// hundred processes took part.
async fn moved(rig: &Rig, rows: u64) {
    rig.sql(&format!(
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
    rig.sql("VACUUM ANALYZE").await;
}

/// What `status` and the live page ask of the database.
async fn look(ledger: &Ledger) {
    ledger.overview().await.unwrap();
    ledger.workers().await.unwrap();
    ledger.progress().await.unwrap();
    ledger.failure_counts().await.unwrap();
}

/// The median of many.
async fn median(what: impl AsyncFn()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..LOOKS {
        let began = Instant::now();
        what().await;
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// A look, and the live page's search for thumbnails.
async fn cost(rows: u64) -> [Duration; 2] {
    let rig = Rig::new().await;
    let ledger = rig.open_run().await;
    moved(&rig, rows).await;
    let newest = async || {
        let found = ledger.newest_moves(12).await.unwrap();
        assert_eq!(found.len(), 12);
    };
    [
        median(async || look(&ledger).await).await,
        median(newest).await,
    ]
}

#[tokio::test]
#[ignore = "fills some gigabytes of disk; run it by hand: -- --ignored status_cost --nocapture"]
async fn a_look_costs_the_same_at_a_thousand_rows_and_at_ten_million() {
    let ([few, _], [some, some_newest]) = (cost(1000).await, cost(100_000).await);
    let [many, many_newest] = cost(10_000_000).await;
    println!(
        "a look takes {few:?} at 1,000 rows, {some:?} at 100,000, {many:?} at 10,000,000; \
         the newest twelve {some_newest:?} at 100,000, {many_newest:?} at 10,000,000 (medians of {LOOKS})"
    );
    assert!(many < few * 2, "{few:?}, {many:?}");
    assert!(many_newest < some_newest * 2);
}
