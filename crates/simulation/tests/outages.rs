//! Ten minutes of an outage, on injected time: no message is received twice, it is logged once with what
//! to do, the process says that it is unhealthy, and the work goes on by itself. And what is no outage:
//! objects that cannot be copied.

#![expect(clippy::unwrap_used, reason = "tests")]

mod faulty_client;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::http_endpoints::ProcessStatus;
use bucket_brigade_common::ledger::fleet_control::FleetLimits;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_consumer::pipeline::{Pipeline, ServedRuns};
use bucket_brigade_consumer::runs::RunParts;
use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_simulation::client::SimulatedClient;
use bucket_brigade_simulation::fault_rates::FaultRates;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared_world::SharedWorld;
use bucket_brigade_simulation::simulate::{build_feed, build_pipeline, build_run_parts};
use faulty_client::captured_log::{LogBuffer, with_captured_log};
use faulty_client::{FaultyClient, SimulatedOutage, throttled};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// More than a consumer has in hand: what it holds it may finish while the queue is away.
const ROW_COUNT: usize = 300;

/// How long the outage lasts.
const OUTAGE_DURATION: Duration = Duration::from_mins(10);

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

fn send_rows(shared: &SharedWorld, ids: Range<usize>) {
    for id in ids {
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

fn faulty_pipeline(
    client: &Arc<SimulatedClient>,
    faulty: &Arc<FaultyClient>,
    stop: &CancellationToken,
) -> Pipeline {
    let parts = RunParts {
        store: Arc::<FaultyClient>::clone(faulty),
        ledger: Arc::<FaultyClient>::clone(faulty),
        ..build_run_parts(client)
    };
    Pipeline {
        queue: Arc::<FaultyClient>::clone(faulty),
        served: ServedRuns::One(Box::new(parts)),
        ..build_pipeline(client, stop.clone())
    }
}

/// A consumer lives through an outage that begins when so many rows have moved.
async fn consumer_survives(outage: SimulatedOutage, after: usize, words: &str, log: LogBuffer) {
    let shared = build_world();
    send_rows(&shared, 0..ROW_COUNT);
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let broken = Arc::new(FaultyClient::new(Arc::clone(&client)));
    if after == 0 {
        broken.start_outage(outage);
    }
    let stop = CancellationToken::new();
    let pipeline = faulty_pipeline(&client, &broken, &stop);
    let status = pipeline.status();
    let consumer = tokio::spawn(pipeline.run());
    wait_until_moved(&shared, after).await;
    broken.start_outage(outage);
    sleep(OUTAGE_DURATION / 2).await;
    let reason = status.unhealthy_reason().unwrap_or_default();
    assert!(reason.contains(words), "{outage:?}: {reason}");
    sleep(OUTAGE_DURATION / 2).await;
    assert!(shared.lock().table.moves.len() < ROW_COUNT);
    broken.end_outage();
    wait_until_moved(&shared, ROW_COUNT).await;
    assert_eq!(status.unhealthy_reason(), None, "{outage:?}");
    stop.cancel();
    assert!(consumer.await.unwrap().unwrap());
    let things = shared.lock();
    assert!(
        things.mailbox.dead_letters.is_empty(),
        "{outage:?}: dead letters"
    );
    assert!(things.table.failures.is_empty(), "{outage:?}: failures");
    // While the queue itself is down a delete may not get through.
    let is_received_once = broken.highest_receive_count() == 1;
    assert!(
        is_received_once || outage == SimulatedOutage::Queue,
        "{outage:?}"
    );
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
        pages: Arc::<FaultyClient>::clone(&broken),
        ledger: Arc::<FaultyClient>::clone(&broken),
        ..build_feed(&client)
    };
    let progress = Arc::clone(&feed.progress);
    let stop = CancellationToken::new();
    let consumer = tokio::spawn(build_pipeline(&client, stop.clone()).run());
    let scene = async {
        wait_until_moved(&shared, 8).await;
        broken.start_outage(outage);
        sleep(OUTAGE_DURATION).await;
        let reason = progress.unhealthy_reason().unwrap_or_default();
        assert!(reason.contains(words), "{outage:?}: {reason}");
        assert!(shared.lock().table.moves.len() < ROW_COUNT);
        broken.end_outage();
    };
    let (outcome, ()) = tokio::join!(feed.run(), scene);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.progress.moved, u64::try_from(ROW_COUNT).unwrap());
    assert_eq!(progress.unhealthy_reason(), None, "{outage:?}");
    stop.cancel();
    assert!(consumer.await.unwrap().unwrap());
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
fn of_a_store_that_can_only_be_read() {
    for after in [0, 10] {
        let words = "check S3's status";
        with_captured_log(async |log| {
            consumer_survives(SimulatedOutage::ReadOnly, after, words, log).await;
        });
    }
}

#[test]
fn of_copies_alone() {
    for after in [0, 10] {
        let words = "no response to copies";
        with_captured_log(async |log| {
            consumer_survives(SimulatedOutage::HungCopies, after, words, log).await;
        });
    }
}

#[test]
fn of_a_store_that_throttles_everything() {
    let words = "throttled (ServiceUnavailable)";
    with_captured_log(async |log| {
        consumer_survives(SimulatedOutage::Throttled, 10, words, log).await;
    });
}

/// Each receive costs money, and a queue that does not wait has nothing to say.
#[test]
fn a_queue_that_does_not_wait_is_not_asked_without_end() {
    with_captured_log(async |_| {
        let shared = build_world();
        send_rows(&shared, 0..ROW_COUNT);
        let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
        let faulty = Arc::new(FaultyClient::new(Arc::clone(&client)));
        faulty.start_outage(SimulatedOutage::EarlyReceives);
        let stop = CancellationToken::new();
        let consumer = tokio::spawn(faulty_pipeline(&client, &faulty, &stop).run());
        sleep(Duration::from_mins(1)).await;
        assert!(faulty.receives() < 300, "{} receives", faulty.receives());
        faulty.end_outage();
        wait_until_moved(&shared, ROW_COUNT).await;
        stop.cancel();
        assert!(consumer.await.unwrap().unwrap());
    });
}

/// Objects that cannot be copied, the first so many of all rows.
struct BrokenObjects {
    count: usize,
    error: StoreError,
    /// The other rows are moved before.
    at_the_end: bool,
}

/// Runs until each is recorded; returns how long that took, and the most copies of one of them.
async fn record_broken_objects(broken: BrokenObjects, log: LogBuffer) -> (Duration, u32) {
    let shared = build_world();
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let faulty = Arc::new(FaultyClient::new(Arc::clone(&client)));
    for id in 0..broken.count {
        faulty.break_object(format!("image/{id}"), broken.error.clone());
    }
    let stop = CancellationToken::new();
    let consumer = tokio::spawn(faulty_pipeline(&client, &faulty, &stop).run());
    if broken.at_the_end {
        send_rows(&shared, broken.count..ROW_COUNT);
        wait_until_moved(&shared, ROW_COUNT - broken.count).await;
    }
    let started = Instant::now();
    send_rows(&shared, 0..broken.count);
    let recorded = async {
        while shared.lock().table.failures.len() < broken.count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = timeout(Duration::from_hours(2), recorded).await;
    assert!(waited.is_ok(), "{:#?}", shared.lock().table);
    let took = started.elapsed();
    stop.cancel();
    assert!(consumer.await.unwrap().unwrap());
    assert!(log.error_lines().is_empty(), "{:#?}", log.error_lines());
    (took, faulty.most_copies())
}

fn denied() -> StoreError {
    StoreError::Denied {
        code: "AccessDenied".into(),
        message: "access denied".into(),
    }
}

#[test]
fn denied_objects_are_recorded_soon_even_if_nothing_else_is_left() {
    for (count, at_the_end) in [(1, false), (50, false), (1, true), (6, true)] {
        with_captured_log(async |log| {
            let broken = BrokenObjects {
                count,
                error: denied(),
                at_the_end,
            };
            let (took, copies) = record_broken_objects(broken, log).await;
            assert!(took < Duration::from_secs(30), "{count}: {took:?}");
            assert!(copies <= 3, "{count}: {copies} copies");
        });
    }
}

#[test]
fn broken_objects_at_the_end_are_recorded_within_some_two_minutes() {
    // Waits are jittered: of 150 runs one took 121.6 s.
    let limit = Duration::from_secs(130);
    let transient = StoreError::Transient {
        code: "InternalError".into(),
        message: "broken".into(),
    };
    let suspect = StoreError::Suspect {
        code: "InvalidRequest".into(),
        message: "broken".into(),
    };
    for error in [transient, throttled("SlowDownRead"), suspect] {
        with_captured_log(async |log| {
            let code = error.code().to_owned();
            let broken = BrokenObjects {
                count: 6,
                error,
                at_the_end: true,
            };
            let (took, _) = record_broken_objects(broken, log).await;
            assert!(took < limit, "{code}: {took:?}");
        });
    }
}

#[test]
fn objects_that_hang_are_tried_once_a_receive() {
    for (count, at_the_end) in [(1, false), (1, true), (2, true)] {
        with_captured_log(async |log| {
            let broken = BrokenObjects {
                count,
                error: StoreError::transient("Timeout", "no answer"),
                at_the_end,
            };
            let (took, copies) = record_broken_objects(broken, log).await;
            assert!(took < Duration::from_mins(3), "{count}: {took:?}");
            assert_eq!(copies, 1, "{count}");
        });
    }
}

#[test]
fn an_object_that_is_always_throttled_does_not_slow_the_others() {
    with_captured_log(async |log| {
        let shared = build_world();
        let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
        let faulty = Arc::new(FaultyClient::new(Arc::clone(&client)));
        faulty.break_object("image/7".into(), throttled("SlowDownRead"));
        let stop = CancellationToken::new();
        let consumer = tokio::spawn(faulty_pipeline(&client, &faulty, &stop).run());
        send_rows(&shared, 0..ROW_COUNT);
        let started = Instant::now();
        wait_until_moved(&shared, ROW_COUNT - 1).await;
        let took = started.elapsed();
        assert!(took < Duration::from_mins(1), "{took:?}");
        while shared.lock().table.failures.is_empty() {
            sleep(Duration::from_millis(100)).await;
            assert!(started.elapsed() < Duration::from_mins(3));
        }
        stop.cancel();
        assert!(consumer.await.unwrap().unwrap());
        assert!(log.error_lines().is_empty(), "{:#?}", log.error_lines());
    });
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

/// While an operator's pause holds everything nothing is expected of the consumers, and no row is looked for.
async fn pause_while_draining(log: LogBuffer) {
    let shared = build_world();
    // Fewer than the backlog takes.
    shared
        .lock()
        .table
        .rows
        .retain(|id, _| ("0".."5").contains(&id.as_str()) && id.len() == 1);
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let feed = build_feed(&client);
    let (progress, throttle) = (Arc::clone(&feed.progress), Arc::clone(&feed.throttle));
    let stop = feed.stop.clone();
    let scene = async {
        while progress.heartbeat().state != WorkerState::Draining {
            sleep(Duration::from_millis(5)).await;
        }
        let paused = FleetLimits {
            paused: Some("by ana".into()),
            ..FleetLimits::default()
        };
        throttle.set_limits(paused);
        sleep(OUTAGE_DURATION).await;
        assert!(!log.text().contains("wait in the queue"), "{}", log.text());
        throttle.set_limits(FleetLimits::default());
        sleep(OUTAGE_DURATION).await;
        assert!(log.text().contains("wait in the queue"), "{}", log.text());
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(feed.run(), scene);
    assert!(outcome.is_err());
}

#[test]
fn a_paused_feeder_does_not_ask_for_consumers() {
    with_captured_log(pause_while_draining);
}
