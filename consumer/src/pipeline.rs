//! The pipeline: the stages put together over a queue, a store and a catalog, whatever they are.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::fleet_control::FleetControl;
use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::move_ledger::MoveLedger;
use bucket_brigade_common::object_store::ObjectStore;
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::row_id::IdColumnType;
use bucket_brigade_common::throttle::Throttle;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acknowledge::Acknowledger;
use crate::commit::Committer;
use crate::copy::Copier;
use crate::counters::ConsumerCounts;
use crate::handle::Stages;
use crate::health::Health;
use crate::heartbeat::HeartbeatSource;
use crate::lease::Leases;
use crate::metrics::ConsumerMetrics;
use crate::receive::{InHandLimit, Receiver, receiver_count};
use crate::record::OutcomeRecorder;
use crate::row_reader::RowReader;
use crate::shutdown::{ShutdownDeadlines, drain};
use crate::trace::Deliveries;

/// How often progress is logged.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a pipeline works on.
pub struct Parts {
    /// Where messages come from.
    pub queue: Arc<dyn MessageQueue>,
    /// Where objects are copied.
    pub store: Arc<dyn ObjectStore>,
    /// Where paths are set.
    pub catalog: Arc<dyn MoveLedger>,
    /// The type of the table's ids.
    pub id_type: IdColumnType,
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
    pub witness: Option<MoveRoute>,
    pub fleet_control: Arc<dyn FleetControl>,
    /// Knows the fleet's limits already.
    pub throttle: Arc<Throttle>,
    /// What is looked at from outside.
    pub observation: ConsumerMetrics,
    /// Traces.
    pub deliveries: Deliveries,
}

/// Consumes until `stop`, then drains within the grace. True when everything in hand was finished or
/// given back.
pub async fn run(parts: Parts, stop: CancellationToken) -> bool {
    let give_up = CancellationToken::new();
    let ConsumerMetrics { health, leases, .. } = parts.observation.clone();
    let stages = Arc::new(build_stages(&parts, &health, &stop, &give_up));
    let (queue, fleet_control) = (Arc::clone(&parts.queue), Arc::clone(&parts.fleet_control));
    let (grace, throttle) = (parts.grace, Arc::clone(&parts.throttle));
    let (tasks, receivers) = start_receivers(parts, &stages, &leases, &health, &stop);
    let working = async {
        stop.cancelled().await;
        let deadlines = ShutdownDeadlines::from_now(grace);
        drain(&receivers, &tasks, &give_up, deadlines).await
    };
    let mut source = HeartbeatSource::new(
        Arc::clone(&throttle),
        Arc::clone(&stages.tally),
        leases.clone(),
        health.clone(),
        stop.clone(),
    );
    let drained = tokio::select! {
        biased;
        drained = working => drained,
        () = leases.renew_forever(&*queue) => false,
        () = send_heartbeats(&*fleet_control, &throttle, || source.current()) => false,
        () = log_progress(&stages, &leases, &health) => false,
    };
    log_counts(&stages.tally.counts(), "drained");
    drained
}

fn build_stages(
    parts: &Parts,
    health: &Health,
    stop: &CancellationToken,
    give_up: &CancellationToken,
) -> Stages {
    let (rule, catalog, tally) = (
        &parts.rule,
        &parts.catalog,
        Arc::clone(&parts.observation.counters),
    );
    Stages {
        id_type: parts.id_type,
        rule: rule.clone(),
        has_dead_letter_queue: parts.has_dead_letter_queue,
        decide: RowReader::new(
            Arc::clone(catalog),
            rule.clone(),
            health.clone(),
            stop.clone(),
        ),
        copy: Copier::new(
            Arc::clone(&parts.store),
            Arc::clone(&parts.throttle),
            parts.witness.clone(),
            health.clone(),
            Arc::clone(&tally),
            stop.clone(),
        ),
        commit: Committer::new(
            Arc::clone(catalog),
            Arc::clone(&parts.throttle),
            Arc::clone(&tally),
            health.clone(),
            stop.clone(),
        ),
        record: OutcomeRecorder::new(catalog, health, stop),
        acknowledge: Acknowledger::new(&parts.queue),
        tally,
        deliveries: parts.deliveries.clone(),
        stop: stop.clone(),
        give_up: give_up.clone(),
    }
}

/// Starts the receivers; returns the tasks of the messages and those of the receivers.
fn start_receivers(
    parts: Parts,
    stages: &Arc<Stages>,
    leases: &Leases,
    health: &Health,
    stop: &CancellationToken,
) -> (TaskTracker, TaskTracker) {
    let (tasks, receivers) = (TaskTracker::new(), TaskTracker::new());
    let receive = Receiver {
        queue: parts.queue,
        visibility_timeout: parts.visibility,
        in_hand_limit: InHandLimit::new(parts.max_concurrency),
        leases: leases.clone(),
        stages: Arc::clone(stages),
        tasks: tasks.clone(),
        health: health.clone(),
        stop: stop.clone(),
    };
    for _ in 0..receiver_count(parts.max_concurrency) {
        receivers.spawn(receive.clone().run());
    }
    (tasks, receivers)
}

/// Logs progress every few seconds, as long as there is any.
async fn log_progress(stages: &Stages, leases: &Leases, health: &Health) {
    let mut ticks = interval(PROGRESS_LOG_INTERVAL);
    let mut last = ConsumerCounts::default();
    loop {
        ticks.tick().await;
        let counts = stages.tally.counts();
        // An outage was told when it began.
        if health.outage().is_none() && counts != last {
            let throttle = stages.copy.throttle();
            let (in_flight, rate_limit) = (throttle.in_flight(), throttle.store_limit());
            let in_hand = leases.held_count();
            tracing::info!(in_hand, in_flight, rate_limit, "at work");
            log_counts(&counts, "progress");
        }
        last = counts;
    }
}

fn log_counts(counts: &ConsumerCounts, what: &str) {
    tracing::info!(
        moved = counts.moved,
        settled = counts.settled,
        failed = counts.failed,
        poison = counts.poison,
        throttled = counts.throttled,
        "{what}"
    );
}
