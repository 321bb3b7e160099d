//! Ten minutes of an outage, on injected time: nothing reaches the dead-letter queue, it is told once
//! with what to do, the process says that it is not well, and the work goes on by itself.

#![expect(clippy::unwrap_used, reason = "tests")]

mod broken;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use broken::{Broken, Outage};
use bucket_brigade_common::observe::Observed;
use bucket_brigade_consumer::pipeline::{Parts, run};
use bucket_brigade_feeder::feed::Feed;
use bucket_brigade_simulation::client::Client;
use bucket_brigade_simulation::fate::Weather;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared::Shared;
use bucket_brigade_simulation::simulate::{feed, parts};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// More than a consumer has in hand: what it holds it may finish while the queue is away.
const ROWS: usize = 300;

/// How long the outage lasts.
const OUTAGE: Duration = Duration::from_mins(10);

/// A log that can be read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines of errors.
    fn errors(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let errors = text.lines().filter(|line| line.contains("ERROR"));
        errors.map(ToOwned::to_owned).collect()
    }
}

/// Runs `scene` on paused time, with its log.
fn stage(scene: impl AsyncFnOnce(Log)) {
    let log = Log::default();
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
fn world() -> Arc<Shared> {
    let shared = Arc::new(Shared::new(1, Sabotage::None));
    let mut things = shared.lock();
    things.weather = Weather::fine();
    for id in 0..ROWS {
        let path = format!("image/{id}");
        let bytes = format!("bytes of {id}");
        things.buckets.source.insert(path.clone(), bytes);
        things.table.rows.insert(id.to_string(), path);
    }
    drop(things);
    shared
}

fn send_all(shared: &Shared) {
    for id in 0..ROWS {
        let body = format!(r#"{{"id":"{id}","path":"image/{id}"}}"#);
        shared.lock().mailbox.send(body);
    }
}

/// Waits until so many rows have moved.
async fn moved(shared: &Shared, count: usize) {
    let enough = async {
        while shared.lock().table.moves.len() < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = timeout(Duration::from_hours(2), enough).await;
    assert!(waited.is_ok(), "{:#?}", shared.lock().table);
}

/// A consumer lives through an outage that begins when so many rows have moved.
async fn consumer_survives(outage: Outage, after: usize, words: &str, log: Log) {
    let shared = world();
    send_all(&shared);
    let client = Arc::new(Client::new(Arc::clone(&shared), None));
    let broken = Arc::new(Broken::new(Arc::clone(&client)));
    if after == 0 {
        broken.breaks(outage);
    }
    let parts = Parts {
        queue: Arc::<Broken>::clone(&broken),
        store: Arc::<Broken>::clone(&broken),
        catalog: Arc::<Broken>::clone(&broken),
        ..parts(&client)
    };
    let (observation, stop) = (parts.observation.clone(), CancellationToken::new());
    let consumer = tokio::spawn(run(parts, stop.clone()));
    moved(&shared, after).await;
    broken.breaks(outage);
    sleep(OUTAGE / 2).await;
    let trouble = observation.trouble().unwrap_or_default();
    assert!(trouble.contains(words), "{outage:?}: {trouble}");
    sleep(OUTAGE / 2).await;
    assert!(shared.lock().table.moves.len() < ROWS);
    broken.heals();
    moved(&shared, ROWS).await;
    assert_eq!(observation.trouble(), None, "{outage:?}");
    stop.cancel();
    assert!(consumer.await.unwrap());
    let things = shared.lock();
    assert!(things.mailbox.dead.is_empty(), "{outage:?}: dead letters");
    assert!(things.table.failures.is_empty(), "{outage:?}: failures");
    assert!(things.violations.is_empty(), "{:?}", things.violations);
    let errors = log.errors();
    assert_eq!(errors.len(), 1, "{outage:?}: {errors:#?}");
    assert!(errors[0].contains(words), "{outage:?}: {errors:#?}");
}

/// The feeder lives through one that begins in the middle of its work.
async fn feeder_survives(outage: Outage, words: &str, log: Log) {
    let shared = world();
    let client = Arc::new(Client::new(Arc::clone(&shared), None));
    let broken = Arc::new(Broken::new(Arc::clone(&client)));
    let feed = Feed {
        queue: Arc::<Broken>::clone(&broken),
        scope: Arc::<Broken>::clone(&broken),
        catalog: Arc::<Broken>::clone(&broken),
        ..feed(&client)
    };
    let progress = Arc::clone(&feed.progress);
    let stop = CancellationToken::new();
    let consumer = tokio::spawn(run(parts(&client), stop.clone()));
    let scene = async {
        moved(&shared, 8).await;
        broken.breaks(outage);
        sleep(OUTAGE).await;
        let trouble = progress.trouble().unwrap_or_default();
        assert!(trouble.contains(words), "{outage:?}: {trouble}");
        assert!(shared.lock().table.moves.len() < ROWS);
        broken.heals();
    };
    let (outcome, ()) = tokio::join!(feed.run(), scene);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.numbers.moved, u64::try_from(ROWS).unwrap());
    assert_eq!(progress.trouble(), None, "{outage:?}");
    stop.cancel();
    assert!(consumer.await.unwrap());
    let errors = log.errors();
    assert_eq!(errors.len(), 1, "{outage:?}: {errors:#?}");
    assert!(errors[0].contains(words), "{outage:?}: {errors:#?}");
}

#[test]
fn of_the_rights_to_the_destination() {
    for after in [0, 10] {
        stage(async |log| {
            consumer_survives(Outage::AccessDenied, after, "s3:PutObject", log).await;
        });
    }
}

#[test]
fn of_the_credentials() {
    for after in [0, 10] {
        let words = "check the credentials";
        stage(async |log| consumer_survives(Outage::ExpiredToken, after, words, log).await);
    }
}

#[test]
fn of_the_database() {
    for after in [0, 10] {
        let words = "the database";
        stage(async |log| consumer_survives(Outage::Database, after, words, log).await);
    }
}

#[test]
fn of_the_queue() {
    for after in [0, 10] {
        let words = "check QUEUE_URL";
        stage(async |log| consumer_survives(Outage::Queue, after, words, log).await);
    }
}

#[test]
fn of_the_feeders_database() {
    stage(async |log| feeder_survives(Outage::Database, "the database", log).await);
}

#[test]
fn of_the_feeders_queue() {
    stage(async |log| feeder_survives(Outage::Queue, "check QUEUE_URL", log).await);
}
