//! The model: every order in which feeders, two consumers and the application can act on a small
//! world, with a crash, an expired lease, a second delivery or a lost answer between any two steps.
//!
//! What a consumer does is [`Protocol`], the very function that production calls; what it writes down
//! is made by production's own functions too. The world is [`crate::world`]; here is only who may act
//! when, and what must hold in every state.

mod consumer;
mod environment;
mod explore;
mod properties;

use std::collections::BTreeMap;

use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_consumer::protocol::{Action, MoveProtocol};
use stateright::{Model, Property};

use crate::sabotage::Sabotage;
use crate::world::{MemoryBuckets, MemoryQueue, MemoryTable};

pub use consumer::ModelOutcome;
pub use environment::{RowLock, RowWrite};
pub use explore::{
    ExplorationResult, explore_model, model_configurations, sabotaged_model, shortest_violation,
};

/// A small world, and how much may happen in it.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that the world does or does not"
)]
pub struct BrigadeModel {
    /// How many runs share the queue, each with the same rows in a table and buckets of its own.
    pub runs: usize,
    /// The rows: id, path and whether its object exists.
    pub rows: Vec<(&'static str, &'static str, bool)>,
    /// Bodies in the queue from the start, beside what the feeder sends.
    pub foreign_messages: Vec<&'static str>,
    /// How many messages the feeder sends at most.
    pub sends: u8,
    /// How often the application writes, to rows of the first run.
    pub writes: u8,
    /// How many transactions of the application lock a row and stay open.
    pub locks: u8,
    /// Whether a unique index holds the path, so that setting it needs the stronger lock.
    pub path_is_key: bool,
    /// Whether a trigger gives every row another path than the one asked for.
    pub rewrites_path: bool,
    /// Whether the database refuses each row as seeded, as it does a damaged value: what looks like its own trouble
    /// passes without rows.
    pub has_damaged_rows: bool,
    /// How many statements it refuses so with rows and without.
    pub suspicions: u8,
    /// Whether each image has a companion, the application's own included.
    pub has_companions: bool,
    /// How many requests a silent connection carries out at any later time, or never.
    pub silences: u8,
    /// Whether a consumer may be asked to stop in the middle.
    pub stops: bool,
    pub max_receive_count: u32,
    pub sabotage: Sabotage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelState {
    pub runs: Vec<RunState>,
    pub mailbox: MemoryQueue,
    pub consumers: [Option<InHand>; 2],
    /// A page that a run's feeder has read and not yet sent: run, id and path.
    pub page: Option<(usize, String, String)>,
    /// What the application has stored and not yet written into its row: id and path.
    pub upload: Option<(String, String)>,
    /// The row that an open transaction of the application has locked.
    pub lock: Option<(String, RowLock)>,
    /// Requests that were given up, and whose effect may still come.
    pub given_up: Vec<InHand>,
    pub remaining: RemainingEvents,
    /// A message was deleted while its row still asked for the move.
    pub deleted_early: bool,
    /// A message of which the feeder knows nothing was deleted.
    pub deleted_foreign_message: bool,
}

/// What belongs to one run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RunState {
    /// The application's table and the ledger.
    pub table: MemoryTable,
    pub buckets: MemoryBuckets,
    /// What the application wrote last to each row; none for a deleted one.
    pub written: BTreeMap<String, Option<String>>,
    /// The bytes the application put last at each key.
    pub puts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemainingEvents {
    sends: u8,
    writes: u8,
    locks: u8,
    silences: u8,
    suspicions: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InHand {
    /// The place of its run.
    run: usize,
    message: ReceivedMessage,
    task: Option<MoveTask>,
    protocol: MoveProtocol,
    action: Action,
}

impl BrigadeModel {
    fn is_damaged(&self, id: &str, path: &str) -> bool {
        let mut rows = self.rows.iter();
        self.has_damaged_rows
            && rows.any(|(seeded, old_path, _)| (*seeded, *old_path) == (id, path))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelAction {
    /// A run's feeder reads this row.
    FeederReads(usize, String),
    /// The feeder sends what it read; when the answer is lost it will send it again.
    FeederSends {
        /// Whether the queue's answer reaches it.
        answered: bool,
    },
    FeederCrashes,
    /// A consumer receives a message, hidden from others or not.
    Receive(usize, u64),
    /// A message's visibility timeout ends.
    Expire(u64),
    /// A consumer takes its next step.
    ConsumerAction(usize, ModelOutcome),
    Crash(usize),
    /// The application begins to write to a row.
    Write(String, RowWrite),
    /// The application points its row at what it stored.
    PointRow,
    /// A transaction of the application locks a row and stays open.
    Lock(String, RowLock),
    /// It ends.
    Unlock,
    /// What was given up takes effect after all.
    LateEffect(usize),
}

impl BrigadeModel {
    fn seed_run(&self, run: usize) -> RunState {
        let mut seeded = RunState::default();
        for (id, path, has_object) in &self.rows {
            seeded.table.rows.insert((*id).into(), (*path).into());
            if *has_object {
                let bytes = format!("bytes of {path} in run {run}");
                seeded.buckets.put_source(path, bytes, self.has_companions);
            }
        }
        seeded
    }
}

impl Model for BrigadeModel {
    type State = ModelState;
    type Action = ModelAction;

    fn init_states(&self) -> Vec<ModelState> {
        let mut state = ModelState {
            runs: (0..self.runs).map(|run| self.seed_run(run)).collect(),
            mailbox: MemoryQueue::new(self.max_receive_count),
            consumers: [None, None],
            page: None,
            upload: None,
            lock: None,
            given_up: Vec::new(),
            remaining: RemainingEvents {
                sends: self.sends,
                writes: self.writes,
                locks: self.locks,
                silences: self.silences,
                suspicions: self.suspicions,
            },
            deleted_early: false,
            deleted_foreign_message: false,
        };
        for body in &self.foreign_messages {
            state.mailbox.send((*body).into());
        }
        vec![state]
    }

    fn actions(&self, state: &ModelState, actions: &mut Vec<ModelAction>) {
        state.environment_actions(actions);
        for number in 0..state.consumers.len() {
            state.consumer_actions(number, self, actions);
        }
    }

    fn next_state(&self, state: &ModelState, action: ModelAction) -> Option<ModelState> {
        let mut next = state.clone();
        match action {
            ModelAction::Receive(consumer, number) => {
                next.receive_message(consumer, number, self);
            }
            ModelAction::ConsumerAction(consumer, outcome) => {
                next.take_action(consumer, outcome, self);
            }
            ModelAction::LateEffect(index) => next.apply_late_effect(index, self),
            ModelAction::Crash(consumer) => next.consumers[consumer] = None,
            other => next.apply_environment_action(&other, self),
        }
        // What changes nothing leads nowhere new.
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all_properties()
    }
}
