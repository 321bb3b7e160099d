//! What the feeder is doing, for its heartbeat, `/healthz`, `/metrics` and the display.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::http_endpoints::{
    ProcessStatus, Registry, register_counter, register_gauge,
};
use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::ledger::fleet_control::{Heartbeat, WorkerRole};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::throttle::{Throttle, ThrottleReason};
use parking_lot::Mutex;

/// In a row, before the database counts as down.
const FAILED_HEARTBEATS: u32 = 3;

/// What the feeder is doing, and what keeps it from doing it.
#[derive(Debug)]
pub struct FeederProgress {
    state: Mutex<(WorkerState, RunProgress)>,
    /// Pages of the table read.
    pages: AtomicU64,
    fleet_hold: Mutex<Option<String>>,
    /// In a row.
    failed_heartbeats: AtomicU32,
    throttle: Arc<Throttle>,
    health: Health,
}

impl FeederProgress {
    pub fn new(throttle: Arc<Throttle>) -> Self {
        Self {
            state: Mutex::default(),
            pages: AtomicU64::default(),
            fleet_hold: Mutex::default(),
            failed_heartbeats: AtomicU32::default(),
            throttle,
            health: Health::new(WorkerRole::Feeder),
        }
    }

    /// What the feeder does while nothing holds it back.
    pub fn set_phase(&self, phase: WorkerState) {
        self.state.lock().0 = phase;
    }

    pub(crate) fn phase(&self) -> WorkerState {
        self.state.lock().0
    }

    pub(crate) fn count_page(&self) {
        self.pages.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Why nothing in the fleet may start, for the next heartbeat.
    pub(crate) fn set_fleet_hold(&self, hold: Option<String>) {
        *self.fleet_hold.lock() = hold;
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn heartbeat(&self) -> Heartbeat {
        let (state, reason) = self.current_state();
        let commit = self.throttle.commit_latency();
        Heartbeat {
            state,
            reason,
            commit_seconds: commit.map(|took| took.as_secs_f64()),
            held: self.fleet_hold.lock().clone(),
            ..Heartbeat::starting(WorkerRole::Feeder)
        }
    }

    /// A database that takes no writes may be read all the same, and while all is fed nothing else writes.
    pub(crate) fn record_heartbeat(&self, sent: Result<(), &StatementError>) {
        const CALL: &str = "writing a heartbeat";
        let database = Dependency::Database;
        match sent {
            Ok(()) if self.failed_heartbeats.swap(0, Ordering::Relaxed) >= FAILED_HEARTBEATS => {
                self.health.record_success(database, CALL);
            }
            Ok(()) => {}
            Err(error) => {
                let failed = self.failed_heartbeats.fetch_add(1, Ordering::Relaxed) + 1;
                if failed >= FAILED_HEARTBEATS {
                    let reason = format!("{CALL}: {error}");
                    self.health.mark_stuck(database, CALL, &reason);
                }
            }
        }
    }

    fn current_state(&self) -> (WorkerState, String) {
        if let Some(outage) = self.health.outage() {
            return (WorkerState::Waiting, outage);
        }
        match self.throttle.held() {
            Some(reason) => (reason.worker_state(), reason.to_string()),
            None => (self.current_phase(), String::new()),
        }
    }

    fn current_phase(&self) -> WorkerState {
        let is_limit = |reason| matches!(reason, ThrottleReason::FleetLimit { .. });
        match self.state.lock().0 {
            WorkerState::Feeding if self.throttle.reasons().into_iter().any(is_limit) => {
                WorkerState::FeedingAtLimit
            }
            phase => phase,
        }
    }

    pub fn describe_phase(&self) -> Cow<'static, str> {
        if self.health.outage().is_some() {
            return WorkerState::Waiting.as_str().into();
        }
        match self.throttle.held() {
            Some(ThrottleReason::Paused(why)) => format!("paused {why}").into(),
            Some(ThrottleReason::Held(why)) => format!("paused: {why}").into(),
            Some(reason) => reason.worker_state().as_str().into(),
            None => self.current_phase().as_str().into(),
        }
    }

    /// Whether an operator or the database keeps everything from starting.
    pub fn is_held(&self) -> bool {
        self.throttle.held().is_some()
    }

    /// As of the last heartbeat.
    pub fn running_consumers(&self) -> u64 {
        self.throttle.limits().other_consumers
    }

    /// Those of them that something holds back: more consumers would be no faster.
    pub fn held_back_consumers(&self) -> u64 {
        self.throttle.limits().held_back_consumers
    }

    pub fn set_run_progress(&self, progress: RunProgress) {
        self.state.lock().1 = progress;
    }
}

/// The run in numbers, as last read from the ledger. A feeder that waits for consumers is healthy.
impl ProcessStatus for FeederProgress {
    fn unhealthy_reason(&self) -> Option<String> {
        self.health.outage()
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let numbers = self.state.lock().1;
        register_counter(
            registry,
            "bucket_brigade_run_fed",
            "Rows fed, repeats included",
            numbers.fed,
        );
        for (name, help, value) in [
            ("bucket_brigade_run_moved", "Rows moved", numbers.moved),
            (
                "bucket_brigade_run_changed",
                "Rows the application changed after they were fed",
                numbers.changed,
            ),
            (
                "bucket_brigade_run_failed",
                "Rows that could not be moved",
                numbers.failed,
            ),
            (
                "bucket_brigade_run_orphans",
                "Copies without a row",
                numbers.orphans,
            ),
            (
                "bucket_brigade_run_poison",
                "Messages that were not ours",
                numbers.poison,
            ),
        ] {
            register_gauge(registry, name, help, value);
        }
        if let Some(in_scope) = numbers.in_scope {
            let help = "Rows in scope when the run began";
            register_gauge(registry, "bucket_brigade_run_in_scope", help, in_scope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bucket_brigade_common::ledger::fleet_control::FleetLimits;
    use bucket_brigade_common::settings::DatabaseLimits;

    #[tokio::test]
    async fn what_holds_the_feeder_comes_before_what_it_does() {
        let throttle = Arc::new(Throttle::for_rows(DatabaseLimits::default()));
        let progress = FeederProgress::new(Arc::clone(&throttle));
        let state = || {
            let Heartbeat { state, reason, .. } = progress.heartbeat();
            format!("{state}: {reason} ({})", progress.describe_phase())
        };
        assert_eq!(state(), "starting:  (starting)");
        progress.set_phase(WorkerState::Feeding);
        assert_eq!(state(), "feeding:  (feeding)");
        let limited = FleetLimits {
            rate: Some(10.0),
            ..FleetLimits::default()
        };
        throttle.set_limits(limited.clone());
        let at_limit = "feeding at the rate limit:  (feeding at the rate limit)";
        assert_eq!(state(), at_limit);
        let paused = FleetLimits {
            paused: Some("by ana".into()),
            ..limited
        };
        throttle.set_limits(paused);
        assert_eq!(state(), "paused: by ana (paused by ana)");
    }
}
