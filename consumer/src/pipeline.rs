//! The pipeline: the stages put together over a queue, a store and a catalog, whatever they are.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::catalog::Catalog;
use bucket_brigade_common::object_store::ObjectStore;
use bucket_brigade_common::path_rule::{PathRule, Route};
use bucket_brigade_common::queue::Queue;
use bucket_brigade_common::row_id::IdType;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acknowledge::Acknowledge;
use crate::commit::Commit;
use crate::control::{Pulse, Steering};
use crate::copy::Copy;
use crate::decide::Decide;
use crate::governor::Governor;
use crate::handle::Stages;
use crate::health::Health;
use crate::lease::Leases;
use crate::observation::Observation;
use crate::receive::{Receive, Room, receivers_for};
use crate::record::Record;
use crate::shutdown::{Deadlines, drain};
use crate::tally::Counts;
use crate::trace::Deliveries;

/// How often progress is logged.
const REPORT: Duration = Duration::from_secs(10);

/// What a pipeline works on.
pub struct Parts {
    /// Where messages come from.
    pub queue: Arc<dyn Queue>,
    /// Where objects are copied.
    pub store: Arc<dyn ObjectStore>,
    /// Where paths are set.
    pub catalog: Arc<dyn Catalog>,
    /// The type of the table's ids.
    pub id_type: IdType,
    /// The path rule.
    pub rule: PathRule,
    /// Whether the queue has a redrive policy.
    pub has_dead_letter_queue: bool,
    /// Copies in flight at most.
    pub max_concurrency: usize,
    /// How long a message is hidden at a time.
    pub visibility: Duration,
    /// From the stop to the end.
    pub grace: Duration,
    /// An image that was moved before, to tell an outage from a broken object.
    pub witness: Option<Route>,
    /// Who is told what this process does, and tells what it may do.
    pub steering: Steering,
    /// What is looked at from outside.
    pub observation: Observation,
    /// Traces.
    pub deliveries: Deliveries,
}

/// Consumes until `stop`, then drains within the grace. True when everything in hand was finished or
/// given back.
pub async fn run(parts: Parts, stop: CancellationToken) -> bool {
    let give_up = CancellationToken::new();
    let Observation { health, leases, .. } = parts.observation.clone();
    let stages = Arc::new(stages(&parts, &health, &stop, &give_up));
    let (queue, control) = (
        Arc::clone(&parts.queue),
        Arc::clone(&parts.steering.control),
    );
    let (grace, limits) = (parts.grace, parts.steering.limits);
    let (tasks, receivers) = receive(parts, &stages, &leases, &health, &stop);
    let working = async {
        stop.cancelled().await;
        let deadlines = Deadlines::from_now(grace);
        drain(&receivers, &tasks, &give_up, deadlines).await
    };
    let pulse = Pulse {
        stages: &stages,
        leases: &leases,
        health: &health,
        stop: &stop,
        limits,
    };
    let drained = tokio::select! {
        biased;
        drained = working => drained,
        () = leases.renew_forever(&*queue) => false,
        () = pulse.beat_forever(&*control) => false,
        () = report(&stages, &leases, &health) => false,
    };
    log(&stages.tally.counts(), "drained");
    drained
}

fn stages(
    parts: &Parts,
    health: &Health,
    stop: &CancellationToken,
    give_up: &CancellationToken,
) -> Stages {
    let (rule, catalog, tally) = (
        &parts.rule,
        &parts.catalog,
        Arc::clone(&parts.observation.tally),
    );
    let steering = &parts.steering;
    let governor = Arc::new(Governor::new(
        parts.max_concurrency,
        steering.limits,
        steering.orders.clone(),
    ));
    Stages {
        id_type: parts.id_type,
        rule: rule.clone(),
        has_dead_letter_queue: parts.has_dead_letter_queue,
        decide: Decide::new(
            Arc::clone(catalog),
            rule.clone(),
            health.clone(),
            stop.clone(),
        ),
        copy: Copy::new(
            Arc::clone(&parts.store),
            Arc::clone(&governor),
            parts.max_concurrency,
            parts.witness.clone(),
            health.clone(),
            Arc::clone(&tally),
            stop.clone(),
        ),
        commit: Commit::new(
            Arc::clone(catalog),
            governor,
            Arc::clone(&tally),
            health.clone(),
            stop.clone(),
        ),
        record: Record::new(catalog, health, stop),
        acknowledge: Acknowledge::new(&parts.queue),
        tally,
        deliveries: parts.deliveries.clone(),
        stop: stop.clone(),
        give_up: give_up.clone(),
    }
}

/// Starts the receivers; returns the tasks of the messages and those of the receivers.
fn receive(
    parts: Parts,
    stages: &Arc<Stages>,
    leases: &Leases,
    health: &Health,
    stop: &CancellationToken,
) -> (TaskTracker, TaskTracker) {
    let (tasks, receivers) = (TaskTracker::new(), TaskTracker::new());
    let receive = Receive {
        queue: parts.queue,
        visibility: parts.visibility,
        room: Room::new(parts.max_concurrency),
        leases: leases.clone(),
        stages: Arc::clone(stages),
        tasks: tasks.clone(),
        health: health.clone(),
        stop: stop.clone(),
    };
    for _ in 0..receivers_for(parts.max_concurrency) {
        receivers.spawn(receive.clone().run());
    }
    (tasks, receivers)
}

/// Logs progress every few seconds, as long as there is any.
async fn report(stages: &Stages, leases: &Leases, health: &Health) {
    let mut ticks = interval(REPORT);
    let mut last = Counts::default();
    loop {
        ticks.tick().await;
        let counts = stages.tally.counts();
        // An outage was told when it began.
        if health.outage().is_none() && counts != last {
            let (in_flight, rate_limit) = stages.copy.pace().now();
            let in_hand = leases.count();
            tracing::info!(in_hand, in_flight, rate_limit, "at work");
            log(&counts, "progress");
        }
        last = counts;
    }
}

fn log(counts: &Counts, what: &str) {
    tracing::info!(
        moved = counts.moved,
        settled = counts.settled,
        failed = counts.failed,
        poison = counts.poison,
        throttled = counts.throttled,
        "{what}"
    );
}
