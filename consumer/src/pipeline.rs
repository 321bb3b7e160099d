//! The pipeline: the stages put together over any queue, store and ledger.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bucket_brigade_common::ledger::LedgerError;
use bucket_brigade_common::queue::MessageQueue;
use futures::future::join_all;
use prometheus_client::metrics::counter::Counter;
use tokio::time::interval;
use tokio_util::task::TaskTracker;

use crate::context::ConsumerContext;
use crate::counters::ConsumerCounters;
use crate::fair_slots::FairSlots;
use crate::handle::MessageEnds;
use crate::metrics::ConsumerStatus;
use crate::receive::{Receiver, receiver_count};
use crate::runs::{
    Dispatcher, MAX_CONNECTIONS, RunLoader, RunParts, Runs, deregister, serve_all, serve_run,
};
use crate::shutdown::drain;

/// How often progress is logged.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

pub enum ServedRuns {
    /// One run alone; messages of others are given back.
    One(Box<RunParts>),
    /// Each run of the queue, from its first message on.
    All(Arc<dyn RunLoader>),
}

pub struct Pipeline {
    pub queue: Arc<dyn MessageQueue>,
    pub served: ServedRuns,
    pub runs: Runs,
    /// Of the queue's redrive policy, if it has one.
    pub max_receive_count: Option<u32>,
    pub visibility_timeout: Duration,
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
    ///
    /// # Errors
    /// The only run is gone, which is a stop too.
    pub async fn run(self) -> Result<bool, LedgerError> {
        let (context, runs) = (&self.context, &self.runs);
        let is_run_gone = AtomicBool::default();
        let dispatcher = Arc::new(self.build_dispatcher());
        let receiver = self.build_receiver(&dispatcher);
        let working = async {
            let receivers = start_receivers(&receiver, receiver_count(runs.max_concurrency()));
            context.stop.cancelled().await;
            dispatcher.give_back_parked();
            let (tasks, grace) = (&dispatcher.tasks, self.shutdown_grace);
            drain(&receivers, tasks, &context.give_up, grace).await
        };
        let serving = async {
            serve_runs(self.served, &dispatcher).await;
            is_run_gone.store(true, Ordering::Relaxed);
            context.stop.cancel();
            pending::<()>().await;
        };
        let drained = tokio::select! {
            biased;
            // First: the only run is known before anything is received.
            () = serving => false,
            drained = working => drained,
            () = context.leases.renew_forever(&*self.queue) => false,
            () = log_progress(context, runs) => false,
        };
        log_counts(totals(&context.counters), "drained");
        let served = runs.served();
        join_all(
            served
                .iter()
                .map(|stages| deregister(&*stages.fleet_control)),
        )
        .await;
        if is_run_gone.into_inner() {
            return Err(LedgerError::run_gone());
        }
        Ok(drained)
    }

    fn build_dispatcher(&self) -> Dispatcher {
        let ends = MessageEnds::new(&self.queue, self.max_receive_count, &self.context);
        Dispatcher {
            runs: self.runs.clone(),
            ends: Arc::new(ends),
            tasks: TaskTracker::new(),
            copies: FairSlots::new(self.runs.max_concurrency()),
            statements: FairSlots::new(MAX_CONNECTIONS.into()),
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

async fn serve_runs(served: ServedRuns, dispatcher: &Arc<Dispatcher>) {
    match served {
        ServedRuns::All(loader) => serve_all(dispatcher, loader).await,
        ServedRuns::One(parts) => {
            let stages = dispatcher.build_stages(*parts, false);
            dispatcher.runs.open_only(Arc::clone(&stages));
            serve_run(dispatcher, stages, None).await;
        }
    }
}

/// Logs progress every few seconds, as long as there is any.
async fn log_progress(context: &ConsumerContext, runs: &Runs) {
    let mut ticks = interval(PROGRESS_LOG_INTERVAL);
    let mut last = [0; 5];
    loop {
        ticks.tick().await;
        let counts = totals(&context.counters);
        // An outage was logged when it began.
        if context.health.outage().is_none() && counts != last {
            for stages in runs.served() {
                let (run, throttle) = (stages.run, &stages.context.throttle);
                let (in_flight, rate_limit) = (throttle.in_flight(), throttle.store_limit());
                let in_hand = runs.held_count(run);
                tracing::info!(run, in_hand, in_flight, rate_limit, "at work");
            }
            log_counts(counts, "progress");
        }
        last = counts;
    }
}

fn totals(counters: &ConsumerCounters) -> [u64; 5] {
    let ConsumerCounters {
        moved,
        settled,
        failed,
        poison,
        throttled,
        ..
    } = counters;
    [moved, settled, failed, poison, throttled].map(Counter::get)
}

fn log_counts([moved, settled, failed, poison, throttled]: [u64; 5], what: &str) {
    tracing::info!(moved, settled, failed, poison, throttled, "{what}");
}
