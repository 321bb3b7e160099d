//! Ten minutes of an outage, on injected time: nothing reaches the dead-letter queue, it is told once
//! with what to do, the process says that it is not well, and the work goes on by itself.

#![expect(clippy::unwrap_used, reason = "tests")]

mod faulty_client;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bucket_brigade_common::http_endpoints::ProcessStatus;
use bucket_brigade_consumer::pipeline::{Parts, run};
use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_simulation::client::SimulatedClient;
use bucket_brigade_simulation::fault_rates::FaultRates;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared_world::SharedWorld;
use bucket_brigade_simulation::simulate::{build_feed, build_parts};
use faulty_client::{FaultyClient, SimulatedOutage};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// More than a consumer has in hand: what it holds it may finish while the queue is away.
const ROW_COUNT: usize = 300;

/// How long the outage lasts.
const OUTAGE_DURATION: Duration = Duration::from_mins(10);

/// A log that can be read.
#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LogBuffer {
    /// The lines of errors.
    fn error_lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let errors = text.lines().filter(|line| line.contains("ERROR"));
        errors.map(ToOwned::to_owned).collect()
    }
}

/// Runs `scene` on paused time, with its log.
fn with_captured_log(scene: impl AsyncFnOnce(LogBuffer)) {
    let log = LogBuffer::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tracing::subscriber::with_default(subscriber, || runtime.block_on(scene(log)));
}

/// Rows with their objects in a world where only the outage goes wrong.
fn build_world() -> Arc<SharedWorld> {
    let shared = Arc::new(SharedWorld::new(1, Sabotage::None));
    let mut things = shared.lock();
    things.fault_rates = FaultRates::none();
    for id in 0..ROW_COUNT {
        let path = format!("image/{id}");
        let bytes = format!("bytes of {id}");
        things.buckets.source.insert(path.clone(), bytes);
        things.table.rows.insert(id.to_string(), path);
    }
    drop(things);
    shared
}

fn send_all(shared: &SharedWorld) {
    for id in 0..ROW_COUNT {
        let body = format!(r#"{{"id":"{id}","path":"image/{id}"}}"#);
        shared.lock().mailbox.send(body);
    }
}

/// Waits until so many rows have moved.
async fn wait_until_moved(shared: &SharedWorld, count: usize) {
    let enough = async {
        while shared.lock().table.moves.len() < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = timeout(Duration::from_hours(2), enough).await;
    assert!(waited.is_ok(), "{:#?}", shared.lock().table);
}

/// A consumer lives through an outage that begins when so many rows have moved.
async fn consumer_survives(outage: SimulatedOutage, after: usize, words: &str, log: LogBuffer) {
    let shared = build_world();
    send_all(&shared);
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let broken = Arc::new(FaultyClient::new(Arc::clone(&client)));
    if after == 0 {
        broken.start_outage(outage);
    }
    let parts = Parts {
        queue: Arc::<FaultyClient>::clone(&broken),
        store: Arc::<FaultyClient>::clone(&broken),
        catalog: Arc::<FaultyClient>::clone(&broken),
        ..build_parts(&client)
    };
    let (observation, stop) = (parts.observation.clone(), CancellationToken::new());
    let consumer = tokio::spawn(run(parts, stop.clone()));
    wait_until_moved(&shared, after).await;
    broken.start_outage(outage);
    sleep(OUTAGE_DURATION / 2).await;
    let trouble = observation.unhealthy_reason().unwrap_or_default();
    assert!(trouble.contains(words), "{outage:?}: {trouble}");
    sleep(OUTAGE_DURATION / 2).await;
    assert!(shared.lock().table.moves.len() < ROW_COUNT);
    broken.end_outage();
    wait_until_moved(&shared, ROW_COUNT).await;
    assert_eq!(observation.unhealthy_reason(), None, "{outage:?}");
    stop.cancel();
    assert!(consumer.await.unwrap());
    let things = shared.lock();
    assert!(
        things.mailbox.dead_letters.is_empty(),
        "{outage:?}: dead letters"
    );
    assert!(things.table.failures.is_empty(), "{outage:?}: failures");
    assert!(things.violations.is_empty(), "{:?}", things.violations);
    let errors = log.error_lines();
    assert_eq!(errors.len(), 1, "{outage:?}: {errors:#?}");
    assert!(errors[0].contains(words), "{outage:?}: {errors:#?}");
}

/// The feeder lives through one that begins in the middle of its work.
async fn feeder_survives(outage: SimulatedOutage, words: &str, log: LogBuffer) {
    let shared = build_world();
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let broken = Arc::new(FaultyClient::new(Arc::clone(&client)));
    let feed = FeedLoop {
        queue: Arc::<FaultyClient>::clone(&broken),
        source: Arc::<FaultyClient>::clone(&broken),
        ledger: Arc::<FaultyClient>::clone(&broken),
        ..build_feed(&client)
    };
    let progress = Arc::clone(&feed.progress);
    let stop = CancellationToken::new();
    let consumer = tokio::spawn(run(build_parts(&client), stop.clone()));
    let scene = async {
        wait_until_moved(&shared, 8).await;
        broken.start_outage(outage);
        sleep(OUTAGE_DURATION).await;
        let trouble = progress.unhealthy_reason().unwrap_or_default();
        assert!(trouble.contains(words), "{outage:?}: {trouble}");
        assert!(shared.lock().table.moves.len() < ROW_COUNT);
        broken.end_outage();
    };
    let (outcome, ()) = tokio::join!(feed.run(), scene);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.progress.moved, u64::try_from(ROW_COUNT).unwrap());
    assert_eq!(progress.unhealthy_reason(), None, "{outage:?}");
    stop.cancel();
    assert!(consumer.await.unwrap());
    let errors = log.error_lines();
    assert_eq!(errors.len(), 1, "{outage:?}: {errors:#?}");
    assert!(errors[0].contains(words), "{outage:?}: {errors:#?}");
}

#[test]
fn of_the_rights_to_the_destination() {
    for after in [0, 10] {
        with_captured_log(async |log| {
            consumer_survives(SimulatedOutage::AccessDenied, after, "s3:PutObject", log).await;
        });
    }
}

#[test]
fn of_the_credentials() {
    for after in [0, 10] {
        let words = "check the credentials";
        with_captured_log(async |log| {
            consumer_survives(SimulatedOutage::ExpiredToken, after, words, log).await;
        });
    }
}

#[test]
fn of_the_database() {
    for after in [0, 10] {
        let words = "the database";
        with_captured_log(async |log| {
            consumer_survives(SimulatedOutage::Database, after, words, log).await;
        });
    }
}

#[test]
fn of_the_queue() {
    for after in [0, 10] {
        let words = "check QUEUE_URL";
        with_captured_log(async |log| {
            consumer_survives(SimulatedOutage::Queue, after, words, log).await;
        });
    }
}

#[test]
fn of_the_feeders_database() {
    with_captured_log(async |log| {
        feeder_survives(SimulatedOutage::Database, "the database", log).await;
    });
}

#[test]
fn of_the_feeders_queue() {
    with_captured_log(async |log| {
        feeder_survives(SimulatedOutage::Queue, "check QUEUE_URL", log).await;
    });
}
