//! A call to the queue that every message needs and that fails for all of them: until it works again little is
//! received, and what is in hand is kept.

use std::mem;
use std::time::Duration;

use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::queue::QueueError;
use bucket_brigade_common::retry::Backoff;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

/// Failures in a row before no more is received: leases of which so many renewals failed are about to run out.
const TOLERATED_FAILURES: u32 = 1;

/// How often the call is made while it fails.
pub const FAILING_INTERVAL: Duration = Duration::from_secs(1);

const PROBE_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Where nothing in hand needs the call, ten messages in so long show whether it works again: each costs a receive.
const MAX_PROBE_INTERVAL: Duration = Duration::from_mins(2);

/// The same of a queue that does not answer: then nothing is received, either.
const SILENT_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_secs(15),
};

/// A call that fails after so long had no answer: one try of the SDK's is given up sooner than all of them.
const SILENCE: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, Clone)]
pub struct CallFailure {
    pub reason: String,
    /// Whether the queue answered.
    pub is_answered: bool,
}

impl CallFailure {
    /// Of a call that began then: errors do not tell a request that was given up from one that was answered.
    pub fn since(began: Instant, error: &QueueError) -> Self {
        Self {
            reason: error.to_string(),
            is_answered: began.elapsed() < SILENCE,
        }
    }
}

/// Calls in a row of which the queue confirmed nothing.
#[derive(Debug, Default)]
struct CallFailures {
    count: u32,
    failed_at: Option<Instant>,
    failing_since: Option<Instant>,
    /// Whether the queue answered the last one.
    is_answered: bool,
    /// How often more was received meanwhile.
    probes: u32,
    probed_at: Option<Instant>,
    /// The first of these since the last failure.
    quiet_since: Option<Instant>,
}

impl CallFailures {
    fn is_failing(&self) -> bool {
        self.count > TOLERATED_FAILURES
    }

    fn is_quiet(&self, limit: Duration) -> bool {
        let since = if self.is_failing() {
            self.quiet_since
        } else {
            self.failed_at
        };
        since.is_some_and(|at| at.elapsed() >= limit)
    }

    fn starts_probe(&mut self, visibility: Duration) -> bool {
        let wait = if self.is_answered {
            let backoff = Backoff {
                initial_delay: visibility,
                max_delay: MAX_PROBE_INTERVAL,
            };
            // Leases run out first.
            visibility.min(MAX_PROBE_INTERVAL) + backoff.delay_ceiling(self.probes + 1)
        } else {
            SILENT_BACKOFF.delay_ceiling(self.probes + 1)
        };
        // What is in hand may go on failing.
        let last = self.probed_at.or(self.failing_since);
        let is_due = last.is_none_or(|at| at.elapsed() >= wait);
        if is_due {
            let now = Instant::now();
            self.probes += 1;
            self.probed_at = Some(now);
            self.quiet_since.get_or_insert(now);
        }
        is_due
    }
}

#[derive(Debug)]
pub struct FailingCall {
    name: &'static str,
    health: Health,
    visibility_timeout: Duration,
    failures: Mutex<CallFailures>,
}

impl FailingCall {
    pub fn new(name: &'static str, health: &Health, visibility_timeout: Duration) -> Self {
        Self {
            name,
            health: health.clone(),
            visibility_timeout,
            failures: Mutex::default(),
        }
    }

    pub fn is_failing(&self) -> bool {
        self.failures.lock().is_failing()
    }

    /// What is received meanwhile comes back while it is worked on, and each time costs it a receive.
    pub fn record_failure(&self, failure: &CallFailure) {
        let mut failures = self.failures.lock();
        failures.count += 1;
        failures.is_answered = failure.is_answered;
        failures.failed_at = Some(Instant::now());
        failures.quiet_since = None;
        if failures.is_failing() {
            failures.failing_since.get_or_insert_with(Instant::now);
            let reason = format!("{}: {}", self.name, failure.reason);
            self.health
                .mark_stuck(Dependency::Queue, self.name, &reason);
        }
    }

    pub fn record_success(&self) {
        if mem::take(&mut *self.failures.lock()).is_failing() {
            self.health.record_success(Dependency::Queue, self.name);
        }
    }

    /// Nothing needs the call: after a visibility timeout of that, in which some was received, it counts as working.
    pub fn record_idle(&self) {
        let limit = self.visibility_timeout.min(MAX_PROBE_INTERVAL);
        let is_quiet = self.failures.lock().is_quiet(limit);
        if is_quiet {
            self.record_success();
        }
    }

    /// While it fails little is taken at a time: what is in hand ends first.
    pub async fn wait_while_failing(&self, holds_enough: impl Fn() -> bool) {
        while self.is_failing() && (holds_enough() || !self.starts_probe()) {
            sleep(PROBE_CHECK_INTERVAL).await;
        }
    }

    fn starts_probe(&self) -> bool {
        self.failures.lock().starts_probe(self.visibility_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_given_up_had_no_answer() {
        let error = QueueError::Unavailable {
            operation: "DeleteMessageBatch",
            message: "no response".into(),
        };
        let began = Instant::now();
        assert!(CallFailure::since(began, &error).is_answered);
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(!CallFailure::since(began, &error).is_answered);
    }
}
