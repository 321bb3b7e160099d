//! Serving one run: it is taken on with its first message, and dropped when it has had none for a while.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::ledger::fleet_control::FleetControl;
use bucket_brigade_common::retry::Backoff;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::load::HomeRun;
use super::{Dispatcher, RunLoader, RunParts, Runs, STRAYS};
use crate::handle::Stages;
use crate::heartbeat::HeartbeatSource;

/// A run without messages for so long is dropped; its next message takes it on again.
pub const RUN_IDLE_LIMIT: Duration = Duration::from_mins(5);

/// How often a run looks at its messages: parked ones wait for the throttle too.
const PARKED_CHECK_INTERVAL: Duration = Duration::from_millis(100);
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the ledger is asked for other runs, while those that are served wait.
const ACTIVE_RUNS_INTERVAL: Duration = Duration::from_secs(5);

/// How long the ledger's answer holds which run messages without a number are of.
const HOME_RUN_INTERVAL: Duration = Duration::from_secs(1);

const LOAD_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_mins(1),
};

/// How long the last statement of a run may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_millis(300);

/// What serves the runs of one consumer.
struct RunServer {
    loader: Arc<dyn RunLoader>,
    dispatcher: Arc<Dispatcher>,
}

enum LoadOutcome {
    Checked(Box<RunParts>),
    /// It is not in the ledger.
    Unknown,
    /// It has no messages any more, or the process is to stop.
    Over,
}

/// Serves each run of the queue, from its first message on.
pub(crate) async fn serve_all(dispatcher: &Arc<Dispatcher>, loader: Arc<dyn RunLoader>) {
    let runs = &dispatcher.runs;
    let server = Arc::new(RunServer {
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
    tokio::join!(serving, poll_for_active_runs(&*loader, runs));
}

/// While some runs wait it is the ledger that knows whether others may have messages.
async fn poll_for_active_runs(loader: &dyn RunLoader, runs: &Runs) {
    loop {
        sleep(ACTIVE_RUNS_INTERVAL).await;
        let is_any_waiting = !runs.0.table.lock().waiting_runs().is_empty();
        let active = if is_any_waiting {
            loader.list_active_runs().await
        } else {
            Vec::new()
        };
        runs.set_active_runs(active);
    }
}

impl RunServer {
    /// Serves a run of which a message was received, until it is idle.
    async fn serve(self: Arc<Self>, run: i64) {
        if run == STRAYS {
            return self.forward_strays(STRAYS).await;
        }
        match self.load(run).await {
            LoadOutcome::Checked(parts) => {
                let stages = self.dispatcher.build_stages(*parts, true);
                self.dispatcher.runs.open(run, Arc::clone(&stages));
                serve_run(&self.dispatcher, stages, Some(RUN_IDLE_LIMIT)).await;
            }
            LoadOutcome::Unknown => self.forward_strays(run).await,
            LoadOutcome::Over => {}
        }
    }

    /// Tries until the run passes its checks, or has no messages any more.
    async fn load(&self, run: i64) -> LoadOutcome {
        let (runs, context) = (&self.dispatcher.runs, &self.dispatcher.context);
        let mut failures = 0;
        while !context.stop.is_cancelled() {
            let loading = async {
                tokio::select! {
                    loaded = self.loader.load(run) => loaded,
                    () = context.give_up.cancelled() => Ok(None),
                }
            };
            // A stop waits for it: what the probe puts under the destination prefix it removes.
            let reason = match self.dispatcher.tasks.track_future(loading).await {
                Ok(Some(parts)) => return LoadOutcome::Checked(parts),
                _ if context.stop.is_cancelled() => break,
                Ok(None) => return LoadOutcome::Unknown,
                Err(reason) => reason,
            };
            failures += 1;
            if runs.set_load_error(run, &reason) {
                tracing::error!(
                    run,
                    reason,
                    "run {run} cannot be served: {reason}. Its messages are kept, and it is tried again"
                );
            }
            sleep(LOAD_BACKOFF.jittered_delay(failures, fastrand::f64())).await;
            runs.0.table.lock().drop_lost_messages();
            if runs.close_if_idle(run, RUN_IDLE_LIMIT) {
                break;
            }
        }
        LoadOutcome::Over
    }

    /// The ledger's answer holds for a moment; not that about a run with a number, which may be opened at any time.
    async fn home_run(
        &self,
        from: i64,
        known: &mut Option<(HomeRun, Instant)>,
    ) -> Result<Option<HomeRun>, String> {
        if let Some((home, at)) = known
            && at.elapsed() < HOME_RUN_INTERVAL
        {
            return Ok(Some(*home));
        }
        let home = self.loader.home_run(from).await?;
        *known = home
            .filter(|_| from == STRAYS)
            .map(|home| (home, Instant::now()));
        Ok(home)
    }

    /// Hands messages of no known run to the run that may be meant, or that records them as poison.
    async fn forward_strays(&self, from: i64) {
        let runs = &self.dispatcher.runs;
        let changed = runs.changes(from);
        let mut failures = 0;
        let mut known = None;
        let idle_limit = match from {
            STRAYS => HOME_RUN_INTERVAL,
            _ => Duration::ZERO,
        };
        while !runs.close_if_idle(from, idle_limit) {
            if runs.parked_count(from) == 0 {
                drop(timeout(IDLE_CHECK_INTERVAL, changed.notified()).await);
                continue;
            }
            match self.home_run(from, &mut known).await {
                // A feeder has just opened it.
                Ok(None) => return runs.reload(from),
                Ok(Some(home)) => {
                    let is_stray = from != STRAYS || !home.is_only;
                    runs.forward_parked(from, home.run, is_stray);
                    failures = 0;
                }
                Err(reason) => {
                    failures += 1;
                    if runs.set_load_error(from, &reason) {
                        tracing::warn!(reason, "messages without a run wait: {reason}");
                    }
                    sleep(LOAD_BACKOFF.jittered_delay(failures, fastrand::f64())).await;
                }
            }
        }
    }
}

/// Serves a run that has passed its checks, until the ledger has it no more, or it has been idle for so long. One that
/// is the only run ends its process then, which comes back with what the ledger has.
pub(crate) async fn serve_run(
    dispatcher: &Dispatcher,
    stages: Arc<Stages>,
    idle_limit: Option<Duration>,
) {
    let mut source = HeartbeatSource::new(Arc::clone(&stages), dispatcher.runs.clone());
    let control = Arc::clone(&stages.fleet_control);
    let (throttle, health) = (&stages.context.throttle, &stages.context.health);
    let report = |sent: Result<(), &_>| health.record_heartbeat(sent);
    let heartbeats = send_heartbeats(&*control, throttle, || source.current(), report);
    tokio::select! {
        biased;
        () = heartbeats => {
            let end = if idle_limit.is_some() { "taken on anew" } else { "gone" };
            tracing::warn!(run = stages.run, "the ledger was made anew, or restored: run {} is {end}", stages.run);
            dispatcher.runs.reload(stages.run);
        }
        () = stages.copier.outages().probe_while_down() => {}
        () = start_parked_messages(dispatcher, stages.run, idle_limit) => {
            tracing::info!(run = stages.run, "run {} has been idle for a while: dropped", stages.run);
            deregister(&*control).await;
        }
    }
}

/// Without it the other processes see within seconds that this one has ended.
pub(crate) async fn deregister(control: &dyn FleetControl) {
    drop(timeout(DEREGISTER_TIMEOUT, control.deregister()).await);
}

async fn start_parked_messages(dispatcher: &Dispatcher, run: i64, idle_limit: Option<Duration>) {
    let (runs, health) = (&dispatcher.runs, &dispatcher.context.health);
    let changed = runs.changes(run);
    // Whether it has messages is not known while none can be received; and its heartbeat may be all that tells the end
    // of the database's outage.
    let receives = || health.is_up(Dependency::Queue) && health.is_up(Dependency::Database);
    let is_over = |limit| receives() && runs.close_if_idle(run, limit);
    while !idle_limit.is_some_and(is_over) {
        runs.update_allowances();
        for leased in runs
            .0
            .table
            .lock()
            .take_for_others(run, dispatcher.ends.max_receive_count)
        {
            dispatcher.release(leased, Duration::ZERO);
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
