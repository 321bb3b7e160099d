//! What a consumer says of itself once a second, to each run that it serves.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::ledger::fleet_control::{Heartbeat, WorkerRole};
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::throttle::RateMeter;
use tokio::time::Instant;

use crate::handle::Stages;
use crate::runs::Runs;

const MOVED_OVER: Duration = Duration::from_mins(1);

pub(crate) struct HeartbeatSource {
    stages: Arc<Stages>,
    runs: Runs,
    moved: RateMeter,
}

impl HeartbeatSource {
    pub(crate) fn new(stages: Arc<Stages>, runs: Runs) -> Self {
        Self {
            stages,
            runs,
            moved: RateMeter::new(MOVED_OVER, Instant::now()),
        }
    }

    pub(crate) fn current(&mut self) -> Heartbeat {
        let moved = self.stages.moved();
        let in_hand = self.runs.held_count(self.stages.run);
        let (state, reason) = self.state(in_hand);
        let throttle = &self.stages.context.throttle;
        let commit = throttle.commit_latency();
        Heartbeat {
            role: WorkerRole::Consumer,
            state,
            reason,
            concurrency: saturating_u64(throttle.concurrency()),
            in_hand: saturating_u64(in_hand),
            moved_per_second: self.moved.record_total(moved, Instant::now()),
            commit_seconds: commit.map(|took| took.as_secs_f64()),
            held: None,
        }
    }

    fn state(&self, in_hand: usize) -> (WorkerState, String) {
        let context = &self.stages.context;
        if context.stop.is_cancelled() {
            return (WorkerState::Stopping, String::new());
        }
        if let Some(outage) = context.health.outage() {
            return (WorkerState::Waiting, outage);
        }
        let reasons = context.throttle.reasons().into_iter();
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
