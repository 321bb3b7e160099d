//! One seed: a feeder and two consumers, which die and are started again, move a small world while
//! everything around them fails now and then, on paused time.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::control::Orders;
use bucket_brigade_common::row_id::IdType;
use bucket_brigade_common::scope;
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_consumer::control::Steering;
use bucket_brigade_consumer::health::Health;
use bucket_brigade_consumer::lease::Leases;
use bucket_brigade_consumer::observation::Observation;
use bucket_brigade_consumer::pipeline::{Parts, run};
use bucket_brigade_consumer::trace::Deliveries;
use bucket_brigade_feeder::feed::{Feed, Outcome};
use bucket_brigade_feeder::progress::Progress;
use bucket_brigade_feeder::settings::Pacing;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::application;
use crate::client::{Client, Death};
use crate::judge::judge;
use crate::sabotage::Sabotage;
use crate::shared::{Shared, Things};
use crate::world::{OLD, rule};

const VISIBILITY: Duration = Duration::from_secs(4);

/// Longer than any migration of a dozen rows may take, however bad the weather.
const PATIENCE: Duration = Duration::from_hours(1);

/// How often a process may die; then it is left to finish.
const DEATHS: u32 = 3;

/// What a seed came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows moved.
    pub moved: usize,
    /// Rows the application changed.
    pub changed: usize,
    /// Rows that failed.
    pub failed: usize,
    /// Processes that died.
    pub deaths: u64,
    /// Faults injected.
    pub faults: u64,
    /// A checksum of everything that happened.
    pub trace: u64,
    /// What does not hold.
    pub violations: Vec<String>,
}

/// Runs one seed, the same way every time.
pub fn simulate(seed: u64) -> Report {
    simulate_with(seed, Sabotage::None)
}

/// Runs one seed with something broken on purpose.
pub fn simulate_with(seed: u64, sabotage: Sabotage) -> Report {
    // The product's own dice, for jitter.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(migrate(seed, sabotage)),
        Err(error) => Report {
            violations: vec![format!("no runtime: {error}")],
            ..Report::default()
        },
    }
}

async fn migrate(seed: u64, sabotage: Sabotage) -> Report {
    let shared = Arc::new(Shared::new(seed, sabotage));
    furnish(&mut shared.lock());
    let times = shared.lock().dice.u32(0..14);
    let writer = application::write(Arc::clone(&shared), times);
    let stop = CancellationToken::new();
    let crew: Vec<Consumers> = (0..2)
        .map(|_| tokio::spawn(consumers(Arc::clone(&shared), stop.clone())))
        .collect();
    let ended = timeout(PATIENCE, async {
        let ((died, _), ()) = tokio::join!(feeders(Arc::clone(&shared)), writer);
        // What cannot be processed is on its way to the dead-letter queue.
        while !shared.lock().is_drained() {
            sleep(Duration::from_millis(500)).await;
        }
        // Once more, now that nobody writes any more: it feeds what came late, and tells the outcome.
        let (died_again, outcome) = feeders(Arc::clone(&shared)).await;
        (died + died_again, outcome)
    });
    let ended = ended.await;
    let mut report = Report::default();
    stop.cancel();
    for consumer in crew {
        let (deaths, drained) = consumer.await.unwrap_or_default();
        report.deaths += deaths;
        if !drained {
            let message = "a consumer did not give back what it had in hand";
            report.violations.push(message.into());
        }
    }
    finish(report, &shared.lock(), ended.ok())
}

fn finish(mut report: Report, things: &Things, ended: Option<(u64, Outcome)>) -> Report {
    match ended {
        None => report
            .violations
            .push(format!("it never ended: {things:#?}")),
        Some((deaths, outcome)) => {
            report.deaths += deaths;
            report.violations.extend(judge(things, &outcome));
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
fn furnish(things: &mut Things) {
    let rows = things.dice.usize(4..12);
    for id in 0..rows {
        let path = match id {
            1 | 2 => format!("{OLD}shared"),
            id => format!("{OLD}{id}"),
        };
        let bytes = format!("bytes of {path}");
        if id != 0 {
            things.buckets.source.insert(path.clone(), bytes);
        }
        things.table.rows.insert(id.to_string(), path);
    }
}

/// When the next process dies, if it does.
fn next_death(shared: &Shared, deaths: u64) -> Option<Death> {
    let dice = &mut shared.lock().dice;
    let dies = deaths < u64::from(DEATHS) && dice.u32(0..4) > 0;
    dies.then(|| Death {
        at_call: dice.u64(0..40),
        after_effect: dice.bool(),
    })
}

/// Feeders, one after the other, until one comes to the end. Returns how many died before it.
async fn feeders(shared: Arc<Shared>) -> (u64, Outcome) {
    let mut deaths = 0;
    loop {
        let client = Arc::new(Client::new(
            Arc::clone(&shared),
            next_death(&shared, deaths),
        ));
        let feed = feed(&client);
        tokio::select! {
            biased;
            outcome = feed.run() => match outcome {
                Ok(outcome) => return (deaths, outcome),
                Err(_) => return (deaths, Outcome { numbers: scope::Progress::default(), failures: vec![] }),
            },
            () = client.died() => deaths += 1,
        }
        pause(&shared).await;
    }
}

/// A feeder over a client.
pub fn feed(client: &Arc<Client>) -> Feed {
    Feed {
        queue: Arc::<Client>::clone(client),
        scope: Arc::<Client>::clone(client),
        catalog: Arc::<Client>::clone(client),
        rule: rule(),
        pacing: Pacing {
            canary: None,
            page_size: 3,
            max_backlog: 8,
            watch: None,
        },
        steering: Arc::default(),
        progress: Arc::new(Progress::default()),
        tracer: None,
        stop: CancellationToken::new(),
    }
}

type Consumers = JoinHandle<(u64, bool)>;

/// Consumers, one after the other, until the stop. Returns how many died, and whether the last one gave back
/// all that it had in hand.
async fn consumers(shared: Arc<Shared>, stop: CancellationToken) -> (u64, bool) {
    let mut deaths = 0;
    loop {
        let client = Arc::new(Client::new(
            Arc::clone(&shared),
            next_death(&shared, deaths),
        ));
        tokio::select! {
            biased;
            drained = run(parts(&client), stop.clone()) => return (deaths, drained),
            () = client.died() => deaths += 1,
        }
        pause(&shared).await;
    }
}

/// A consumer's pipeline over a client.
pub fn parts(client: &Arc<Client>) -> Parts {
    Parts {
        queue: Arc::<Client>::clone(client),
        store: Arc::<Client>::clone(client),
        catalog: Arc::<Client>::clone(client),
        id_type: IdType::Text,
        rule: rule(),
        has_dead_letter_queue: true,
        witness: None,
        max_concurrency: 4,
        visibility: VISIBILITY,
        grace: Duration::from_secs(25),
        steering: Steering {
            control: Arc::<Client>::clone(client),
            orders: Orders::default(),
            limits: DatabaseLimits::default(),
        },
        observation: Observation {
            health: Health::default(),
            leases: Leases::new(VISIBILITY),
            tally: Arc::default(),
        },
        deliveries: Deliveries::default(),
    }
}

async fn pause(shared: &Shared) {
    let pause = shared.lock().dice.u64(0..2_000);
    sleep(Duration::from_millis(pause)).await;
}
