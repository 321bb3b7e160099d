//! The pipeline: the stages put together over any queue, store and ledger.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::queue::MessageQueue;
use futures::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_util::task::TaskTracker;

use crate::context::ConsumerContext;
use crate::counters::ConsumerCounts;
use crate::dispatch::Dispatcher;
use crate::handle::{MessageEnds, Stages};
use crate::metrics::ConsumerStatus;
use crate::receive::{Receiver, receiver_count};
use crate::run_loader::{RunLoader, RunParts};
use crate::run_task::{RunServer, deregister, serve_run};
use crate::runs::Runs;
use crate::shutdown::{ShutdownDeadlines, drain};

/// How often progress is logged.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How often the ledger is asked for other runs, while those that are served wait.
const OTHER_WORK_INTERVAL: Duration = Duration::from_secs(5);

/// What a consumer serves.
pub enum ServedRuns {
    /// One run alone; messages of others are given back.
    One(Box<RunParts>),
    /// Each run of the queue, from its first message on.
    All(Arc<dyn RunLoader>),
}

/// What a consumer works on.
pub struct Pipeline {
    pub queue: Arc<dyn MessageQueue>,
    pub served: ServedRuns,
    pub runs: Runs,
    /// Whether the queue has a redrive policy.
    pub has_dead_letter_queue: bool,
    /// Copies in flight at most, of each run.
    pub max_concurrency: usize,
    /// How long a message is hidden at a time.
    pub visibility_timeout: Duration,
    /// From the stop to the end.
    pub shutdown_grace: Duration,
    pub context: ConsumerContext,
}

impl Pipeline {
    pub fn status(&self) -> ConsumerStatus {
        ConsumerStatus {
            context: self.context.clone(),
            runs: self.runs.clone(),
        }
    }

    /// Consumes until the stop, then drains within the grace period. True when everything in hand was
    /// finished or released.
    pub async fn run(self) -> bool {
        let (context, runs) = (&self.context, &self.runs);
        let dispatcher = Arc::new(self.build_dispatcher());
        let receiver = self.build_receiver(&dispatcher);
        let served = open_only_run(self.served, &dispatcher);
        let receivers = start_receivers(&receiver, receiver_count(self.max_concurrency));
        let working = async {
            context.stop.cancelled().await;
            let deadlines = ShutdownDeadlines::from_now(self.shutdown_grace);
            dispatcher.give_back_parked();
            drain(&receivers, &dispatcher.tasks, &context.give_up, deadlines).await
        };
        let drained = tokio::select! {
            biased;
            drained = working => drained,
            () = context.leases.renew_forever(&*self.queue) => false,
            () = serve_runs(served, &dispatcher) => false,
            () = log_progress(context, runs) => false,
        };
        log_counts(&context.counters.counts(), "drained");
        let served = runs.served();
        join_all(
            served
                .iter()
                .map(|stages| deregister(&*stages.fleet_control)),
        )
        .await;
        drained
    }

    fn build_dispatcher(&self) -> Dispatcher {
        let ends = MessageEnds::new(&self.queue, self.has_dead_letter_queue);
        Dispatcher {
            runs: self.runs.clone(),
            ends: Arc::new(ends),
            tasks: TaskTracker::new(),
            context: self.context.clone(),
        }
    }

    fn build_receiver(&self, dispatcher: &Arc<Dispatcher>) -> Receiver {
        Receiver {
            queue: Arc::clone(&self.queue),
            visibility_timeout: self.visibility_timeout,
            dispatcher: Arc::clone(dispatcher),
            context: self.context.clone(),
        }
    }
}

fn start_receivers(receiver: &Receiver, count: usize) -> TaskTracker {
    let receivers = TaskTracker::new();
    for _ in 0..count {
        receivers.spawn(receiver.clone().run());
    }
    receivers
}

/// The only run's stages, or the loader of all.
type Served = Result<Arc<Stages>, Arc<dyn RunLoader>>;

fn open_only_run(served: ServedRuns, dispatcher: &Dispatcher) -> Served {
    match served {
        ServedRuns::All(loader) => Err(loader),
        ServedRuns::One(parts) => {
            let stages = dispatcher.build_only(*parts);
            dispatcher.runs.open_only(Arc::clone(&stages));
            Ok(stages)
        }
    }
}

async fn serve_runs(served: Served, dispatcher: &Arc<Dispatcher>) {
    let loader = match served {
        Ok(only) => return serve_run(dispatcher, only, None).await,
        Err(loader) => loader,
    };
    let runs = &dispatcher.runs;
    let server = Arc::new(RunServer {
        runs: runs.clone(),
        loader: Arc::clone(&loader),
        dispatcher: Arc::clone(dispatcher),
    });
    // They end with this future.
    let mut tasks = JoinSet::new();
    let serving = async {
        loop {
            let run = runs.next_new_run().await;
            tasks.spawn(Arc::clone(&server).serve(run));
            while tasks.try_join_next().is_some() {}
        }
    };
    tokio::join!(serving, look_for_other_work(&*loader, runs));
}

/// While some runs wait it is the ledger that knows whether others may have messages.
async fn look_for_other_work(loader: &dyn RunLoader, runs: &Runs) {
    let mut had_other_work = false;
    loop {
        sleep(OTHER_WORK_INTERVAL).await;
        let waiting = runs.waiting_runs();
        let has_other_work = !waiting.is_empty() && loader.has_other_work(&waiting).await;
        if has_other_work != had_other_work {
            runs.set_other_work(has_other_work);
            had_other_work = has_other_work;
        }
    }
}

/// Logs progress every few seconds, as long as there is any.
async fn log_progress(context: &ConsumerContext, runs: &Runs) {
    let mut ticks = interval(PROGRESS_LOG_INTERVAL);
    let mut last = ConsumerCounts::default();
    loop {
        ticks.tick().await;
        let counts = context.counters.counts();
        // An outage was logged when it began.
        if context.health.outage().is_none() && counts != last {
            for stages in runs.served() {
                let (run, throttle) = (stages.run, &stages.context.throttle);
                let (in_flight, rate_limit) = (throttle.in_flight(), throttle.store_limit());
                let in_hand = runs.held_count(run);
                tracing::info!(run, in_hand, in_flight, rate_limit, "at work");
            }
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
