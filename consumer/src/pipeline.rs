//! The pipeline: the stages put together over any queue, store and ledger.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::ledger::fleet_control::FleetControl;
use bucket_brigade_common::ledger::move_ledger::MoveLedger;
use bucket_brigade_common::object_store::ObjectStore;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::row_id::IdType;
use tokio::time::interval;
use tokio_util::task::TaskTracker;

use crate::acknowledge::Acknowledger;
use crate::commit::Committer;
use crate::context::ConsumerContext;
use crate::copy::Copier;
use crate::counters::ConsumerCounts;
use crate::handle::Stages;
use crate::heartbeat::HeartbeatSource;
use crate::receive::{InHandLimit, Receiver, receiver_count};
use crate::record::OutcomeRecorder;
use crate::row_reader::RowReader;
use crate::shutdown::{ShutdownDeadlines, drain};
use crate::trace::Deliveries;

/// How often progress is logged.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a consumer works on.
pub struct Pipeline {
    pub queue: Arc<dyn MessageQueue>,
    pub store: Arc<dyn ObjectStore>,
    pub ledger: Arc<dyn MoveLedger>,
    pub fleet_control: Arc<dyn FleetControl>,
    /// The run's number in the ledger.
    pub run: i64,
    pub id_type: IdType,
    pub rule: PathRule,
    /// Whether the queue has a redrive policy.
    pub has_dead_letter_queue: bool,
    /// Copies in flight at most.
    pub max_concurrency: usize,
    /// How long a message is hidden at a time.
    pub visibility_timeout: Duration,
    /// From the stop to the end.
    pub shutdown_grace: Duration,
    pub deliveries: Deliveries,
    pub context: ConsumerContext,
}

impl Pipeline {
    /// Consumes until the stop, then drains within the grace period. True when everything in hand was
    /// finished or released.
    pub async fn run(self) -> bool {
        let context = &self.context;
        let stages = Arc::new(self.build_stages());
        let (tasks, receivers) = self.start_receivers(&stages);
        let working = async {
            context.stop.cancelled().await;
            let deadlines = ShutdownDeadlines::from_now(self.shutdown_grace);
            drain(&receivers, &tasks, &context.give_up, deadlines).await
        };
        let mut source = HeartbeatSource::new(context.clone());
        let heartbeats =
            send_heartbeats(&*self.fleet_control, &context.throttle, || source.current());
        let drained = tokio::select! {
            biased;
            drained = working => drained,
            () = context.leases.renew_forever(&*self.queue) => false,
            () = heartbeats => false,
            () = stages.copier.outages().probe_while_down() => false,
            () = log_progress(context) => false,
        };
        log_counts(&context.counters.counts(), "drained");
        drained
    }

    fn build_stages(&self) -> Stages {
        let (ledger, context) = (&self.ledger, &self.context);
        Stages {
            run: self.run,
            id_type: self.id_type,
            rule: self.rule.clone(),
            has_dead_letter_queue: self.has_dead_letter_queue,
            row_reader: RowReader::new(Arc::clone(ledger), self.rule.clone(), context),
            copier: Copier::new(Arc::clone(&self.store), &self.rule, context),
            committer: Committer::new(Arc::clone(ledger), context),
            recorder: OutcomeRecorder::new(ledger, context),
            acknowledger: Acknowledger::new(&self.queue),
            deliveries: self.deliveries.clone(),
            context: context.clone(),
        }
    }

    /// Returns the tasks of the messages and those of the receivers.
    fn start_receivers(&self, stages: &Arc<Stages>) -> (TaskTracker, TaskTracker) {
        let (tasks, receivers) = (TaskTracker::new(), TaskTracker::new());
        let receiver = Receiver {
            queue: Arc::clone(&self.queue),
            visibility_timeout: self.visibility_timeout,
            in_hand_limit: InHandLimit::new(self.max_concurrency),
            stages: Arc::clone(stages),
            tasks: tasks.clone(),
            context: self.context.clone(),
        };
        for _ in 0..receiver_count(self.max_concurrency) {
            receivers.spawn(receiver.clone().run());
        }
        (tasks, receivers)
    }
}

/// Logs progress every few seconds, as long as there is any.
async fn log_progress(context: &ConsumerContext) {
    let mut ticks = interval(PROGRESS_LOG_INTERVAL);
    let mut last = ConsumerCounts::default();
    loop {
        ticks.tick().await;
        let counts = context.counters.counts();
        // An outage was logged when it began.
        if context.health.outage().is_none() && counts != last {
            let throttle = &context.throttle;
            let (in_flight, rate_limit) = (throttle.in_flight(), throttle.store_limit());
            let in_hand = context.leases.held_count();
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
