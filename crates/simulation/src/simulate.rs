//! One seed: a feeder and two consumers, which die and are started again, move a small world while
//! everything around them fails now and then, on paused time.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::row_id::IdColumnType;
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_consumer::context::ConsumerContext;
use bucket_brigade_consumer::pipeline::{Pipeline, ServedRuns};
use bucket_brigade_consumer::runs::{RunParts, Runs};
use bucket_brigade_consumer::trace::Deliveries;
use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_feeder::outcome::FeedOutcome;
use bucket_brigade_feeder::progress::FeederProgress;
use bucket_brigade_feeder::settings::FeedOptions;
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::application;
use crate::client::{CrashPoint, SimulatedClient, SimulatedLoader};
use crate::invariants::check_invariants;
use crate::sabotage::Sabotage;
use crate::shared_world::{SharedWorld, WorldState};
use crate::world::{OLD_PREFIX, RUN, world_path_rule};

const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(4);

const MAX_CONCURRENCY: usize = 4;

/// Longer than any migration of a dozen rows may take, however bad the weather.
const MAX_SIMULATED_TIME: Duration = Duration::from_hours(1);

/// How often a process may die; then it is left to finish.
const MAX_CRASHES: u32 = 3;

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

/// Each run has a world of its own, and the queue of the first one.
type Worlds = Arc<[Arc<SharedWorld>]>;

/// One seed of four has two runs on one queue.
fn build_worlds(seed: u64, sabotage: Sabotage) -> Worlds {
    let build = |number: u64| {
        let shared = SharedWorld::new(seed ^ number << 32, sabotage);
        shared.lock().run = RUN + i64::try_from(number).unwrap_or(0);
        seed_world(&mut shared.lock());
        Arc::new(shared)
    };
    let runs = if seed % 4 == 3 { 2 } else { 1 };
    (0..runs).map(build).collect()
}

async fn run_migration(seed: u64, sabotage: Sabotage) -> SimulationReport {
    let worlds = build_worlds(seed, sabotage);
    let writers = join_all(worlds.iter().map(|shared| {
        let times = shared.lock().dice.u32(0..14);
        application::run_writes(Arc::clone(shared), times)
    }));
    let stop = CancellationToken::new();
    let crew: Vec<ConsumerTask> = (0..2)
        .map(|_| tokio::spawn(run_consumers(Arc::clone(&worlds), stop.clone())))
        .collect();
    let feed_all = || join_all(worlds.iter().map(|shared| run_feeders(&worlds, shared)));
    let ended = timeout(MAX_SIMULATED_TIME, async {
        let (first, _) = tokio::join!(feed_all(), writers);
        // What cannot be processed is on its way to the dead-letter queue.
        while !worlds[0].lock().is_drained() {
            sleep(Duration::from_millis(500)).await;
        }
        // Once more, after the last write: it feeds what came late, and returns the outcome.
        let again = feed_all().await;
        let deaths = first.into_iter().map(|(died, _)| died);
        let ended = again.into_iter().zip(deaths);
        ended
            .map(|((died, outcome), before)| (died + before, outcome))
            .collect()
    });
    let ended: Result<Vec<_>, _> = ended.await;
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
    let mut outcomes = ended.unwrap_or_default().into_iter();
    for shared in worlds.iter() {
        report = complete_report(report, &shared.lock(), outcomes.next());
    }
    report
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
    report.moved += things.table.moves.len();
    report.changed += things.table.changes.len();
    report.failed += things.table.failures.len();
    report.faults += things.faults;
    report.trace ^= things.trace;
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
            let with_companion = things.has_companions && id % 2 == 0;
            things.buckets.put_source(&path, bytes, with_companion);
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
async fn run_feeders(worlds: &Worlds, shared: &Arc<SharedWorld>) -> (u64, FeedOutcome) {
    let mut deaths = 0;
    loop {
        let queue = build_client(worlds, pick_crash_point(shared, deaths));
        let client = Arc::new(queue.in_world(shared));
        let feed = FeedLoop {
            queue: Arc::new(queue),
            ..build_feed(&client)
        };
        tokio::select! {
            biased;
            outcome = feed.run() => match outcome {
                Ok(outcome) => return (deaths, outcome),
                Err(_) => return (deaths, FeedOutcome::default()),
            },
            () = send_heartbeats(&*client, &feed.throttle, || feed.progress.heartbeat(), |_| {}) => {}
            () = client.died() => deaths += 1,
        }
        sleep_randomly(shared).await;
    }
}

/// A process at the queue of all runs.
fn build_client(worlds: &Worlds, death: Option<CrashPoint>) -> SimulatedClient {
    SimulatedClient::new(Arc::clone(&worlds[0]), death).with_others(&worlds[1..])
}

pub fn build_feed(client: &Arc<SimulatedClient>) -> FeedLoop {
    let throttle = Arc::new(Throttle::for_rows(DatabaseLimits::default()));
    FeedLoop {
        origin: client.run().into(),
        queue: Arc::<SimulatedClient>::clone(client),
        source: Arc::<SimulatedClient>::clone(client),
        pages: Arc::<SimulatedClient>::clone(client),
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
async fn run_consumers(worlds: Worlds, stop: CancellationToken) -> (u64, bool) {
    let shared = &worlds[0];
    let mut deaths = 0;
    loop {
        let client = Arc::new(build_client(&worlds, pick_crash_point(shared, deaths)));
        let mut pipeline = build_pipeline(&client, stop.clone());
        if worlds.len() > 1 {
            let runs = worlds.iter().map(|world| Arc::new(client.in_world(world)));
            let loader = SimulatedLoader::new(runs.collect());
            pipeline.served = ServedRuns::All(Arc::new(loader));
        }
        tokio::select! {
            biased;
            drained = pipeline.run() => return (deaths, drained.unwrap_or(false)),
            () = client.died() => deaths += 1,
        }
        sleep_randomly(shared).await;
    }
}

pub fn build_pipeline(client: &Arc<SimulatedClient>, stop: CancellationToken) -> Pipeline {
    let parts = Box::new(build_run_parts(client));
    Pipeline {
        queue: Arc::<SimulatedClient>::clone(client),
        context: ConsumerContext::new(parts.throttle.clone(), VISIBILITY_TIMEOUT, stop),
        served: ServedRuns::One(parts),
        runs: Runs::new(MAX_CONCURRENCY),
        max_receive_count: Some(5),
        visibility_timeout: VISIBILITY_TIMEOUT,
        shutdown_grace: Duration::from_secs(25),
    }
}

pub fn build_run_parts(client: &Arc<SimulatedClient>) -> RunParts {
    let throttle = Throttle::for_copies(MAX_CONCURRENCY, DatabaseLimits::default());
    RunParts {
        run: client.run().into(),
        name: "images.path".into(),
        id_type: IdColumnType::Text.into(),
        rule: client.path_rule(),
        store: Arc::<SimulatedClient>::clone(client),
        ledger: Arc::<SimulatedClient>::clone(client),
        fleet_control: Arc::<SimulatedClient>::clone(client),
        throttle: Arc::new(throttle),
        deliveries: Deliveries::default(),
    }
}

async fn sleep_randomly(shared: &SharedWorld) {
    let pause = shared.lock().dice.u64(0..2_000);
    sleep(Duration::from_millis(pause)).await;
}
