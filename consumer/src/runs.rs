//! The runs that this consumer serves, and what each has in hand.
//!
//! One queue carries the messages of many runs, and a receive brings whatever is next. A message whose run cannot
//! go on now (it is paused or limited, its store is down, its checks fail) is *parked*: its lease is renewed, and
//! it waits without a task. Giving it back would cost it a receive each time, and with the last one it would go
//! to the dead-letter queue without ever having been tried. Beyond [`MAX_PARKED_MESSAGES`] messages are hidden
//! for long instead, and after twelve hours in hand SQS takes any message back: so much a pause of days costs.
//!
//! Each run has its own limit of messages in hand: a run that hangs takes no place of another's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bucket_brigade_common::queue::{MAX_BATCH_ENTRIES, ReceivedMessage};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::handle::Stages;
use crate::lease::Lease;
use crate::run_table::{Capacity, RunSlot, RunTable};

/// About twenty megabytes: as many as a feeder has in the queue by default.
pub const MAX_PARKED_MESSAGES: usize = 20_000;

/// Messages that name no run, or one that is not in the ledger, wait here for the one that records them.
pub const STRAYS: i64 = 0;

/// Messages in hand that wait for a copy, and those that wait for a commit or a delete.
const MAX_WAITING_MESSAGES: usize = 20 * MAX_BATCH_ENTRIES;

/// How often it is looked whether it makes sense to have more in hand.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A message with its lease.
pub struct LeasedMessage {
    pub message: ReceivedMessage,
    pub lease: Lease,
    /// Whether its run is unknown: it is recorded as poison.
    pub is_stray: bool,
}

/// What is to be done with a message.
pub enum Admission {
    Handle(Arc<Stages>, LeasedMessage, InHand),
    Parked,
    /// The fleet's limits leave nothing of its run to this process.
    GiveBack(LeasedMessage),
    /// Too many are parked.
    Postpone(LeasedMessage),
}

struct SharedRuns {
    /// Messages of each run in hand at most.
    max_in_hand: usize,
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
pub struct PollPermit(Runs);

/// A message in hand of a run.
pub struct InHand {
    runs: Runs,
    run: i64,
}

impl Runs {
    /// Room for so many copies of each run at a time: while one batch is copied another waits for its commit and delete, up to fifty gather for each
    /// statement, and every poll needs room for ten. All that takes tens of milliseconds, in which S3 serves at
    /// most two hundred copies.
    pub fn new(max_concurrency: usize) -> Self {
        let max_in_hand =
            max_concurrency + max_concurrency.min(MAX_WAITING_MESSAGES) + MAX_WAITING_MESSAGES;
        Self(Arc::new(SharedRuns {
            max_in_hand,
            only: OnceLock::new(),
            table: Mutex::default(),
            room: Notify::new(),
            arrived: Notify::new(),
        }))
    }

    pub fn only(&self) -> Option<i64> {
        self.0.only.get().copied()
    }

    /// Waits until another poll makes sense.
    pub async fn acquire_poll(&self) -> PollPermit {
        loop {
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
        let mut table = self.lock_table();
        if !table.may_poll(self.0.max_in_hand) {
            return None;
        }
        table.polled += MAX_BATCH_ENTRIES;
        Some(PollPermit(self.clone()))
    }

    /// What to do with a message of this run, which is taken on where it is new.
    pub fn admit(&self, run: i64, leased: LeasedMessage) -> Admission {
        let mut table = self.lock_table();
        let slot = table.slot(run);
        slot.used_at = Instant::now();
        if let Some(stages) = slot.stages.clone() {
            let may_start = slot.parked.is_empty() && slot.has_room(self.0.max_in_hand);
            if may_start || self.only().is_some() {
                slot.begin_message();
                return Admission::Handle(stages, leased, self.in_hand(run));
            }
            if stages.context.throttle.is_excluded() {
                return Admission::GiveBack(leased);
            }
        }
        if table.parked >= MAX_PARKED_MESSAGES {
            table.drop_lost_messages();
        }
        if table.parked >= MAX_PARKED_MESSAGES {
            return Admission::Postpone(leased);
        }
        table.park(run, [leased]);
        let is_new = !table.new_runs.is_empty();
        drop(table);
        if is_new {
            self.0.arrived.notify_one();
        }
        Admission::Parked
    }

    fn in_hand(&self, run: i64) -> InHand {
        InHand {
            runs: self.clone(),
            run,
        }
    }

    /// The next parked message of a run that may be worked on.
    pub fn next_parked(&self, run: i64) -> Option<(Arc<Stages>, LeasedMessage, InHand)> {
        let mut table = self.lock_table();
        let slot = table.slots.get_mut(&run)?;
        if !slot.has_room(self.0.max_in_hand) {
            return None;
        }
        let stages = slot.stages.clone()?;
        let leased = slot.parked.pop_front()?;
        slot.begin_message();
        table.parked -= 1;
        Some((stages, leased, self.in_hand(run)))
    }

    /// Those whose lease is lost are another consumer's.
    pub fn drop_lost_messages(&self) {
        self.lock_table().drop_lost_messages();
    }

    pub fn take_parked(&self, run: i64) -> VecDeque<LeasedMessage> {
        self.lock_table().take_parked(run)
    }

    pub fn take_all_parked(&self) -> Vec<LeasedMessage> {
        let mut table = self.lock_table();
        let runs: Vec<i64> = table.slots.keys().copied().collect();
        runs.into_iter()
            .flat_map(|run| table.take_parked(run))
            .collect()
    }

    /// Hands what is parked under `from` to the run `to`; `is_stray` where it is surely none of its messages.
    pub fn forward_parked(&self, from: i64, to: i64, is_stray: bool) {
        let mut table = self.lock_table();
        let mut parked = table.take_parked(from);
        for leased in &mut parked {
            leased.is_stray |= is_stray;
        }
        table.park(to, parked);
        drop(table);
        self.0.arrived.notify_one();
    }

    /// A run that messages were received of, and that is to be served.
    pub async fn next_new_run(&self) -> i64 {
        loop {
            if let Some(run) = self.lock_table().new_runs.pop() {
                return run;
            }
            self.0.arrived.notified().await;
        }
    }

    /// The run has passed its checks.
    pub fn open(&self, run: i64, stages: Arc<Stages>) {
        let mut table = self.lock_table();
        let slot = table.slots.entry(run).or_insert_with(RunSlot::new);
        slot.stages = Some(stages);
        slot.load_error = None;
        slot.changed.notify_one();
        drop(table);
        self.0.room.notify_waiters();
    }

    /// The run is all that this consumer serves.
    pub fn open_only(&self, stages: Arc<Stages>) {
        // There is but one.
        let _ = self.0.only.set(stages.run);
        self.open(stages.run, stages);
    }

    /// The run cannot be served. Whether that is news.
    pub fn set_load_error(&self, run: i64, reason: &str) -> bool {
        let mut table = self.lock_table();
        let Some(slot) = table.slots.get_mut(&run) else {
            return false;
        };
        let is_new = slot.load_error.as_deref() != Some(reason);
        slot.load_error = Some(reason.to_owned());
        is_new
    }

    /// Drops a run that has had no message for so long, or that is known to be none and has none left.
    pub fn close_if_idle(&self, run: i64, limit: Duration) -> bool {
        let mut table = self.lock_table();
        let is_idle = table.slots.get(&run).is_none_or(|slot| slot.is_idle(limit));
        if is_idle {
            table.slots.remove(&run);
        }
        is_idle
    }

    /// Wakes when a message is parked or, with some parked, one has ended.
    pub fn changes(&self, run: i64) -> Arc<Notify> {
        let mut table = self.lock_table();
        Arc::clone(&table.slot(run).changed)
    }

    /// Messages of a run in hand, parked ones included.
    pub fn held_count(&self, run: i64) -> usize {
        let table = self.lock_table();
        table.slots.get(&run).map_or(0, RunSlot::held_count)
    }

    pub fn parked_count(&self, run: i64) -> usize {
        let table = self.lock_table();
        table.slots.get(&run).map_or(0, |slot| slot.parked.len())
    }

    /// Those that have passed their checks.
    pub fn served(&self) -> Vec<Arc<Stages>> {
        let table = self.lock_table();
        let stages = table.slots.values().filter_map(|slot| slot.stages.clone());
        stages.collect()
    }

    /// Runs that wait; none where another is reason enough to receive.
    pub fn waiting_runs(&self) -> Vec<i64> {
        let table = self.lock_table();
        let mut waiting = Vec::new();
        for (run, slot) in &table.slots {
            match table.capacity_for_poll(slot, self.0.max_in_hand) {
                Capacity::Waiting => waiting.push(*run),
                Capacity::Open if slot.is_in_use() => return Vec::new(),
                Capacity::Open | Capacity::Full => {}
            }
        }
        waiting
    }

    /// Whether the ledger knows of runs that may have messages, besides those that wait.
    pub fn set_other_work(&self, has_other_work: bool) {
        self.lock_table().has_other_work = has_other_work;
        if has_other_work {
            self.0.room.notify_waiters();
        }
    }

    /// What is wrong with single runs, and whether that is all of them.
    pub fn obstacles(&self) -> (Vec<String>, bool) {
        let table = self.lock_table();
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
    pub fn standstill(&self, limit: Duration) -> Option<(usize, Duration)> {
        let table = self.lock_table();
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
        self.lock_table().slot(run).begin_message();
        self.in_hand(run)
    }

    fn lock_table(&self) -> MutexGuard<'_, RunTable> {
        // Nothing that can panic runs under this lock.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PollPermit {
    fn drop(&mut self) {
        self.0.lock_table().polled -= MAX_BATCH_ENTRIES;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut table = self.runs.lock_table();
        let polled = table.polled;
        let Some(slot) = table.slots.get_mut(&self.run) else {
            return;
        };
        slot.in_hand -= 1;
        slot.moved_on_at = Instant::now();
        if !slot.parked.is_empty() {
            slot.changed.notify_one();
        }
        let wanted = slot.held_count() + polled + MAX_BATCH_ENTRIES;
        drop(table);
        if wanted <= self.runs.0.max_in_hand {
            self.runs.0.room.notify_one();
        }
    }
}
