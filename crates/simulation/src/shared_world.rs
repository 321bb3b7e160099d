//! The world that all processes of a simulation share, its clock and its dice; and the invariants that
//! are looked at after every single change.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket_brigade_common::ledger::fleet_control::FleetLimits;
use bucket_brigade_common::message::decode;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::row_id::IdColumnType;
use fastrand::Rng;
use tokio::time::Instant;

use crate::fault_rates::{CallOutcome, FaultRates};
use crate::sabotage::Sabotage;
use crate::world::{
    MemoryBuckets, MemoryQueue, MemoryTable, NEW_PREFIX, OLD_PREFIX, RUN, world_path_rule,
};

/// The redrive policy, as the documentation recommends it.
const MAX_RECEIVE_COUNT: u32 = 5;

#[derive(Debug)]
pub struct WorldState {
    pub run: i64,
    pub table: MemoryTable,
    pub buckets: MemoryBuckets,
    pub mailbox: MemoryQueue,
    /// When messages in flight become visible.
    pub visible_at: BTreeMap<u64, Instant>,
    /// What the application wrote last to each row; none for a deleted one.
    pub written: BTreeMap<String, Option<String>>,
    /// The bytes the application put last at each key.
    pub puts: BTreeMap<String, String>,
    pub violations: Vec<String>,
    pub fleet_limits: FleetLimits,
    /// How bad it is.
    pub fault_rates: FaultRates,
    pub sabotage: Sabotage,
    /// Whether images have companions, in every other seed.
    pub has_companions: bool,
    pub dice: Rng,
    /// What happened so far, as a checksum: two runs of a seed must agree on it.
    pub trace: u64,
    /// Faults injected, second deliveries included.
    pub faults: u64,
}

#[derive(Debug)]
pub struct SharedWorld(Mutex<WorldState>);

impl SharedWorld {
    pub fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut dice = Rng::with_seed(seed);
        Self(Mutex::new(WorldState {
            run: RUN,
            table: MemoryTable::default(),
            buckets: MemoryBuckets::default(),
            mailbox: MemoryQueue::new(MAX_RECEIVE_COUNT),
            visible_at: BTreeMap::new(),
            written: BTreeMap::new(),
            puts: BTreeMap::new(),
            violations: Vec::new(),
            fleet_limits: FleetLimits::default(),
            fault_rates: FaultRates::random(&mut dice),
            sabotage,
            has_companions: seed % 2 == 1,
            dice,
            trace: seed,
            faults: 0,
        }))
    }

    /// Looks at the world, or changes it from outside.
    pub fn lock(&self) -> MutexGuard<'_, WorldState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of the next call: its way there, its way back, its outcome.
    pub fn pick_call_outcome(&self) -> (Duration, Duration, CallOutcome) {
        let things = &mut *self.lock();
        let (there, back) = things.fault_rates.pick_latencies(&mut things.dice);
        let outcome = things.fault_rates.pick_outcome(&mut things.dice);
        things.faults += u64::from(outcome != CallOutcome::Success);
        (there, back, outcome)
    }

    pub fn record_call(&self, name: &str, number: u64, outcome: u64) {
        let mut things = self.lock();
        for byte in name.bytes().map(u64::from).chain([number, outcome]) {
            // FNV-1a: any mixing will do.
            things.trace = (things.trace ^ byte).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Changes the world, and looks whether all that must hold still does.
    pub fn apply_change<T>(&self, act: impl FnOnce(&mut WorldState) -> T) -> T {
        let things = &mut *self.lock();
        let answer = act(things);
        things.record_violations();
        answer
    }
}

impl WorldState {
    /// Throws the dice: true in so many of a hundred cases.
    pub fn roll_fault(&mut self, percent: u32) -> bool {
        let happens = self.dice.u32(0..100) < percent;
        self.faults += u64::from(happens);
        happens
    }

    /// An operator pauses the run, limits it, or lets it go again, now and then. Which of two consumers
    /// comes first is different each time: both may be left out for a while.
    pub fn change_fleet_limits(&mut self) {
        let dice = &mut self.dice;
        let (number, acts) = (dice.u32(0..100), self.fault_rates.limit_changes);
        self.fleet_limits = match number {
            number if number < acts => FleetLimits {
                paused: Some("paused".into()),
                ..FleetLimits::default()
            },
            number if number < 2 * acts => FleetLimits {
                concurrency: Some(dice.u64(1..4)),
                other_consumers: 1,
                preceding_consumers: dice.u64(0..2),
                ..FleetLimits::default()
            },
            number if number < 3 * acts => FleetLimits {
                rate: Some(f64::from(dice.u32(1..9))),
                ..FleetLimits::default()
            },
            70.. => FleetLimits::default(),
            _ => return,
        };
    }

    /// I1 and I3, which hold at every moment.
    fn record_violations(&mut self) {
        let WorldState {
            table,
            buckets,
            written,
            puts,
            violations,
            ..
        } = self;
        for (id, path) in &table.rows {
            let is_missing = path.starts_with(OLD_PREFIX) && !written.contains_key(id);
            if buckets.object_at_path(path).is_none() && !is_missing {
                violations.push(format!("I1: row {id}: '{path}' names no object"));
            }
            let is_moved = !written.contains_key(id) && path.starts_with(NEW_PREFIX);
            if is_moved && buckets.lacks_companion(path) {
                violations.push(format!("I1: row {id}: '{path}' lacks its companion"));
            }
        }
        for (id, path) in written {
            if table.rows.get(id) != path.as_ref() {
                violations.push(format!("I3: row {id}: the application's write was lost"));
            }
        }
        for (key, bytes) in puts {
            if buckets.destination.get(key) != Some(bytes) {
                violations.push(format!("I3: '{key}' was overwritten"));
            }
        }
        violations.truncate(20);
    }

    /// A message was deleted, which is allowed only when its row asks for nothing any more, and that is on
    /// record; or when its failure is, and the message in the dead-letter queue.
    pub fn check_deletion(&mut self, body: &str, is_dead_letter: bool) {
        let Ok(task) = decode(body, self.run, IdColumnType::Text, &world_path_rule()) else {
            self.violations.push(format!("I5: deleted: {body}"));
            return;
        };
        let id = task.id.as_str();
        let path = self.table.rows.get(id);
        let asks = path == Some(&task.route.old_path);
        let is_elsewhere_in_scope = path.is_some_and(|path| path.starts_with(OLD_PREFIX));
        let is_early = if is_dead_letter {
            asks && !self.table.failures.contains_key(id)
        } else {
            asks || self.table.count_states(id) != 1 && !is_elsewhere_in_scope
        };
        if is_early {
            let message = format!("I5: row {id}: its message was deleted too early");
            self.violations.push(message);
        }
    }

    /// Receives up to `most` messages in any order, hidden ones among them now and then.
    pub fn receive_messages(&mut self, most: usize, visibility: Duration) -> Vec<ReceivedMessage> {
        let now = Instant::now();
        let mut numbers: Vec<u64> = self.mailbox.queued.keys().copied().collect();
        self.dice.shuffle(&mut numbers);
        let mut messages = Vec::new();
        for number in numbers {
            if messages.len() == most {
                break;
            }
            let is_due = self.visible_at.get(&number).is_none_or(|at| *at <= now);
            let is_delivered = is_due || {
                let percent = self.fault_rates.duplicate_deliveries;
                self.dice.u32(0..10) == 0 && self.roll_fault(percent)
            };
            if is_delivered && let Some(message) = self.mailbox.receive(number) {
                self.visible_at.insert(number, now + visibility);
                messages.push(message);
            }
        }
        messages
    }

    pub fn is_drained(&self) -> bool {
        self.mailbox.queued.is_empty()
    }
}
