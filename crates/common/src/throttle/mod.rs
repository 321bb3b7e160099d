//! One throttle for everything that starts work: copies in the consumer, rows in the feeder. It holds
//! work back for a list of reasons: an operator's pause and limits, a database that is slow or whose
//! replicas lag, and the rate that the store serves. The database comes first: it serves the application.
//!
//! What waits here has booked nothing: it learns of each change at once.

mod commit_latency;
mod cubic_rate;
mod key_ranges;
mod permit;
mod rate_limiter;
mod rate_meter;
mod reason;
mod state;
mod store_rate;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as FairMutex, Notify, watch};
use tokio::time::{Instant, timeout_at};

use self::key_ranges::{KeyRanges, MAX_RANGES};
pub use self::permit::ThrottlePermit;
pub use self::rate_meter::RateMeter;
pub use self::reason::ThrottleReason;
use self::state::{Attempt, ThrottleState};
use crate::ledger::fleet_control::FleetLimits;
use crate::settings::DatabaseLimits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopySubject {
    Image,
    Companion,
    /// Asks whether the store serves at all.
    Probe,
}

/// Holds back the work of one process.
#[derive(Debug)]
pub struct Throttle {
    state: Mutex<ThrottleState>,
    gates: [Gate; MAX_RANGES + 1],
    is_excluded: watch::Sender<bool>,
}

/// Behind no copies of a range that is slow.
const HELD_GATE: usize = MAX_RANGES;

/// Where the copies of one range of keys wait.
#[derive(Debug, Default)]
struct Gate {
    /// First come, first served; only the one in front looks at the clock. At a thousand copies a second,
    /// a hundred that all look would be busy with nothing else.
    front: FairMutex<()>,
    changed: Notify,
    waiting: AtomicUsize,
}

/// One that waits, for as long as it does.
struct WaitingAtGate<'a>(&'a AtomicUsize);

impl<'a> WaitingAtGate<'a> {
    fn at(gate: &'a Gate) -> Self {
        gate.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&gate.waiting)
    }
}

impl Drop for WaitingAtGate<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many copies may wait for slow ranges of keys without being counted: each has a lease to renew.
const MAX_EXCESS: usize = 4000;

impl Throttle {
    /// For at most `max` copies in flight. The window bounds how many are in flight, the rate how many
    /// start per second.
    pub fn for_copies(max: usize, database: DatabaseLimits) -> Self {
        Self::new(ThrottleState::for_copies(max, database, Instant::now()))
    }

    pub fn for_rows(database: DatabaseLimits) -> Self {
        Self::new(ThrottleState::for_rows(database, Instant::now()))
    }

    fn new(state: ThrottleState) -> Self {
        Self {
            state: Mutex::new(state),
            gates: Default::default(),
            is_excluded: watch::Sender::new(false),
        }
    }

    /// Waits until one more copy may start, to this key: only those of rows' images count against the
    /// fleet's limit of rows.
    pub async fn acquire<'a>(&'a self, key: &'a str, subject: CopySubject) -> ThrottlePermit<'a> {
        self.acquire_with(key, subject, async || ()).await.0
    }

    /// The same with a slot, which is taken once nothing else is in the way: what waits for a slow range of keys
    /// keeps none from the others.
    pub async fn acquire_with<'a, F: Future>(
        &'a self,
        key: &'a str,
        subject: CopySubject,
        take_slot: impl Fn() -> F,
    ) -> (ThrottlePermit<'a>, F::Output) {
        loop {
            let gate = self.gate_of(key);
            let _waiting = WaitingAtGate::at(&self.gates[gate]);
            let _front = self.gates[gate].front.lock().await;
            let check = |state: &mut ThrottleState, now| state.check_copy(key, subject, gate, now);
            if self.wait_in_front(gate, check).await.is_none() {
                continue;
            }
            let slot = take_slot().await;
            let started = self
                .state
                .lock()
                .start_copy(key, subject, gate, Instant::now());
            if let Ok(Some(is_probe)) = started {
                return (ThrottlePermit::new(self, key, is_probe), slot);
            }
        }
    }

    fn gate_of(&self, key: &str) -> usize {
        let state = self.state.lock();
        let copies = state.copies.as_ref();
        copies.map_or(0, |copies| copies.ranges.gate_of(key))
    }

    /// Waits until rows may go, and takes up to so many; returns how many go at a time.
    pub async fn acquire_rows(&self, rows: usize) -> usize {
        self.wait_at(0, |state, now| state.start_rows(rows, now))
            .await
    }

    /// Waits until no reason holds everything.
    pub async fn wait_while_held(&self) {
        self.wait_at(HELD_GATE, |state, now| state.check_held(now))
            .await;
    }

    async fn wait_at<T>(
        &self,
        gate: usize,
        attempt: impl FnMut(&mut ThrottleState, Instant) -> Attempt<T>,
    ) -> T {
        let _front = self.gates[gate].front.lock().await;
        self.wait_in_front(gate, attempt).await
    }

    async fn wait_in_front<T>(
        &self,
        gate: usize,
        mut attempt: impl FnMut(&mut ThrottleState, Instant) -> Attempt<T>,
    ) -> T {
        let changed = &self.gates[gate].changed;
        loop {
            let attempted = attempt(&mut self.state.lock(), Instant::now());
            match attempted {
                Ok(started) => return started,
                Err(None) => changed.notified().await,
                Err(Some(time)) => drop(timeout_at(time, changed.notified()).await),
            }
        }
    }

    /// What the fleet may do, and how far the slowest replica is behind: once a second.
    pub fn set_limits(&self, limits: FleetLimits) {
        let mut state = self.state.lock();
        state.set_limits(limits, Instant::now());
        let is_excluded = state.is_excluded();
        drop(state);
        self.notify_gates();
        self.is_excluded.send_replace(is_excluded);
    }

    /// Of the replica that is furthest behind.
    pub fn set_replica_lag(&self, lag: Option<Duration>) {
        self.state.lock().set_replica_lag(lag);
        self.notify_gates();
    }

    /// Whether the ledger has the run no more.
    pub fn is_run_gone(&self) -> bool {
        self.state.lock().limits.is_gone
    }

    /// Holds this process, or does so no more.
    pub fn set_hold(&self, hold: Option<String>) {
        self.state.lock().hold = hold;
        self.notify_gates();
    }

    /// As of the last heartbeat.
    pub fn limits(&self) -> FleetLimits {
        self.state.lock().limits.clone()
    }

    pub fn commit_took(&self, took: Duration) {
        self.state.lock().record_commit(took, Instant::now());
    }

    /// Waits until the limits leave nothing to this process, while others go on: what it holds is better
    /// given back to them.
    pub async fn excluded(&self) {
        let mut is_excluded = self.is_excluded.subscribe();
        // The sender lives as long as this value: waiting cannot fail.
        drop(is_excluded.wait_for(|is_excluded| *is_excluded).await);
    }

    /// Whether the limits leave nothing to this process, while others go on.
    pub fn is_excluded(&self) -> bool {
        *self.is_excluded.borrow()
    }

    /// What holds work back, the weightiest first; empty when only the work at hand decides.
    pub fn reasons(&self) -> Vec<ThrottleReason> {
        self.state.lock().reasons(Instant::now())
    }

    /// Why nothing at all starts.
    pub fn held(&self) -> Option<ThrottleReason> {
        let reasons = self.reasons();
        reasons.into_iter().find(ThrottleReason::holds_everything)
    }

    /// Whether the lag of replicas holds work back.
    pub fn watches_replicas(&self) -> bool {
        self.state.lock().database.replica_lag.is_some()
    }

    pub fn in_flight(&self) -> usize {
        let state = self.state.lock();
        state.copies.as_ref().map_or(0, |copies| copies.in_flight)
    }

    /// Copies that may be in flight at the moment.
    pub fn concurrency(&self) -> usize {
        self.state.lock().concurrency()
    }

    /// Copies per second, once the store has shown a limit.
    pub fn store_limit(&self) -> Option<f64> {
        let state = self.state.lock();
        state.copies.as_ref()?.ranges.limit(Instant::now())
    }

    /// How long commits take, over a few.
    pub fn commit_latency(&self) -> Option<Duration> {
        self.state.lock().commits.average()
    }

    /// How many messages it makes sense to have in hand.
    pub fn max_in_hand(&self) -> usize {
        self.state.lock().max_in_hand(Instant::now())
    }

    /// Copies that wait for a range of keys which the store serves more slowly than the others: they must not take
    /// the place of what can go on.
    pub fn excess_waiting(&self) -> usize {
        let waiting_at = |gate: usize| self.gates[gate].waiting.load(Ordering::Relaxed);
        let state = self.state.lock();
        let ranges = state.copies.as_ref().map(|copies| &copies.ranges);
        let excess = ranges.map_or(0, |ranges| ranges.excess(waiting_at, Instant::now()));
        excess.min(MAX_EXCESS)
    }

    fn end_copy(&self, record: impl FnOnce(&mut KeyRanges)) {
        if let Some(copies) = &mut self.state.lock().copies {
            copies.in_flight -= 1;
            record(&mut copies.ranges);
        }
        self.notify_gates();
    }

    fn notify_gates(&self) {
        for gate in &self.gates {
            gate.changed.notify_one();
        }
    }
}
