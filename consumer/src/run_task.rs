//! Serving one run: it is taken on with its first message, and dropped when it has had none for a while.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::ledger::fleet_control::FleetControl;
use bucket_brigade_common::retry::Backoff;
use tokio::time::{sleep, timeout};

use crate::dispatch::Dispatcher;
use crate::handle::Stages;
use crate::heartbeat::HeartbeatSource;
use crate::run_loader::RunLoader;
use crate::runs::{Runs, STRAYS};

/// A run without messages for so long is dropped; its next message takes it on again.
pub const RUN_IDLE_LIMIT: Duration = Duration::from_mins(5);

/// How often a run looks at its messages: parked ones wait for the throttle too.
const PARKED_CHECK_INTERVAL: Duration = Duration::from_millis(100);
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

const LOAD_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_mins(1),
};

/// How long the last statement of a run may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_millis(300);

/// What serves the runs of one consumer.
pub struct RunServer {
    pub runs: Runs,
    pub loader: Arc<dyn RunLoader>,
    pub dispatcher: Arc<Dispatcher>,
}

enum LoadOutcome {
    Checked(Arc<Stages>),
    /// It is not in the ledger.
    Unknown,
    /// It has no messages any more.
    Idle,
}

impl RunServer {
    /// Serves a run of which a message was received, until it is idle.
    pub async fn serve(self: Arc<Self>, run: i64) {
        if run == STRAYS {
            return self.forward_strays(STRAYS).await;
        }
        match self.load(run).await {
            LoadOutcome::Checked(stages) => {
                self.runs.open(run, Arc::clone(&stages));
                serve_run(&self.dispatcher, stages, Some(RUN_IDLE_LIMIT)).await;
            }
            LoadOutcome::Unknown => self.forward_strays(run).await,
            LoadOutcome::Idle => {}
        }
    }

    /// Tries until the run passes its checks, or has no messages any more.
    async fn load(&self, run: i64) -> LoadOutcome {
        for tries in 1.. {
            let reason = match self.loader.load(run).await {
                Ok(Some(parts)) => {
                    return LoadOutcome::Checked(self.dispatcher.build_stages(*parts));
                }
                Ok(None) => return LoadOutcome::Unknown,
                Err(reason) => reason,
            };
            if self.runs.set_load_error(run, &reason) {
                tracing::error!(
                    run,
                    reason,
                    "run {run} cannot be served: {reason}. Its messages are kept, and it is tried again"
                );
            }
            sleep(LOAD_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
            self.runs.drop_lost_messages();
            if self.runs.close_if_idle(run, RUN_IDLE_LIMIT) {
                break;
            }
        }
        LoadOutcome::Idle
    }

    /// Hands messages of no known run to the run that may be meant, or that records them as poison.
    async fn forward_strays(&self, from: i64) {
        let changed = self.runs.changes(from);
        let mut failures = 0;
        while !self.runs.close_if_idle(from, Duration::ZERO) {
            if self.runs.parked_count(from) == 0 {
                drop(timeout(IDLE_CHECK_INTERVAL, changed.notified()).await);
                continue;
            }
            match self.loader.home_run().await {
                Ok(home) => {
                    let is_stray = from != STRAYS || !home.is_only;
                    self.runs.forward_parked(from, home.run, is_stray);
                    failures = 0;
                }
                Err(reason) => {
                    failures += 1;
                    if self.runs.set_load_error(from, &reason) {
                        tracing::warn!(reason, "messages without a run wait: {reason}");
                    }
                    sleep(LOAD_BACKOFF.jittered_delay(failures, fastrand::f64())).await;
                }
            }
        }
    }
}

/// Serves a run that has passed its checks; forever, or until it has been idle for so long.
pub async fn serve_run(dispatcher: &Dispatcher, stages: Arc<Stages>, idle_limit: Option<Duration>) {
    let mut source = HeartbeatSource::new(Arc::clone(&stages), dispatcher.runs.clone());
    let control = Arc::clone(&stages.fleet_control);
    let heartbeats = send_heartbeats(&*control, &stages.context.throttle, || source.current());
    tokio::select! {
        biased;
        () = heartbeats => {}
        () = stages.copier.outages().probe_while_down() => {}
        () = start_parked_messages(dispatcher, &stages, idle_limit) => {
            tracing::info!(run = stages.run, "run {} has been idle for a while: dropped", stages.run);
            deregister(&*control).await;
        }
    }
}

/// Without it the other processes see within seconds that this one has ended.
pub async fn deregister(control: &dyn FleetControl) {
    drop(timeout(DEREGISTER_TIMEOUT, control.deregister()).await);
}

async fn start_parked_messages(
    dispatcher: &Dispatcher,
    stages: &Stages,
    idle_limit: Option<Duration>,
) {
    let (runs, run) = (&dispatcher.runs, stages.run);
    let changed = runs.changes(run);
    while !idle_limit.is_some_and(|limit| runs.close_if_idle(run, limit)) {
        if stages.context.throttle.is_excluded() {
            for leased in runs.take_parked(run) {
                dispatcher.give_back_later(leased);
            }
        }
        while let Some((stages, leased, in_hand)) = runs.next_parked(run) {
            dispatcher.spawn_handler(stages, leased, in_hand);
        }
        let interval = match runs.parked_count(run) {
            0 => IDLE_CHECK_INTERVAL,
            _ => PARKED_CHECK_INTERVAL,
        };
        drop(timeout(interval, changed.notified()).await);
    }
}
