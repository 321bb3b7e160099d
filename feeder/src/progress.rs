//! Progress for people: a bar with rate and ETA on a terminal, a log line every few seconds elsewhere.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket_brigade_common::feed_source::{self, FeedSource};
use bucket_brigade_common::fleet_control::{Heartbeat, WorkerRole};
use bucket_brigade_common::http_endpoints::{
    ProcessStatus, Registry, register_counter, register_gauge,
};
use bucket_brigade_common::throttle::{RateMeter, Throttle, ThrottleReason};
use bucket_brigade_common::worker_state::WorkerState;
use bucket_brigade_operator::progress_bar::stderr_bar;
use indicatif::ProgressBar;
use tokio::time::{Instant, interval};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::health::{Dependency, Health};

/// How often the bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_secs(1);

/// How often a line is logged where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Over how long the rate is taken.
const RATE_WINDOW: Duration = Duration::from_mins(1);

/// Where progress is shown.
#[derive(Clone)]
pub struct ProgressDisplay(Option<ProgressBar>);

/// What the feeder is doing, and what keeps it from doing it.
#[derive(Debug)]
pub struct FeederProgress {
    state: Mutex<(WorkerState, feed_source::RunProgress)>,
    throttle: Arc<Throttle>,
    health: Health,
}

impl FeederProgress {
    pub fn new(throttle: Arc<Throttle>) -> Self {
        Self {
            state: Mutex::default(),
            throttle,
            health: Health::default(),
        }
    }

    /// Says what the feeder does while nothing holds it back.
    pub fn set_phase(&self, phase: WorkerState) {
        self.lock_state().0 = phase;
    }

    /// What is down.
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
            ..Heartbeat::starting(WorkerRole::Feeder)
        }
    }

    fn current_state(&self) -> (WorkerState, String) {
        if let Some(trouble) = self.health.trouble() {
            return (WorkerState::Waiting, trouble);
        }
        match self.throttle.held() {
            Some(reason) => (reason.worker_state(), reason.to_string()),
            None => (self.current_phase(), String::new()),
        }
    }

    fn current_phase(&self) -> WorkerState {
        let is_limit = |reason| matches!(reason, ThrottleReason::FleetLimit { .. });
        match self.lock_state().0 {
            WorkerState::Feeding if self.throttle.reasons().into_iter().any(is_limit) => {
                WorkerState::FeedingAtLimit
            }
            phase => phase,
        }
    }

    /// What the feeder is doing, for people.
    fn describe_phase(&self) -> &'static str {
        match self.throttle.held() {
            Some(ThrottleReason::Paused(_)) => "paused by an operator",
            Some(reason) => reason.worker_state().as_str(),
            None => self.current_phase().as_str(),
        }
    }

    fn set_run_progress(&self, numbers: feed_source::RunProgress) {
        self.lock_state().1 = numbers;
    }

    fn lock_state(&self) -> MutexGuard<'_, (WorkerState, feed_source::RunProgress)> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The run in numbers, as of the last look at the ledger. A feeder that waits for consumers is well.
impl ProcessStatus for FeederProgress {
    fn unhealthy_reason(&self) -> Option<String> {
        self.health.trouble()
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let numbers = self.lock_state().1;
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
                "Copies that lost their row",
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

impl ProgressDisplay {
    /// A bar on a terminal, log lines elsewhere.
    pub fn on_stderr() -> Self {
        Self(stderr_bar("{wide_bar} {pos}/{len} {msg}", None))
    }

    /// A writer for logs that does not tear the bar.
    pub fn log_writer(&self) -> BoxMakeWriter {
        match self.0.clone() {
            None => BoxMakeWriter::new(std::io::stderr),
            Some(bar) => BoxMakeWriter::new(move || AboveBarWriter(bar.clone())),
        }
    }

    /// Shows progress for as long as it is polled. Costs the database one sum over processes a time.
    pub async fn refresh_forever(&self, scope: &dyn FeedSource, progress: &FeederProgress) {
        let mut ticks = interval(if self.0.is_some() {
            DRAW_INTERVAL
        } else {
            LOG_INTERVAL
        });
        let mut rate = RateMeter::new(RATE_WINDOW, Instant::now());
        // A feeder that watches, or waits for the queue, asks the database nothing else for a while.
        let mut failures = 0;
        loop {
            ticks.tick().await;
            let began = Instant::now();
            let numbers = match scope.run_progress().await {
                Ok(numbers) => numbers,
                Err(error) => {
                    failures += 1;
                    let reason = format!("reading progress: {error}");
                    let database = Dependency::Database;
                    progress.health.failed(database, began, failures, &reason);
                    continue;
                }
            };
            failures = 0;
            progress.health.answered(Dependency::Database);
            progress.set_run_progress(numbers);
            let per_second = rate.record_total(numbers.accounted_rows(), Instant::now());
            self.render_progress(&numbers, per_second, progress.describe_phase());
        }
    }

    fn render_progress(&self, numbers: &feed_source::RunProgress, per_second: f64, phase: &str) {
        let eta = numbers.format_eta(per_second);
        let feed_source::RunProgress {
            in_scope,
            fed,
            moved,
            changed,
            failed,
            ..
        } = *numbers;
        if let Some(bar) = &self.0 {
            if let Some(total) = in_scope {
                bar.set_length(total.max(numbers.accounted_rows()));
            }
            bar.set_position(numbers.accounted_rows());
            bar.set_message(format!("{per_second:.0}/s ETA {eta} · {phase}"));
        } else {
            let rate = format!("{per_second:.1}/s");
            tracing::info!(moved, changed, failed, fed, in_scope, rate, eta, "{phase}");
        }
    }

    /// Takes the bar away.
    pub fn clear_bar(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Writes a log line above the bar.
struct AboveBarWriter(ProgressBar);

impl Write for AboveBarWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bucket_brigade_common::fleet_control::FleetLimits;
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
        throttle.set_limits(limited.clone(), None);
        let at_limit = "feeding at the rate limit:  (feeding at the rate limit)";
        assert_eq!(state(), at_limit);
        let paused = FleetLimits {
            paused: Some("by ana".into()),
            ..limited
        };
        throttle.set_limits(paused, None);
        assert_eq!(state(), "paused: by ana (paused by an operator)");
    }
}
