//! What the stages of one run share; most of it with those of the other runs.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Health;
use bucket_brigade_common::ledger::fleet_control::WorkerRole;
#[cfg(test)]
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::{CopySubject, Throttle, ThrottlePermit};
use tokio_util::sync::CancellationToken;

use crate::counters::ConsumerCounters;
use crate::fair_slots::{FairSlots, Slot, SlotShare};
use crate::lease::Leases;

/// What a message takes at most besides its copy: the statements, their retries, the wait for a locked row.
pub const STANDSTILL_MARGIN: Duration = Duration::from_mins(3);

#[derive(Debug, Clone)]
pub struct ConsumerContext {
    pub throttle: Arc<Throttle>,
    /// The run's share of the process's copies in flight.
    pub copies: Arc<SlotShare>,
    /// The same of its statements.
    pub statements: Arc<SlotShare>,
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
        let health = Health::new(WorkerRole::Consumer);
        Self {
            throttle: throttle.into(),
            copies: FairSlots::new(usize::MAX).share(),
            statements: FairSlots::new(usize::MAX).share(),
            leases: Leases::new(visibility_timeout, &health),
            health,
            counters: Arc::default(),
            standstill_limit: STANDSTILL_MARGIN,
            stop,
            give_up: CancellationToken::new(),
        }
    }

    /// Waits until another copy may start, to this key: in the run, and in the process.
    pub async fn start_copy<'a>(
        &'a self,
        key: &'a str,
        subject: CopySubject,
    ) -> (ThrottlePermit<'a>, Slot<'a>) {
        let take_slot = || self.copies.acquire();
        self.throttle.acquire_with(key, subject, take_slot).await
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let throttle = Throttle::for_copies(4, DatabaseLimits::default());
        Self::new(throttle, Duration::from_mins(1), CancellationToken::new())
    }
}
