//! One seed: a feeder and two consumers, which die and are started again, move a small world while
//! everything around them fails now and then, on paused time.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::ledger::feed_source;
use bucket_brigade_common::row_id::IdColumnType;
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_consumer::context::ConsumerContext;
use bucket_brigade_consumer::pipeline::Pipeline;
use bucket_brigade_consumer::trace::Deliveries;
use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_feeder::outcome::FeedOutcome;
use bucket_brigade_feeder::progress::FeederProgress;
use bucket_brigade_feeder::settings::FeedOptions;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::application;
use crate::client::{CrashPoint, SimulatedClient};
use crate::invariants::check_invariants;
use crate::sabotage::Sabotage;
use crate::shared_world::{SharedWorld, WorldState};
use crate::world::{OLD_PREFIX, RUN, world_path_rule};

const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(4);

/// Longer than any migration of a dozen rows may take, however bad the weather.
const MAX_SIMULATED_TIME: Duration = Duration::from_hours(1);

/// How often a process may die; then it is left to finish.
const MAX_CRASHES: u32 = 3;

/// What a seed came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimulationReport {
    pub moved: usize,
    /// Rows the application changed.
    pub changed: usize,
    pub failed: usize,
    pub crashes: u64,
    pub faults: u64,
    /// A checksum of everything that happened.
    pub trace: u64,
    /// What does not hold.
    pub violations: Vec<String>,
}

/// Runs one seed, the same way every time.
pub fn simulate_seed(seed: u64) -> SimulationReport {
    simulate_sabotaged(seed, Sabotage::None)
}

/// Runs one seed with something broken on purpose.
pub fn simulate_sabotaged(seed: u64, sabotage: Sabotage) -> SimulationReport {
    // The product's own dice, for jitter.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run_migration(seed, sabotage)),
        Err(error) => SimulationReport {
            violations: vec![format!("no runtime: {error}")],
            ..SimulationReport::default()
        },
    }
}

async fn run_migration(seed: u64, sabotage: Sabotage) -> SimulationReport {
    let shared = Arc::new(SharedWorld::new(seed, sabotage));
    seed_world(&mut shared.lock());
    let times = shared.lock().dice.u32(0..14);
    let writer = application::run_writes(Arc::clone(&shared), times);
    let stop = CancellationToken::new();
    let crew: Vec<ConsumerTask> = (0..2)
        .map(|_| tokio::spawn(run_consumers(Arc::clone(&shared), stop.clone())))
        .collect();
    let ended = timeout(MAX_SIMULATED_TIME, async {
        let ((died, _), ()) = tokio::join!(run_feeders(Arc::clone(&shared)), writer);
        // What cannot be processed is on its way to the dead-letter queue.
        while !shared.lock().is_drained() {
            sleep(Duration::from_millis(500)).await;
        }
        // Once more, after the last write: it feeds what came late, and returns the outcome.
        let (died_again, outcome) = run_feeders(Arc::clone(&shared)).await;
        (died + died_again, outcome)
    });
    let ended = ended.await;
    let mut report = SimulationReport::default();
    stop.cancel();
    for consumer in crew {
        let (deaths, drained) = consumer.await.unwrap_or_default();
        report.crashes += deaths;
        if !drained {
            let message = "a consumer did not give back what it had in hand";
            report.violations.push(message.into());
        }
    }
    complete_report(report, &shared.lock(), ended.ok())
}

fn complete_report(
    mut report: SimulationReport,
    things: &WorldState,
    ended: Option<(u64, FeedOutcome)>,
) -> SimulationReport {
    match ended {
        None => report
            .violations
            .push(format!("it never ended: {things:#?}")),
        Some((deaths, outcome)) => {
            report.crashes += deaths;
            report.violations.extend(check_invariants(things, &outcome));
        }
    }
    report.moved = things.table.moves.len();
    report.changed = things.table.changes.len();
    report.failed = things.table.failures.len();
    report.faults = things.faults;
    report.trace = things.trace;
    report
}

/// Up to a dozen rows; one without an object, two that share theirs.
fn seed_world(things: &mut WorldState) {
    let rows = things.dice.usize(4..12);
    for id in 0..rows {
        let path = match id {
            1 | 2 => format!("{OLD_PREFIX}shared"),
            id => format!("{OLD_PREFIX}{id}"),
        };
        let bytes = format!("bytes of {path}");
        if id != 0 {
            things.buckets.source.insert(path.clone(), bytes);
        }
        things.table.rows.insert(id.to_string(), path);
    }
}

/// When the next process dies, if it does.
fn pick_crash_point(shared: &SharedWorld, deaths: u64) -> Option<CrashPoint> {
    let dice = &mut shared.lock().dice;
    let dies = deaths < u64::from(MAX_CRASHES) && dice.u32(0..4) > 0;
    dies.then(|| CrashPoint {
        at_call: dice.u64(0..40),
        after_effect: dice.bool(),
    })
}

/// Feeders, one after the other, until one comes to the end. Returns how many died before it.
async fn run_feeders(shared: Arc<SharedWorld>) -> (u64, FeedOutcome) {
    let mut deaths = 0;
    loop {
        let client = Arc::new(SimulatedClient::new(
            Arc::clone(&shared),
            pick_crash_point(&shared, deaths),
        ));
        let feed = build_feed(&client);
        tokio::select! {
            biased;
            outcome = feed.run() => match outcome {
                Ok(outcome) => return (deaths, outcome),
                Err(_) => return (deaths, FeedOutcome { progress: feed_source::RunProgress::default(), failures: vec![], is_canary: false, empty_scope: None }),
            },
            () = send_heartbeats(&*client, &feed.throttle, || feed.progress.heartbeat()) => {}
            () = client.died() => deaths += 1,
        }
        sleep_randomly(&shared).await;
    }
}

/// A feeder over a client.
pub fn build_feed(client: &Arc<SimulatedClient>) -> FeedLoop {
    let throttle = Arc::new(Throttle::for_rows(DatabaseLimits::default()));
    FeedLoop {
        run: RUN,
        queue: Arc::<SimulatedClient>::clone(client),
        source: Arc::<SimulatedClient>::clone(client),
        ledger: Arc::<SimulatedClient>::clone(client),
        rule: world_path_rule(),
        options: FeedOptions {
            canary: None,
            page_size: 3,
            max_backlog: 8,
            watch_interval: None,
            full_sweep_interval: Duration::from_hours(24),
        },
        progress: Arc::new(FeederProgress::new(Arc::clone(&throttle))),
        throttle,
        stop: CancellationToken::new(),
    }
}

type ConsumerTask = JoinHandle<(u64, bool)>;

/// Consumers, one after the other, until the stop. Returns how many died, and whether the last one gave back
/// all that it had in hand.
async fn run_consumers(shared: Arc<SharedWorld>, stop: CancellationToken) -> (u64, bool) {
    let mut deaths = 0;
    loop {
        let client = Arc::new(SimulatedClient::new(
            Arc::clone(&shared),
            pick_crash_point(&shared, deaths),
        ));
        tokio::select! {
            biased;
            drained = build_pipeline(&client, stop.clone()).run() => return (deaths, drained),
            () = client.died() => deaths += 1,
        }
        sleep_randomly(&shared).await;
    }
}

/// A consumer's pipeline over a client.
pub fn build_pipeline(client: &Arc<SimulatedClient>, stop: CancellationToken) -> Pipeline {
    let throttle = Throttle::for_copies(4, DatabaseLimits::default());
    Pipeline {
        run: RUN,
        queue: Arc::<SimulatedClient>::clone(client),
        store: Arc::<SimulatedClient>::clone(client),
        ledger: Arc::<SimulatedClient>::clone(client),
        fleet_control: Arc::<SimulatedClient>::clone(client),
        id_type: IdColumnType::Text.into(),
        rule: world_path_rule(),
        has_dead_letter_queue: true,
        max_concurrency: 4,
        visibility_timeout: VISIBILITY_TIMEOUT,
        shutdown_grace: Duration::from_secs(25),
        deliveries: Deliveries::default(),
        context: ConsumerContext::new(throttle, VISIBILITY_TIMEOUT, stop),
    }
}

async fn sleep_randomly(shared: &SharedWorld) {
    let pause = shared.lock().dice.u64(0..2_000);
    sleep(Duration::from_millis(pause)).await;
}
