//! The runs that this consumer serves, and what each has in hand.
//!
//! ```text
//! receive ─► dispatch ─┬─► handle, by the stages of its run, where that has room
//!                      └─► parked ─► handle, or back to the queue
//!
//! the first message of a run ─► load ─► serve until it is idle
//! ```
//!
//! One queue carries the messages of many runs, and a receive brings whatever is next. A message whose run cannot
//! go on now (it is paused or limited, its store is down, its checks fail) is *parked*: its lease is renewed, and
//! it waits without a task. Giving it back would cost it a receive each time, and with the last one it would go
//! to the dead-letter queue without ever having been tried. Beyond [`MAX_PARKED_MESSAGES`] messages are hidden
//! for long instead, and after twelve hours in hand SQS takes any message back: so much a pause of days costs.
//!
//! What the process has in hand is bounded, and each run is sure of a part: one that hangs takes no place of
//! another's.

mod allowance;
mod dispatch;
mod load;
mod serve;
mod table;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bucket_brigade_common::queue::MAX_BATCH_ENTRIES;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use self::allowance::Allowance;
pub(crate) use self::dispatch::Dispatcher;
pub use self::dispatch::{IncomingMessage, LeasedMessage};
pub(crate) use self::load::{BUCKETS, LedgerRunLoader, LoadStep, MAX_CONNECTIONS, within_limit};
pub use self::load::{HomeRun, RunLoader, RunParts};
pub use self::serve::RUN_IDLE_LIMIT;
pub(crate) use self::serve::{deregister, serve_all, serve_run};
use self::table::{RunSlot, RunTable};
use crate::handle::Stages;

/// About twenty megabytes: as many as a feeder has in the queue by default.
const MAX_PARKED_MESSAGES: usize = 20_000;

/// Messages that name no run, or one that is not in the ledger, wait here for the one that records them.
const STRAYS: i64 = 0;

/// Messages in hand that wait for a copy, and those that wait for a commit or a delete.
const MAX_WAITING_MESSAGES: usize = 20 * MAX_BATCH_ENTRIES;

/// How often it is looked whether it makes sense to have more in hand.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

enum Admission {
    Handle(Arc<Stages>, LeasedMessage, InHand),
    Parked,
    /// Too many are parked.
    Postpone(LeasedMessage),
}

struct SharedRuns {
    max_concurrency: usize,
    /// The only run of a consumer that was given one.
    only: OnceLock<i64>,
    table: Mutex<RunTable>,
    /// There may be room for another poll.
    room: Notify,
    arrived: Notify,
}

#[derive(Clone)]
pub struct Runs(Arc<SharedRuns>);

/// Room for what a poll brings.
pub(crate) struct PollPermit(Runs);

pub(crate) struct InHand {
    runs: Runs,
    run: i64,
}

impl Runs {
    /// Room for so many copies at a time: while one batch is copied another waits for its commit and delete, up to
    /// fifty collect for each statement, and every poll needs room for ten. All that takes tens of milliseconds, in
    /// which S3 serves at most two hundred copies.
    pub fn new(max_concurrency: usize) -> Self {
        let max_in_hand =
            max_concurrency + max_concurrency.min(MAX_WAITING_MESSAGES) + MAX_WAITING_MESSAGES;
        Self(Arc::new(SharedRuns {
            max_concurrency,
            only: OnceLock::new(),
            table: Mutex::new(RunTable::new(max_in_hand)),
            room: Notify::new(),
            arrived: Notify::new(),
        }))
    }

    pub(crate) fn max_concurrency(&self) -> usize {
        self.0.max_concurrency
    }

    fn only(&self) -> Option<i64> {
        self.0.only.get().copied()
    }

    /// Waits until another poll makes sense.
    pub(crate) async fn acquire_poll(&self) -> PollPermit {
        loop {
            self.update_allowances();
            if let Some(permit) = self.try_acquire_poll() {
                return permit;
            }
            tokio::select! {
                () = self.0.room.notified() => {}
                () = sleep(CAPACITY_CHECK_INTERVAL) => {}
            }
        }
    }

    fn try_acquire_poll(&self) -> Option<PollPermit> {
        let mut table = self.0.table.lock();
        if !table.may_poll() {
            return None;
        }
        table.polled += MAX_BATCH_ENTRIES;
        Some(PollPermit(self.clone()))
    }

    /// Asks the throttle and the store of each run how much it may have in hand: for each poll and not for each
    /// message, and without the table's lock.
    fn update_allowances(&self) {
        let served = self.served();
        let allowances: Vec<_> = served
            .iter()
            .map(|stages| (stages.run, Allowance::of(stages)))
            .collect();
        self.0.table.lock().set_allowances(allowances);
    }

    /// What to do with a message of this run, which is taken on where it is new.
    fn admit(&self, run: i64, leased: LeasedMessage) -> Admission {
        let mut table = self.0.table.lock();
        table.slot(run).used_at = Instant::now();
        if let Some(stages) = table.begin_received(run, self.only().is_some()) {
            return Admission::Handle(stages, leased, self.in_hand(run));
        }
        if table.parked >= MAX_PARKED_MESSAGES {
            table.drop_lost_messages();
        }
        if table.parked >= MAX_PARKED_MESSAGES {
            self.wake_server(&table);
            return Admission::Postpone(leased);
        }
        drop(table);
        self.park(run, [leased]);
        Admission::Parked
    }

    fn in_hand(&self, run: i64) -> InHand {
        InHand {
            runs: self.clone(),
            run,
        }
    }

    fn park(&self, run: i64, messages: impl IntoIterator<Item = LeasedMessage>) {
        let mut table = self.0.table.lock();
        table.park(run, messages);
        self.wake_server(&table);
    }

    fn wake_server(&self, table: &RunTable) {
        if !table.new_runs.is_empty() {
            self.0.arrived.notify_one();
        }
    }

    /// The next parked message of a run that may be worked on.
    fn next_parked(&self, run: i64) -> Option<(Arc<Stages>, LeasedMessage, InHand)> {
        let (stages, leased) = self.0.table.lock().begin_parked(run)?;
        Some((stages, leased, self.in_hand(run)))
    }

    fn take_all_parked(&self) -> Vec<LeasedMessage> {
        let mut table = self.0.table.lock();
        let runs: Vec<i64> = table.slots.keys().copied().collect();
        runs.into_iter()
            .flat_map(|run| table.take_parked(run))
            .collect()
    }

    /// Hands what is parked under `from` to the run `to`; `is_stray` where it is surely none of its messages.
    fn forward_parked(&self, from: i64, to: i64, is_stray: bool) {
        let mut table = self.0.table.lock();
        if let Some(slot) = table.slots.get_mut(&from) {
            slot.load_error = None;
        }
        let mut parked = table.take_parked(from);
        drop(table);
        for leased in &mut parked {
            leased.incoming.is_stray |= is_stray;
        }
        self.park(to, parked);
    }

    /// A run that messages were received of, and that is to be served.
    async fn next_new_run(&self) -> i64 {
        loop {
            if let Some(run) = self.0.table.lock().new_runs.pop() {
                return run;
            }
            self.0.arrived.notified().await;
        }
    }

    /// The run has passed its checks.
    fn open(&self, run: i64, stages: Arc<Stages>) {
        let mut table = self.0.table.lock();
        let slot = table.slots.entry(run).or_insert_with(RunSlot::new);
        slot.stages = Some(stages);
        slot.load_error = None;
        slot.changed.notify_one();
        drop(table);
        self.update_allowances();
        self.0.room.notify_waiters();
    }

    /// The run is to be loaded again: its messages wait for that.
    fn reload(&self, run: i64) {
        let mut table = self.0.table.lock();
        table.slot(run).unload();
        table.new_runs.push(run);
        drop(table);
        self.0.arrived.notify_one();
    }

    /// The run is all that this consumer serves.
    pub(crate) fn open_only(&self, stages: Arc<Stages>) {
        // There is but one.
        let _ = self.0.only.set(stages.run);
        self.open(stages.run, stages);
    }

    /// The run cannot be served. Whether that is news.
    pub(crate) fn set_load_error(&self, run: i64, reason: &str) -> bool {
        let mut table = self.0.table.lock();
        let Some(slot) = table.slots.get_mut(&run) else {
            return false;
        };
        let is_new = slot.load_error.as_deref() != Some(reason);
        slot.load_error = Some(reason.to_owned());
        is_new
    }

    /// Drops a run that has had no message for so long, or that is known to be none and has none left.
    fn close_if_idle(&self, run: i64, limit: Duration) -> bool {
        let mut table = self.0.table.lock();
        let is_idle = table.slots.get(&run).is_none_or(|slot| slot.is_idle(limit));
        if is_idle {
            table.slots.remove(&run);
        }
        is_idle
    }

    /// Wakes when a message is parked or, with some parked, one has ended.
    fn changes(&self, run: i64) -> Arc<Notify> {
        Arc::clone(&self.0.table.lock().slot(run).changed)
    }

    /// Messages of a run in hand, parked ones included.
    pub(crate) fn held_count(&self, run: i64) -> usize {
        let table = self.0.table.lock();
        table.slots.get(&run).map_or(0, RunSlot::held_count)
    }

    fn parked_count(&self, run: i64) -> usize {
        let table = self.0.table.lock();
        table.slots.get(&run).map_or(0, |slot| slot.parked.len())
    }

    /// Those that have passed their checks.
    pub(crate) fn served(&self) -> Vec<Arc<Stages>> {
        let table = self.0.table.lock();
        let stages = table.slots.values().filter_map(|slot| slot.stages.clone());
        stages.collect()
    }

    /// Which runs may have messages by the ledger.
    fn set_active_runs(&self, active: Vec<i64>) {
        self.0.table.lock().active = active;
        self.0.room.notify_waiters();
    }

    /// What is wrong with single runs, and whether that is all of them.
    pub(crate) fn obstacles(&self) -> (Vec<String>, bool) {
        let table = self.0.table.lock();
        let runs = table.slots.iter().filter(|(run, _)| **run != STRAYS);
        let (mut obstacles, mut is_all) = (Vec::new(), true);
        for (run, slot) in runs {
            match slot.obstacle() {
                Some(obstacle) => obstacles.push(format!("run {run}: {obstacle}")),
                None => is_all = false,
            }
        }
        (obstacles, is_all)
    }

    /// How many messages are in hand of a run of which none has ended for longer than this, and for how long,
    /// although nothing holds it back.
    pub(crate) fn standstill(&self, limit: Duration) -> Option<(usize, Duration)> {
        let table = self.0.table.lock();
        let is_stalled = |slot: &&RunSlot| {
            let is_held = |stages: &Arc<Stages>| stages.context.throttle.held().is_some();
            let is_held = slot.obstacle().is_some() || slot.stages.as_ref().is_some_and(is_held);
            slot.in_hand > 0 && slot.moved_on_at.elapsed() > limit && !is_held
        };
        let slot = table.slots.values().find(is_stalled)?;
        Some((slot.in_hand, slot.moved_on_at.elapsed()))
    }

    #[cfg(test)]
    pub(crate) fn begin(&self, run: i64) -> InHand {
        self.0.table.lock().begin(run);
        self.in_hand(run)
    }
}

impl Drop for PollPermit {
    fn drop(&mut self) {
        self.0.0.table.lock().polled -= MAX_BATCH_ENTRIES;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let has_room = self.runs.0.table.lock().end(self.run);
        if has_room {
            self.runs.0.room.notify_one();
        }
    }
}
