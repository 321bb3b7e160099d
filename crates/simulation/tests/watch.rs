//! A feeder that watches a table without an index, on injected time: what it reads, and what it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::ledger::feed_source::{PageReader, RowPage, SweepAccess};
use bucket_brigade_common::ledger::fleet_control::FleetLimits;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_feeder::progress::FeederProgress;
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
struct CountingReader {
    client: Arc<SimulatedClient>,
    pages: AtomicU64,
}

#[async_trait]
impl PageReader for CountingReader {
    async fn prepare(&self) -> Result<SweepAccess, StatementError> {
        self.client.prepare().await
    }

    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.client.read(cursor, size).await
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

fn counting_feed(client: &Arc<SimulatedClient>) -> (Arc<CountingReader>, FeedLoop) {
    let reader = Arc::new(CountingReader {
        client: Arc::clone(client),
        pages: AtomicU64::new(0),
    });
    let feed = FeedLoop {
        pages: Arc::<CountingReader>::clone(&reader) as _,
        ..build_feed(client)
    };
    (reader, feed)
}

/// Pages without rows to feed are work for the database like others.
#[tokio::test(start_paused = true)]
async fn empty_pages_obey_limits_and_holds() {
    let client = Arc::new(SimulatedClient::new(build_world(), None));
    let (reader, mut feed) = counting_feed(&client);
    let throttle = Arc::new(Throttle::for_rows(DatabaseLimits {
        commit_latency: Some(Duration::from_millis(50)),
        replica_lag: Some(Duration::from_secs(5)),
    }));
    feed.progress = Arc::new(FeederProgress::new(Arc::clone(&throttle)));
    feed.throttle = Arc::clone(&throttle);
    let limits = FleetLimits {
        rate: Some(100.0),
        ..FleetLimits::default()
    };
    throttle.set_limits(limits.clone());
    let stop = feed.stop.clone();
    let pages = || reader.pages.load(Ordering::Relaxed);
    let scene = async {
        sleep(Duration::from_secs(10)).await;
        let read = pages();
        assert!(
            (80..=120).contains(&read),
            "{read} pages of ten rows' worth"
        );
        let (mut paused, mut held) = (limits.clone(), limits.clone());
        paused.paused = Some("by ana".into());
        held.held = Some("THROTTLE_QUERY is true".into());
        let minute = Some(Duration::from_mins(1));
        for (limits, lag, hold) in [
            (&paused, None, None),
            (&held, None, None),
            (&limits, minute, None),
            (&limits, None, Some("outside FEED_WINDOW".to_owned())),
        ] {
            throttle.set_limits(limits.clone());
            throttle.set_replica_lag(lag);
            throttle.set_hold(hold);
            // The page that was under way.
            sleep(Duration::from_secs(1)).await;
            let before = pages();
            sleep(Duration::from_mins(1)).await;
            assert_eq!(pages(), before, "{limits:?}, {lag:?}");
        }
        throttle.set_hold(None);
        throttle.commit_took(Duration::from_secs(2));
        sleep(Duration::from_secs(1)).await;
        let before = pages();
        sleep(Duration::from_secs(2)).await;
        assert_eq!(pages(), before, "a commit was slow");
        sleep(Duration::from_secs(3)).await;
        assert!(pages() > before);
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(feed.run(), scene);
    assert!(outcome.is_err(), "it was stopped");
}

/// A reader in the order of the heap, in which every row moves behind the cursor before it is reached.
struct MovingHeap(Arc<SimulatedClient>);

#[async_trait]
impl PageReader for MovingHeap {
    async fn prepare(&self) -> Result<SweepAccess, StatementError> {
        Ok(SweepAccess::Heap(RowId::from_database("heap 0".into())))
    }

    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError> {
        let next = match cursor.map(RowId::as_str) {
            Some("heap 0") => Some(RowId::from_database("heap 1".into())),
            Some("heap 1") => None,
            _ => return self.0.read(cursor, size).await,
        };
        Ok(RowPage {
            last_id: next,
            is_spread: true,
            ..RowPage::default()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_sweep_in_the_order_of_the_heap_proves_nothing() {
    let shared = build_world();
    set_row(&shared, "0007");
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let feed = FeedLoop {
        pages: Arc::new(MovingHeap(Arc::clone(&client))),
        ..build_feed(&client)
    };
    let consumers = CancellationToken::new();
    let consumer = tokio::spawn(build_pipeline(&client, consumers.clone()).run());
    let outcome = feed.run().await.unwrap();
    assert_eq!(outcome.progress.moved, 1);
    consumers.cancel();
    assert!(consumer.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_watch_reads_little_and_finds_new_rows_soon_and_all_in_time() {
    let shared = build_world();
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let (reader, mut feed) = counting_feed(&client);
    feed.options.watch_interval = Some(Duration::from_secs(30));
    feed.options.full_sweep_interval = Duration::from_hours(1);
    let stop = feed.stop.clone();
    let consumers = CancellationToken::new();
    let consumer = tokio::spawn(build_pipeline(&client, consumers.clone()).run());
    let pages = || reader.pages.load(Ordering::Relaxed);
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
    assert!(consumer.await.unwrap().unwrap());
}
