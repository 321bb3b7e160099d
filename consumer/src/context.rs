//! What the stages of one run share; most of it with those of the other runs.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Health;
use bucket_brigade_common::ledger::fleet_control::WorkerRole;
#[cfg(test)]
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::Throttle;
use tokio_util::sync::CancellationToken;

use crate::counters::ConsumerCounters;
use crate::lease::Leases;

/// What a message takes at most besides its copy: the statements, their retries, the wait for a locked row.
pub const STANDSTILL_MARGIN: Duration = Duration::from_mins(3);

#[derive(Debug, Clone)]
pub struct ConsumerContext {
    pub throttle: Arc<Throttle>,
    pub health: Health,
    pub leases: Leases,
    pub counters: Arc<ConsumerCounters>,
    /// Longer than any single message takes.
    pub standstill_limit: Duration,
    /// Ends all waiting, not the work in progress.
    pub stop: CancellationToken,
    /// Ends the work in progress too: the grace period is over.
    pub give_up: CancellationToken,
}

impl ConsumerContext {
    pub fn new(
        throttle: impl Into<Arc<Throttle>>,
        visibility_timeout: Duration,
        stop: CancellationToken,
    ) -> Self {
        Self {
            throttle: throttle.into(),
            health: Health::new(WorkerRole::Consumer),
            leases: Leases::new(visibility_timeout),
            counters: Arc::default(),
            standstill_limit: STANDSTILL_MARGIN,
            stop,
            give_up: CancellationToken::new(),
        }
    }

    /// For the only run.
    #[must_use]
    pub fn with_throttle(&self, throttle: &Arc<Throttle>) -> Self {
        Self {
            throttle: Arc::clone(throttle),
            ..self.clone()
        }
    }

    /// For one run of several.
    #[must_use]
    pub fn for_run(&self, name: &str, throttle: &Arc<Throttle>) -> Self {
        Self {
            health: self.health.for_run(name),
            ..self.with_throttle(throttle)
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let throttle = Throttle::for_copies(4, DatabaseLimits::default());
        Self::new(throttle, Duration::from_mins(1), CancellationToken::new())
    }
}
