//! What is known of each run: its stages, its messages in hand and parked, and whether it has room for more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::queue::MAX_BATCH_ENTRIES;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::handle::Stages;
use crate::runs::LeasedMessage;

/// A run whose places are all taken is waited for, unless nothing of it ends for so long.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// While some run waits, a run that had a message so lately is reason enough to receive.
const RECENT_USE: Duration = Duration::from_mins(1);

/// What a run's messages wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capacity {
    Open,
    /// For each other.
    Full,
    /// For an operator, the store, or the checks.
    Waiting,
}

pub(crate) struct RunSlot {
    /// None until the run has passed its checks.
    pub(crate) stages: Option<Arc<Stages>>,
    /// Why it has not.
    pub(crate) load_error: Option<String>,
    pub(crate) parked: VecDeque<LeasedMessage>,
    pub(crate) in_hand: usize,
    /// When a message of it ended last, or the first one in hand began.
    pub(crate) moved_on_at: Instant,
    pub(crate) used_at: Instant,
    pub(crate) changed: Arc<Notify>,
}

#[derive(Default)]
pub(crate) struct RunTable {
    pub(crate) slots: BTreeMap<i64, RunSlot>,
    /// Taken on, and not yet looked at.
    pub(crate) new_runs: Vec<i64>,
    /// Messages that polls under way may bring.
    pub(crate) polled: usize,
    pub(crate) parked: usize,
    pub(crate) has_other_work: bool,
}

impl RunSlot {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            stages: None,
            load_error: None,
            parked: VecDeque::new(),
            in_hand: 0,
            moved_on_at: now,
            used_at: now,
            changed: Arc::default(),
        }
    }

    pub(crate) fn held_count(&self) -> usize {
        self.in_hand + self.parked.len()
    }

    /// Whether so many messages may be in hand. What the throttle does not let us copy soon is better left to
    /// others, and to the queue if we have to stop.
    pub(crate) fn capacity(&self, messages: usize, max_in_hand: usize) -> Capacity {
        let Some(stages) = &self.stages else {
            return Capacity::Waiting;
        };
        let context = &stages.context;
        let messages = messages.saturating_sub(context.throttle.excess_waiting());
        let is_up = context.health.is_up(Dependency::Objects);
        if !is_up || messages > context.throttle.max_in_hand() {
            return Capacity::Waiting;
        }
        if messages <= max_in_hand {
            return Capacity::Open;
        }
        if self.moved_on_at.elapsed() > STALLED_AFTER {
            return Capacity::Waiting;
        }
        Capacity::Full
    }

    pub(crate) fn has_room(&self, max_in_hand: usize) -> bool {
        self.capacity(self.in_hand + 1, max_in_hand) == Capacity::Open
    }

    pub(crate) fn begin_message(&mut self) {
        if self.in_hand == 0 {
            self.moved_on_at = Instant::now();
        }
        self.in_hand += 1;
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.used_at.elapsed() < RECENT_USE
    }

    pub(crate) fn is_idle(&self, limit: Duration) -> bool {
        self.held_count() == 0 && self.used_at.elapsed() > limit
    }

    /// Why it cannot be worked on.
    pub(crate) fn obstacle(&self) -> Option<String> {
        match &self.stages {
            Some(stages) => stages.context.health.outage_of(Dependency::Objects),
            None => self.load_error.clone(),
        }
    }
}

impl RunTable {
    /// A run that is busy is waited for. One that is held is not, as long as there may be work for another.
    pub(crate) fn may_poll(&self, max_in_hand: usize) -> bool {
        let (mut is_waiting, mut is_invited) = (false, self.has_other_work);
        for slot in self.slots.values() {
            match self.capacity_for_poll(slot, max_in_hand) {
                Capacity::Full => return false,
                Capacity::Waiting => is_waiting = true,
                Capacity::Open => is_invited |= slot.is_in_use(),
            }
        }
        is_invited || !is_waiting
    }

    pub(crate) fn capacity_for_poll(&self, slot: &RunSlot, max_in_hand: usize) -> Capacity {
        let wanted = slot.held_count() + self.polled + MAX_BATCH_ENTRIES;
        slot.capacity(wanted, max_in_hand)
    }

    pub(crate) fn slot(&mut self, run: i64) -> &mut RunSlot {
        self.slots.entry(run).or_insert_with(|| {
            self.new_runs.push(run);
            RunSlot::new()
        })
    }

    pub(crate) fn park(&mut self, run: i64, messages: impl IntoIterator<Item = LeasedMessage>) {
        let slot = self.slot(run);
        let before = slot.parked.len();
        slot.parked.extend(messages);
        slot.used_at = Instant::now();
        slot.changed.notify_one();
        let added = slot.parked.len() - before;
        self.parked += added;
    }

    pub(crate) fn take_parked(&mut self, run: i64) -> VecDeque<LeasedMessage> {
        let parked = self.slots.get_mut(&run).map(|slot| &mut slot.parked);
        let parked = parked.map(std::mem::take).unwrap_or_default();
        self.parked -= parked.len();
        parked
    }

    pub(crate) fn drop_lost_messages(&mut self) {
        for slot in self.slots.values_mut() {
            slot.parked.retain(|parked| parked.lease.is_held());
        }
        self.parked = self.slots.values().map(|slot| slot.parked.len()).sum();
    }
}
