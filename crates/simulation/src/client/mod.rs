//! What one process sees of the world: its queue, its store and its database, each call with a way
//! there and a way back, and with whatever can go wrong on either. A process that has died hears
//! nothing any more, and what it had not sent is never done.

mod feed_source;
mod fleet_control;
mod move_ledger;
mod object_store;
mod queue;
mod run_loader;

pub use run_loader::SimulatedLoader;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bucket_brigade_common::companions::CompanionPatterns;
use bucket_brigade_common::path_rule::PathRule;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::fault_rates::CallOutcome;
use crate::sabotage::Sabotage;
use crate::shared_world::{SharedWorld, WorldState};
use crate::world::{COMPANION_SUFFIX, world_path_rule};

/// When a process dies: at which of its calls, and on which side of the call's effect.
#[derive(Debug, Clone, Copy)]
pub struct CrashPoint {
    pub at_call: u64,
    /// Whether the call is carried out.
    pub after_effect: bool,
}

/// One process's view of the world of one run.
#[derive(Debug)]
pub struct SimulatedClient {
    shared: Arc<SharedWorld>,
    process: Arc<SimulatedProcess>,
    /// The worlds of the other runs on its queue, which is that of the first world.
    others: Vec<Arc<SharedWorld>>,
    pub(crate) shares_queue: bool,
}

#[derive(Debug)]
struct SimulatedProcess {
    crash_point: Option<CrashPoint>,
    calls: AtomicU64,
    is_crashed: AtomicBool,
    died: Notify,
}

impl SimulatedClient {
    /// A process that lives until its crash point.
    pub fn new(shared: Arc<SharedWorld>, death: Option<CrashPoint>) -> Self {
        Self {
            shared,
            process: Arc::new(SimulatedProcess {
                crash_point: death,
                calls: AtomicU64::new(0),
                is_crashed: AtomicBool::new(false),
                died: Notify::new(),
            }),
            others: Vec::new(),
            shares_queue: false,
        }
    }

    /// The same, on a queue that further runs share.
    #[must_use]
    pub fn with_others(self, others: &[Arc<SharedWorld>]) -> Self {
        Self {
            others: others.to_vec(),
            shares_queue: !others.is_empty(),
            ..self
        }
    }

    /// The same process's view of another run's world.
    #[must_use]
    pub fn in_world(&self, shared: &Arc<SharedWorld>) -> Self {
        Self {
            shared: Arc::clone(shared),
            process: Arc::clone(&self.process),
            others: Vec::new(),
            shares_queue: self.shares_queue,
        }
    }

    /// The run whose table and buckets it sees.
    pub fn run(&self) -> i64 {
        self.shared.lock().run
    }

    /// As the run in the ledger has it.
    pub fn path_rule(&self) -> PathRule {
        let things = self.shared.lock();
        let is_forgotten = things.sabotage == Sabotage::ForgottenCompanions;
        if !things.has_companions || is_forgotten {
            return world_path_rule();
        }
        let companions = CompanionPatterns::parse(&format!("{{key}}{COMPANION_SUFFIX}"));
        world_path_rule().with_companions(companions.unwrap_or_default())
    }

    pub async fn died(&self) {
        self.process.died.notified().await;
    }

    /// Carries out a call: `act` is what it does to the world, `lost` the error when it, or its answer, is
    /// lost.
    async fn perform_call<T, E>(
        &self,
        name: &'static str,
        lost: impl FnOnce(CallOutcome) -> E,
        act: impl FnOnce(&mut WorldState) -> Result<T, E>,
    ) -> Result<T, E> {
        let number = self.process.calls.fetch_add(1, Ordering::Relaxed);
        let (there, back, outcome) = self.shared.pick_call_outcome();
        self.simulate_latency(there).await;
        let dies = self
            .process
            .crash_point
            .filter(|death| death.at_call == number);
        if dies.is_some_and(|death| !death.after_effect) {
            self.crash_process().await;
        }
        self.shared.record_call(name, number, outcome as u64);
        if outcome == CallOutcome::FailsBeforeEffect {
            self.simulate_latency(back).await;
            return Err(lost(outcome));
        }
        let answer = self.shared.apply_change(act);
        if dies.is_some() {
            self.crash_process().await;
        }
        self.simulate_latency(back).await;
        match outcome {
            CallOutcome::FailsAfterEffect => Err(lost(outcome)),
            _ => answer,
        }
    }

    async fn simulate_latency(&self, time: Duration) {
        sleep(time).await;
        if self.process.is_crashed.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    async fn crash_process(&self) {
        self.process.is_crashed.store(true, Ordering::Relaxed);
        self.process.died.notify_one();
        std::future::pending::<()>().await;
    }
}
