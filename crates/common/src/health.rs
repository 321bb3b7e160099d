//! What a process depends on, and what of that is down: logged once per outage, and over by itself.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ledger::NO_CONNECTION;
use crate::ledger::fleet_control::{HEARTBEAT_INTERVAL, WorkerRole};
use crate::ledger::move_ledger::StatementError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    Database,
    Queue,
    Objects,
}

const DEPENDENCIES: [Dependency; 3] =
    [Dependency::Database, Dependency::Queue, Dependency::Objects];

impl Dependency {
    fn display_name(self) -> &'static str {
        match self {
            Self::Database => "the database",
            Self::Queue => "the queue",
            Self::Objects => "S3",
        }
    }

    /// What to do; for S3 it depends on the error, and its reason says it.
    fn advice(self, role: WorkerRole) -> &'static str {
        match (self, role) {
            (Self::Database, _) => {
                "; check the database, DATABASE_URL or PGHOST, PGUSER, …, and the network"
            }
            (Self::Queue, WorkerRole::Feeder) => {
                "; check QUEUE_URL, the queue, and the feeder's policy: sqs:SendMessage, sqs:GetQueueAttributes"
            }
            (Self::Queue, WorkerRole::Consumer) => {
                "; check QUEUE_URL, the queue, and the consumer's policy: sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility, sqs:GetQueueAttributes"
            }
            (Self::Objects, _) | (Self::Queue, WorkerRole::Command(_)) => "",
        }
    }

    /// Failures in a row before the dependency counts as down: a deadlock, a cut connection or a
    /// throttled batch is no outage. A call to a database that is down fails only after seconds.
    fn tolerated_failures(self) -> u32 {
        match self {
            Self::Database => 1,
            Self::Queue | Self::Objects => 2,
        }
    }
}

/// A request to the queue that failed only after that long met silence: once is enough.
const SILENCE: Duration = Duration::from_secs(5);

/// Failures in a row after which a call is stuck, although others succeed: its table is locked, or a right is gone.
const STUCK_CALLS: u32 = 3;

#[derive(Debug, Default)]
struct DependencyState {
    outage: Option<String>,
    /// Whether a heartbeat says why there is no connection.
    is_explained: bool,
    /// The calls for whose success the outage lasts.
    stuck_calls: BTreeSet<String>,
    last_success: Option<Instant>,
    /// Since when no heartbeat was taken.
    heartbeats_missed_since: Option<Instant>,
    /// Whether the log says that there is an outage.
    is_logged: bool,
    /// What was logged lately, and when it was met last.
    logged: Vec<(String, Instant)>,
}

/// Where some calls fail and others do not, an outage comes and goes: a reason that was not met for so long is logged
/// again.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// How many reasons are logged in that time.
const MAX_LOGGED: usize = 3;

impl DependencyState {
    fn log_once(&mut self, reason: &str) -> bool {
        let now = Instant::now();
        self.logged.retain(|(_, at)| now - *at < LOG_INTERVAL);
        if let Some((_, at)) = self.logged.iter_mut().find(|(logged, _)| logged == reason) {
            *at = now;
            return false;
        }
        let is_new = self.logged.len() < MAX_LOGGED;
        if is_new {
            self.logged.push((reason.to_owned(), now));
        }
        is_new
    }
}

/// Where the heartbeats get through, the database takes writes: what fails is the run's own.
const HEARTBEATS_MISSED_AFTER: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);

/// Without one for so long the database is down, although nothing else was asked of it.
const HEARTBEATS_MISSED_TOO_LONG: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Health {
    role: WorkerRole,
    /// Named where the process serves several.
    run: Option<Arc<str>>,
    /// That of the process, where this is one of its runs.
    process: Option<Arc<Health>>,
    states: Arc<DependencyStates>,
}

#[derive(Debug, Default)]
struct DependencyStates {
    states: Mutex<[DependencyState; 3]>,
    /// Wakes in the order of waiting, as no watch channel does.
    changed: Notify,
}

impl Health {
    pub fn new(role: WorkerRole) -> Self {
        Self {
            role,
            run: None,
            process: None,
            states: Arc::default(),
        }
    }

    /// The health of one run of several: the queue is the same, its buckets are its own. The database is that of all,
    /// but its table may be locked, or closed to us.
    #[must_use]
    pub fn for_run(&self, run: &str) -> Self {
        Self {
            role: self.role,
            run: Some(run.into()),
            process: Some(Arc::new(self.clone())),
            states: Arc::default(),
        }
    }

    fn states(&self, dependency: Dependency) -> &DependencyStates {
        match (&self.process, dependency) {
            (Some(process), Dependency::Queue) => &process.states,
            _ => &self.states,
        }
    }

    /// A call that began at `began` failed for the `failures`th time in a row.
    pub fn record_failure(
        &self,
        dependency: Dependency,
        began: Instant,
        failures: u32,
        reason: &str,
    ) {
        let was_silent = dependency == Dependency::Queue && began.elapsed() >= SILENCE;
        if failures <= dependency.tolerated_failures() && !was_silent {
            return;
        }
        // Another call may have succeeded since: the outage is over, and this call was part of it.
        self.set_down(dependency, reason, Some(began));
        if let (Some(process), Dependency::Database) = (&self.process, dependency) {
            process.set_database_down(reason);
        }
    }

    fn set_database_down(&self, reason: &str) {
        let states = self.states.states.lock();
        let missed = states[Dependency::Database as usize].heartbeats_missed_since;
        drop(states);
        if missed.is_some() {
            let expected = Instant::now().checked_sub(HEARTBEATS_MISSED_AFTER);
            self.set_down(Dependency::Database, reason, expected);
        }
    }

    /// Whether the ledger took a run's heartbeat. Where calls find no connection it alone knows why.
    pub fn record_heartbeat(&self, sent: Result<(), &StatementError>) {
        let database = Dependency::Database;
        let health = self.process.as_deref().unwrap_or(self);
        match sent {
            Ok(()) if self.process.is_some() => health.mark_up(database),
            Ok(()) => health.states.states.lock()[database as usize].heartbeats_missed_since = None,
            Err(error) => {
                let missed = health.count_missed_heartbeat();
                // A consumer with nothing in hand asks the database nothing else.
                let is_only_sign = self.process.is_some() && missed >= HEARTBEATS_MISSED_TOO_LONG;
                if let StatementError::Unavailable(reason) = error
                    && (is_only_sign || health.needs_explanation())
                {
                    health.mark_down(database, reason);
                    health.states.states.lock()[database as usize].is_explained = true;
                }
                // It answers, and what has been wrong with it is over.
                if let (StatementError::Rejected { .. }, Some(_)) = (error, &self.process) {
                    health.mark_up(database);
                }
            }
        }
    }

    fn needs_explanation(&self) -> bool {
        let state = &self.states.states.lock()[Dependency::Database as usize];
        let outage = state.outage.as_deref();
        outage.is_some_and(|outage| state.is_explained || outage.contains(NO_CONNECTION))
    }

    /// For how long none was taken.
    fn count_missed_heartbeat(&self) -> Duration {
        let mut states = self.states.states.lock();
        let since = &mut states[Dependency::Database as usize].heartbeats_missed_since;
        since.get_or_insert_with(Instant::now).elapsed()
    }

    /// The same of a call that is made until it succeeds, and then told to [`Self::record_success`].
    pub fn record_call_failure(
        &self,
        dependency: Dependency,
        began: Instant,
        failures: u32,
        (call, error): (&str, &str),
    ) {
        let reason = format!("{call}: {error}");
        if failures < STUCK_CALLS {
            self.record_failure(dependency, began, failures, &reason);
            return;
        }
        self.mark_stuck(dependency, call, &reason);
    }

    /// Until [`Self::record_success`] hears of the call.
    pub fn mark_stuck(&self, dependency: Dependency, call: &str, reason: &str) {
        let shared = self.states(dependency);
        shared.states.lock()[dependency as usize]
            .stuck_calls
            .insert(call.to_owned());
        self.mark_down(dependency, reason);
    }

    pub fn record_success(&self, dependency: Dependency, call: &str) {
        let shared = self.states(dependency);
        let mut states = shared.states.lock();
        states[dependency as usize].stuck_calls.remove(call);
        drop(states);
        self.mark_up(dependency);
    }

    pub fn mark_down(&self, dependency: Dependency, reason: &str) {
        self.set_down(dependency, reason, None);
    }

    /// Unless something has succeeded since `since`, or more is known already.
    fn set_down(&self, dependency: Dependency, reason: &str, since: Option<Instant>) {
        let shared = self.states(dependency);
        let mut states = shared.states.lock();
        let state = &mut states[dependency as usize];
        let is_over = since.is_some_and(|since| state.last_success >= Some(since));
        let is_explained = state.is_explained && reason.contains(NO_CONNECTION);
        if is_over || is_explained {
            return;
        }
        let (name, advice) = (dependency.display_name(), self.advice(dependency));
        let lines = reason.lines().filter(|line| !line.trim().is_empty());
        let reason = format!("{}{advice}", lines.collect::<Vec<_>>().join(" "));
        let is_new = state.log_once(&reason);
        match (self.role, &self.run) {
            _ if !is_new => tracing::debug!(reason, "{name} cannot be used again"),
            (WorkerRole::Feeder, _) => {
                tracing::error!(reason, "{name} cannot be used: feeding waits until it can");
            }
            (WorkerRole::Consumer, Some(run)) if dependency != Dependency::Queue => {
                tracing::error!(
                    run = &**run,
                    reason,
                    "{name} cannot be used for run '{run}': its messages are kept until it can, others go on"
                );
            }
            (WorkerRole::Command(_), _) => {
                tracing::error!(
                    reason,
                    "{name} cannot be used: the command waits until it can"
                );
            }
            (WorkerRole::Consumer, _) => tracing::error!(
                reason,
                "{name} cannot be used: receiving stops until it can; what is in hand is kept"
            ),
        }
        state.is_explained = false;
        state.is_logged |= is_new;
        if state.outage.replace(reason).is_none() {
            shared.changed.notify_waiters();
        }
    }

    fn advice(&self, dependency: Dependency) -> &'static str {
        match (&self.process, dependency) {
            (Some(_), Dependency::Database) => {
                "; check the database, and the run's table: its locks, rights, policies and rules"
            }
            _ => dependency.advice(self.role),
        }
    }

    pub fn mark_up(&self, dependency: Dependency) {
        let shared = self.states(dependency);
        let mut states = shared.states.lock();
        let state = &mut states[dependency as usize];
        state.last_success = Some(Instant::now());
        state.heartbeats_missed_since = None;
        state.is_explained &= !state.stuck_calls.is_empty();
        if state.stuck_calls.is_empty() && state.outage.take().is_some() {
            let (name, run) = (dependency.display_name(), self.run.as_deref());
            if mem::take(&mut state.is_logged) {
                tracing::info!(run, "{name} can be used again: going on");
            } else {
                tracing::debug!(run, "{name} can be used again");
            }
            shared.changed.notify_waiters();
        }
        drop(states);
        if let (Some(process), Dependency::Database) = (&self.process, dependency) {
            process.mark_up(dependency);
        }
    }

    pub fn is_up(&self, dependency: Dependency) -> bool {
        let states = self.states(dependency).states.lock();
        states[dependency as usize].outage.is_none()
    }

    /// What is down, and why; none when all is well.
    pub fn outage(&self) -> Option<String> {
        let process = || self.process.as_ref()?.outage();
        self.find_outage(&DEPENDENCIES).or_else(process)
    }

    /// The same of what is the run's own. The queue, and the database of a process with one run, are probed by
    /// receiving: they hold back no run.
    pub fn own_outage(&self) -> Option<String> {
        let own: &[_] = match self.process {
            Some(_) => &[Dependency::Database, Dependency::Objects],
            None => &[Dependency::Objects],
        };
        self.find_outage(own)
    }

    fn find_outage(&self, dependencies: &[Dependency]) -> Option<String> {
        let states = self.states.states.lock();
        dependencies.iter().find_map(|dependency| {
            let reason = states[*dependency as usize].outage.as_ref()?;
            Some(format!("{}: {reason}", dependency.display_name()))
        })
    }

    pub async fn wait_until_up(&self, dependency: Dependency) {
        self.wait_for(dependency, true).await;
    }

    pub async fn wait_until_down(&self, dependency: Dependency) {
        self.wait_for(dependency, false).await;
    }

    async fn wait_for(&self, dependency: Dependency, is_up: bool) {
        while self.is_up(dependency) != is_up {
            let mut changed = pin!(self.states(dependency).changed.notified());
            // What changes from here on wakes it.
            changed.as_mut().enable();
            if self.is_up(dependency) != is_up {
                changed.await;
            }
        }
    }
}
