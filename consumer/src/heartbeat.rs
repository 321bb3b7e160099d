//! What a consumer says of itself once a second.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::fleet_control::{Heartbeat, WorkerRole};
use bucket_brigade_common::throttle::{RateMeter, Throttle};
use bucket_brigade_common::worker_state::WorkerState;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::counters::ConsumerCounters;
use crate::health::Health;
use crate::lease::Leases;

const MOVED_OVER: Duration = Duration::from_mins(1);

/// What a heartbeat is made from.
pub(crate) struct HeartbeatSource {
    throttle: Arc<Throttle>,
    counters: Arc<ConsumerCounters>,
    leases: Leases,
    health: Health,
    stop: CancellationToken,
    moved: RateMeter,
}

impl HeartbeatSource {
    pub(crate) fn new(
        throttle: Arc<Throttle>,
        counters: Arc<ConsumerCounters>,
        leases: Leases,
        health: Health,
        stop: CancellationToken,
    ) -> Self {
        Self {
            throttle,
            counters,
            leases,
            health,
            stop,
            moved: RateMeter::new(MOVED_OVER, Instant::now()),
        }
    }

    pub(crate) fn current(&mut self) -> Heartbeat {
        let moved = self.counters.counts().moved;
        let in_hand = self.leases.held_count();
        let (state, reason) = self.state(in_hand);
        let commit = self.throttle.commit_latency();
        Heartbeat {
            role: WorkerRole::Consumer,
            state,
            reason,
            concurrency: saturating_u64(self.throttle.concurrency()),
            in_hand: saturating_u64(in_hand),
            moved_per_second: self.moved.record_total(moved, Instant::now()),
            commit_seconds: commit.map(|took| took.as_secs_f64()),
        }
    }

    fn state(&self, in_hand: usize) -> (WorkerState, String) {
        if self.stop.is_cancelled() {
            return (WorkerState::Stopping, String::new());
        }
        if let Some(outage) = self.health.outage() {
            return (WorkerState::Waiting, outage);
        }
        let reasons = self.throttle.reasons().into_iter();
        // With nothing in hand neither the store nor a limit holds anything back.
        let mut reasons = reasons.filter(|reason| in_hand > 0 || reason.is_protective());
        match reasons.next() {
            Some(reason) => (reason.worker_state(), reason.to_string()),
            None if in_hand == 0 => (WorkerState::NothingToDo, String::new()),
            None => (WorkerState::Running, String::new()),
        }
    }
}

fn saturating_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
