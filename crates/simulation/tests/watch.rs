//! A feeder that watches a table without an index, on injected time: what it reads, and what it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::empty_scope::PathSample;
use bucket_brigade_common::ledger::feed_source::{
    CursorPosition, FeedSource, QueueShare, RowPage, RunProgress,
};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_simulation::client::SimulatedClient;
use bucket_brigade_simulation::fault_rates::FaultRates;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared_world::SharedWorld;
use bucket_brigade_simulation::simulate::{build_feed, build_pipeline};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Rows that are moved already; a page has three.
const ROW_COUNT: u64 = 3000;

const PAGE_COUNT: u64 = ROW_COUNT / 3;

/// Counts the pages that are read.
struct CountingSource {
    client: Arc<SimulatedClient>,
    pages: AtomicU64,
}

#[async_trait]
impl FeedSource for CountingSource {
    async fn cursor_position(&self) -> Result<CursorPosition, StatementError> {
        self.client.cursor_position().await
    }

    async fn next_page(
        &self,
        cursor: Option<&RowId>,
        size: u32,
    ) -> Result<RowPage, StatementError> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.client.next_page(cursor, size).await
    }

    async fn advance_cursor(&self, cursor: &RowId, fed: u64) -> Result<(), StatementError> {
        self.client.advance_cursor(cursor, fed).await
    }

    async fn begin_sweep(&self) -> Result<(), StatementError> {
        self.client.begin_sweep().await
    }

    async fn queue_share(&self) -> Result<Option<QueueShare>, StatementError> {
        Ok(None)
    }

    async fn run_progress(&self) -> Result<RunProgress, StatementError> {
        self.client.run_progress().await
    }

    async fn has_rows_left(&self) -> Result<bool, StatementError> {
        self.client.has_rows_left().await
    }

    async fn settle_stale_failures(&self) -> Result<u64, StatementError> {
        self.client.settle_stale_failures().await
    }

    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, StatementError> {
        self.client.failures_by_code().await
    }

    async fn sample_paths(&self) -> Result<PathSample, StatementError> {
        self.client.sample_paths().await
    }

    async fn finish_run(&self) -> Result<(), StatementError> {
        self.client.finish_run().await
    }
}

fn build_world() -> Arc<SharedWorld> {
    let shared = Arc::new(SharedWorld::new(1, Sabotage::None));
    let mut things = shared.lock();
    things.fault_rates = FaultRates::none();
    for id in 0..ROW_COUNT {
        let row = (format!("{id:04}"), format!("avatar/{id}"));
        things.table.rows.insert(row.0, row.1);
    }
    drop(things);
    shared
}

fn set_row(shared: &SharedWorld, id: &str) {
    let mut things = shared.lock();
    let path = format!("image/{id}");
    things.buckets.source.insert(path.clone(), path.clone());
    things.table.rows.insert(id.to_owned(), path);
}

/// How long it takes until so many rows have moved.
async fn time_of_moves(shared: &SharedWorld, count: usize) -> Duration {
    let began = Instant::now();
    while shared.lock().table.moves.len() < count {
        sleep(Duration::from_secs(1)).await;
        assert!(began.elapsed() < Duration::from_hours(3), "waited in vain");
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_watch_reads_little_and_finds_new_rows_soon_and_all_in_time() {
    let shared = build_world();
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let source = Arc::new(CountingSource {
        client: Arc::clone(&client),
        pages: AtomicU64::new(0),
    });
    let mut feed = FeedLoop {
        source: Arc::<CountingSource>::clone(&source) as _,
        ..build_feed(&client)
    };
    feed.options.watch_interval = Some(Duration::from_secs(30));
    feed.options.full_sweep_interval = Duration::from_hours(1);
    let stop = feed.stop.clone();
    let consumers = CancellationToken::new();
    let consumer = tokio::spawn(build_pipeline(&client, consumers.clone()).run());
    let pages = || source.pages.load(Ordering::Relaxed);
    let scene = async {
        while pages() <= PAGE_COUNT {
            sleep(Duration::from_secs(1)).await;
        }
        sleep(Duration::from_mins(2)).await;
        let before = pages();
        sleep(Duration::from_mins(10)).await;
        let read = pages() - before;
        assert!(read <= PAGE_COUNT / 4, "{read} pages in ten minutes");
        // A new one; one whose id was given out before; one of old that the application sets back.
        for (moved, id, soon) in [
            (1, "9001", Duration::from_mins(2)),
            (2, "9000", Duration::from_mins(2)),
            (3, "0001", Duration::from_mins(70)),
        ] {
            set_row(&shared, id);
            let took = time_of_moves(&shared, moved).await;
            assert!(took < soon, "{id}: {took:?}");
        }
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(feed.run(), scene);
    assert!(outcome.is_err(), "it was stopped");
    consumers.cancel();
    assert!(consumer.await.unwrap());
}
