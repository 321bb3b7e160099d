//! What of a run is news to an operator.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::ledger::fleet_control::{FleetLimits, format_limits};
use bucket_brigade_common::ledger::worker_state::WorkerState;
use tokio::time::Instant;

use super::max_failures::PAUSED_BY;

/// Nothing ended and nothing was fed for so long, although there is something to do and nothing holds it.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunEvent {
    pub(crate) name: &'static str,
    /// The same for people, with details.
    pub(crate) words: String,
}

impl RunEvent {
    pub(crate) fn finished() -> Self {
        Self::new("finished", "finished")
    }

    /// The rest of the run is still to come.
    pub(crate) fn canary_finished() -> Self {
        Self::new("canary_finished", "the canary is finished")
    }

    fn new(name: &'static str, words: impl Into<String>) -> Self {
        let words = words.into();
        Self { name, words }
    }
}

/// A run at a moment.
#[derive(Debug, Clone)]
pub(crate) struct RunCounts {
    pub(crate) limits: FleetLimits,
    pub(crate) progress: RunProgress,
    pub(crate) phase: WorkerState,
    /// Pages of the table read so far: a sweep may find nothing for a long time.
    pub(crate) pages: u64,
    /// What an operator or the database holds, or what is down.
    pub(crate) is_held: bool,
    pub(crate) outage: Option<String>,
}

/// Compares each moment with those before.
#[derive(Debug)]
pub(crate) struct RunObserver {
    limits: FleetLimits,
    /// Rows fed, rows that have ended, and pages read.
    counts: (u64, u64, u64),
    unchanged_since: Instant,
    is_stalled: bool,
    /// Rows that had ended when a sweep found nothing.
    reported: u64,
}

impl RunObserver {
    pub(crate) fn new(first: &RunCounts, now: Instant) -> Self {
        Self {
            limits: first.limits.clone(),
            counts: counts(first),
            unchanged_since: now,
            is_stalled: false,
            reported: first.progress.accounted_rows(),
        }
    }

    pub(crate) fn observe(&mut self, observed: &RunCounts, now: Instant) -> Vec<RunEvent> {
        let mut events = self.observe_limits(&observed.limits);
        events.extend(self.observe_end(observed));
        events.extend(self.observe_stall(observed, now));
        events
    }

    fn observe_limits(&mut self, limits: &FleetLimits) -> Vec<RunEvent> {
        let before = std::mem::replace(&mut self.limits, limits.clone());
        let mut events = Vec::new();
        match &limits.paused {
            paused if *paused == before.paused => {}
            None => events.push(RunEvent::new("resumed", "resumed")),
            Some(why) if why.starts_with(&format!("by {PAUSED_BY}")) => {
                events.push(RunEvent::new("max_failures", format!("paused {why}")));
            }
            Some(why) => events.push(RunEvent::new("paused", format!("paused {why}"))),
        }
        if (limits.rate, limits.concurrency) != (before.rate, before.concurrency) {
            let words = match format_limits(limits.rate, limits.concurrency) {
                Some(limits) => format!("limited to {limits}"),
                None => "limited no more".into(),
            };
            events.push(RunEvent::new("limited", words));
        }
        events
    }

    /// A feeder that watches; one that ends reports that itself.
    fn observe_end(&mut self, observed: &RunCounts) -> Option<RunEvent> {
        let ended = observed.progress.accounted_rows();
        // A retry and a rollback lower it.
        self.reported = self.reported.min(ended);
        let is_end = observed.phase == WorkerState::Watching && ended > self.reported;
        is_end.then(|| {
            self.reported = ended;
            RunEvent::finished()
        })
    }

    fn observe_stall(&mut self, observed: &RunCounts, now: Instant) -> Option<RunEvent> {
        let counts = counts(observed);
        let is_idle = matches!(
            observed.phase,
            WorkerState::Watching | WorkerState::Starting
        );
        if counts != self.counts || observed.is_held || is_idle {
            (self.counts, self.unchanged_since, self.is_stalled) = (counts, now, false);
            return None;
        }
        if self.is_stalled || now - self.unchanged_since < STALL_TIMEOUT {
            return None;
        }
        self.is_stalled = true;
        let why = stall_reason(observed);
        let words = format!("stalled for {STALL_TIMEOUT:?}: {why}");
        Some(RunEvent::new("stalled", words))
    }
}

fn counts(observed: &RunCounts) -> (u64, u64, u64) {
    let progress = &observed.progress;
    (progress.fed, progress.accounted_rows(), observed.pages)
}

fn stall_reason(observed: &RunCounts) -> String {
    match &observed.outage {
        Some(outage) => outage.clone(),
        None if observed.limits.other_consumers == 0 => "no consumer is running".into(),
        None => observed.phase.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(moved: u64, phase: WorkerState) -> RunCounts {
        RunCounts {
            limits: FleetLimits::default(),
            progress: RunProgress {
                moved,
                ..RunProgress::default()
            },
            phase,
            pages: 0,
            is_held: false,
            outage: None,
        }
    }

    fn feeding(moved: u64) -> RunCounts {
        observed(moved, WorkerState::Feeding)
    }

    #[test]
    fn each_order_is_reported_once() {
        let now = Instant::now();
        let mut observer = RunObserver::new(&feeding(1), now);
        let mut observe = |limits: &FleetLimits| {
            let limits = limits.clone();
            observer.observe(
                &RunCounts {
                    limits,
                    ..feeding(1)
                },
                now,
            )
        };
        let mut limits = FleetLimits::default();
        assert_eq!(observe(&limits), []);
        limits.paused = Some("by ana: release".into());
        let paused = RunEvent::new("paused", "paused by ana: release");
        assert_eq!(observe(&limits), [paused]);
        assert_eq!(observe(&limits), []);
        limits.paused = Some(format!("by {PAUSED_BY}: 3 rows failed"));
        assert_eq!(observe(&limits)[0].name, "max_failures");
        limits.paused = None;
        limits.rate = Some(5.0);
        let resumed = RunEvent::new("resumed", "resumed");
        let limited = RunEvent::new("limited", "limited to 5 rows per second");
        assert_eq!(observe(&limits), [resumed, limited]);
        let unlimited = RunEvent::new("limited", "limited no more");
        assert_eq!(observe(&FleetLimits::default()), [unlimited]);
    }

    #[test]
    fn a_run_that_is_watched_finishes_once_each_time_that_rows_have_ended() {
        let now = Instant::now();
        let mut observer = RunObserver::new(&feeding(7), now);
        let mut observe = |moved, phase| observer.observe(&observed(moved, phase), now);
        assert_eq!(observe(7, WorkerState::Watching), []);
        assert_eq!(observe(9, WorkerState::Feeding), []);
        assert_eq!(observe(9, WorkerState::Watching), [RunEvent::finished()]);
        assert_eq!(observe(9, WorkerState::Watching), []);
        // A retry of three that failed.
        assert_eq!(observe(6, WorkerState::Watching), []);
        assert_eq!(observe(9, WorkerState::Watching), [RunEvent::finished()]);
    }

    #[test]
    fn a_stall_is_reported_once_and_not_while_something_holds() {
        let began = Instant::now();
        let mut observer = RunObserver::new(&feeding(1), began);
        let mut observe = |observed: RunCounts, seconds| {
            observer.observe(&observed, began + Duration::from_secs(seconds))
        };
        let held = |is_held| RunCounts {
            is_held,
            ..feeding(2)
        };
        assert_eq!(observe(held(false), 59), []);
        assert_eq!(observe(held(true), 150), []);
        assert_eq!(observe(held(false), 209), []);
        let stalled = RunEvent::new("stalled", "stalled for 60s: no consumer is running");
        assert_eq!(observe(held(false), 210), [stalled]);
        assert_eq!(observe(held(false), 300), []);
        assert_eq!(observe(feeding(3), 301), []);
        let reading = RunCounts {
            pages: 1,
            ..feeding(3)
        };
        assert_eq!(observe(reading, 360), []);
        assert_eq!(observe(feeding(3), 361), []);
        let down = RunCounts {
            outage: Some("the database: gone".into()),
            ..feeding(3)
        };
        let stalled = RunEvent::new("stalled", "stalled for 60s: the database: gone");
        assert_eq!(observe(down, 421), [stalled]);
        assert_eq!(
            observe(observed(3, WorkerState::Watching), 422)[0],
            RunEvent::finished()
        );
        assert_eq!(observe(observed(3, WorkerState::Watching), 900), []);
    }
}
