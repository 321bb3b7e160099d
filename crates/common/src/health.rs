//! What a process depends on, and what of that is down: logged once per outage, and over by itself.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ledger::fleet_control::{HEARTBEAT_INTERVAL, WorkerRole};

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
    /// The call for whose success the outage lasts.
    stuck_call: Option<String>,
    last_success: Option<Instant>,
    /// Whether the last heartbeat was not taken.
    missed_heartbeat: bool,
    /// What was logged last, and when.
    logged: Option<(String, Instant)>,
}

/// Where some calls fail and others do not, an outage comes and goes: for so long it is not logged again.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

impl DependencyState {
    fn log_once(&mut self, reason: &str) -> bool {
        let known =
            |(logged, at): &(String, Instant)| logged == reason && at.elapsed() < LOG_INTERVAL;
        let is_new = !self.logged.as_ref().is_some_and(known);
        if is_new {
            self.logged = Some((reason.to_owned(), Instant::now()));
        }
        is_new
    }
}

/// Where the heartbeats get through, the database takes writes: what fails is the run's own.
const HEARTBEATS_MISSED_AFTER: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);

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
        let missed = self.states.states.lock()[Dependency::Database as usize].missed_heartbeat;
        if missed {
            let expected = Instant::now().checked_sub(HEARTBEATS_MISSED_AFTER);
            self.set_down(Dependency::Database, reason, expected);
        }
    }

    /// Whether the ledger took a run's heartbeat.
    pub fn record_heartbeat(&self, is_taken: bool) {
        match &self.process {
            Some(process) if is_taken => process.mark_up(Dependency::Database),
            Some(process) => {
                let mut states = process.states.states.lock();
                states[Dependency::Database as usize].missed_heartbeat = true;
            }
            None => {}
        }
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
        shared.states.lock()[dependency as usize].stuck_call = Some(call.to_owned());
        self.mark_down(dependency, reason);
    }

    pub fn record_success(&self, dependency: Dependency, call: &str) {
        let shared = self.states(dependency);
        let mut states = shared.states.lock();
        states[dependency as usize]
            .stuck_call
            .take_if(|stuck| stuck == call);
        drop(states);
        self.mark_up(dependency);
    }

    pub fn mark_down(&self, dependency: Dependency, reason: &str) {
        self.set_down(dependency, reason, None);
    }

    /// Unless something has succeeded since `since`.
    fn set_down(&self, dependency: Dependency, reason: &str, since: Option<Instant>) {
        let shared = self.states(dependency);
        let mut states = shared.states.lock();
        let state = &mut states[dependency as usize];
        let is_over = since.is_some_and(|since| state.last_success >= Some(since));
        if state.outage.is_some() || is_over {
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
        state.outage = Some(reason);
        shared.changed.notify_waiters();
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
        state.missed_heartbeat = false;
        if state.stuck_call.is_none() && state.outage.take().is_some() {
            let name = dependency.display_name();
            tracing::info!(
                run = self.run.as_deref(),
                "{name} can be used again: going on"
            );
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_no_outage_and_a_late_one_no_second_outage() {
        let health = Health::new(WorkerRole::Feeder);
        let began = Instant::now();
        health.record_failure(Dependency::Database, began, 1, "refused");
        assert_eq!(health.outage(), None);
        health.record_failure(Dependency::Database, began, 2, "refused");
        let outage = health.outage().unwrap_or_default();
        assert!(
            outage.starts_with("the database: refused; check"),
            "{outage}"
        );
        advance(Duration::from_secs(1)).await;
        health.mark_up(Dependency::Database);
        assert_eq!(health.outage(), None);
        health.record_failure(Dependency::Database, began, 9, "refused");
        assert_eq!(health.outage(), None);
        advance(Duration::from_secs(1)).await;
        health.record_failure(Dependency::Database, Instant::now(), 2, "refused");
        assert!(health.outage().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_alone_fails_again_and_again_is_noticed() {
        let health = Health::new(WorkerRole::Feeder);
        let database = Dependency::Database;
        for failures in 1..=3 {
            assert_eq!(health.outage(), None);
            let began = Instant::now();
            health.mark_up(database);
            health.record_call_failure(database, began, failures, ("reading", "locked"));
        }
        health.mark_up(database);
        health.record_success(database, "counting");
        let outage = health.outage().unwrap_or_default();
        assert!(
            outage.starts_with("the database: reading: locked"),
            "{outage}"
        );
        health.record_success(database, "reading");
        assert_eq!(health.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_queue_is_noticed_at_once() {
        let health = Health::new(WorkerRole::Consumer);
        let began = Instant::now();
        advance(Duration::from_secs(1)).await;
        health.record_failure(Dependency::Queue, began, 1, "throttled");
        assert_eq!(health.outage(), None);
        advance(Duration::from_secs(7)).await;
        health.record_failure(Dependency::Queue, began, 1, "no response");
        assert!(health.outage().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn each_dependency_has_its_own_outage() {
        let health = Health::new(WorkerRole::Feeder);
        health.record_failure(Dependency::Queue, Instant::now(), 3, "gone");
        health.mark_up(Dependency::Database);
        let outage = health.outage().unwrap_or_default();
        assert!(outage.contains("sqs:SendMessage"), "{outage}");
        assert!(health.is_up(Dependency::Objects));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_on_when_the_outage_is_over() {
        let health = Health::new(WorkerRole::Consumer);
        health.wait_until_up(Dependency::Objects).await;
        health.mark_down(Dependency::Objects, "denied");
        health.wait_until_down(Dependency::Objects).await;
        let wait = Duration::from_secs(1);
        let waiting = timeout(wait, health.wait_until_up(Dependency::Objects));
        assert!(waiting.await.is_err());
        health.mark_up(Dependency::Objects);
        health.wait_until_up(Dependency::Objects).await;
    }

    #[test]
    fn each_run_has_buckets_of_its_own() {
        let process = Health::new(WorkerRole::Consumer);
        let (one, other) = (process.for_run("one"), process.for_run("other"));
        one.mark_down(Dependency::Objects, "denied");
        assert!(other.outage().is_none() && process.outage().is_none());
        process.mark_down(Dependency::Queue, "gone");
        assert!(!other.is_up(Dependency::Queue) && other.own_outage().is_none());
        assert!(process.outage().is_some() && process.own_outage().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_whose_table_is_closed_holds_up_no_other_while_heartbeats_get_through() {
        let process = Health::new(WorkerRole::Consumer);
        let (one, other) = (process.for_run("one"), process.for_run("other"));
        let fail = || one.record_failure(Dependency::Database, Instant::now(), 2, "locked");
        advance(Duration::from_mins(1)).await;
        other.record_heartbeat(true);
        fail();
        assert!(one.own_outage().is_some() && one.outage().is_some());
        assert!(process.outage().is_none() && other.outage().is_none());
        // In an outage of all nothing gets through.
        advance(HEARTBEATS_MISSED_AFTER * 2).await;
        other.record_heartbeat(false);
        fail();
        assert!(process.outage().is_some() && other.outage().is_some());
        assert!(other.own_outage().is_none());
        other.record_heartbeat(true);
        assert!(process.outage().is_none() && one.outage().is_some());
        one.mark_up(Dependency::Database);
        assert!(one.outage().is_none());
    }
}
