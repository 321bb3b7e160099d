//! The configurations that are explored, and what was found in them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stateright::{Checker, CheckerBuilder, Expectation, Model};

use super::{BrigadeModel, ModelAction, ModelState};
use crate::sabotage::Sabotage;

/// No counterexample needs more steps.
const MAX_DEPTH: usize = 20;

/// What the exploration of one configuration found.
#[derive(Debug, Clone)]
pub struct ExplorationResult {
    pub states: usize,
    /// Steps on the shortest way to the farthest of them.
    pub depth: usize,
    pub elapsed: Duration,
    /// What does not hold, each with the shortest way there, a step a line.
    pub violations: BTreeMap<String, Vec<String>>,
    /// What could be reached, by name.
    pub reached: Vec<&'static str>,
}

/// Explores every state, with so many threads.
pub fn explore_model(brigade: BrigadeModel, threads: usize) -> ExplorationResult {
    run_checker(brigade.checker().threads(threads))
}

/// The least number of steps in which something goes wrong, and how. None when nothing does.
pub fn shortest_violation(brigade: &BrigadeModel) -> Option<ExplorationResult> {
    let deeper = |depth| run_checker(brigade.clone().checker().target_max_depth(depth));
    let mut found = (2..MAX_DEPTH).map(deeper);
    found.find(|explored| !explored.violations.is_empty())
}

fn run_checker(builder: CheckerBuilder<BrigadeModel>) -> ExplorationResult {
    let started = Instant::now();
    let checker = builder.spawn_bfs().join();
    let (mut violations, mut reached) = (BTreeMap::new(), Vec::new());
    for (name, path) in checker.discoveries() {
        if is_reachability_property(checker.model(), name) {
            reached.push(name);
            continue;
        }
        let steps = path.into_vec();
        let steps = steps
            .iter()
            .filter_map(|(state, action)| Some(describe_action(state, action.as_ref()?)));
        violations.insert(name.to_owned(), steps.collect());
    }
    ExplorationResult {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        elapsed: started.elapsed(),
        violations,
        reached,
    }
}

/// An action, and for a consumer's step which one it is.
fn describe_action(state: &ModelState, action: &ModelAction) -> String {
    let ModelAction::ConsumerAction(consumer, outcome) = action else {
        return format!("{action:?}");
    };
    let in_hand = state.consumers[*consumer].as_ref();
    let step = in_hand.map_or_else(String::new, |in_hand| format!("{:?}", in_hand.action));
    format!("Consumer({consumer}) {step}: {outcome:?}")
}

fn is_reachability_property(brigade: &BrigadeModel, name: &str) -> bool {
    let properties = brigade.properties();
    let found = properties.iter().find(|property| property.name == name);
    found.is_some_and(|property| matches!(property.expectation, Expectation::Sometimes))
}

/// One row, fed once, delivered twice, written to once by the application.
const BASE_MODEL: BrigadeModel = BrigadeModel {
    runs: 1,
    rows: Vec::new(),
    foreign_messages: Vec::new(),
    sends: 1,
    writes: 1,
    locks: 0,
    path_is_key: false,
    rewrites_path: false,
    has_damaged_rows: false,
    suspicions: 0,
    has_companions: false,
    silences: 0,
    stops: false,
    max_receive_count: 2,
    sabotage: Sabotage::None,
};

/// The configurations by name. Each is small, and complete: two consumers, the feeder, the application,
/// with every crash, second delivery, expiry and lost answer between any two steps.
pub fn model_configurations() -> Vec<(&'static str, BrigadeModel)> {
    let mut configurations = deliveries_and_writes();
    configurations.extend(what_databases_do());
    configurations
}

fn small() -> BrigadeModel {
    BrigadeModel {
        rows: vec![("1", "image/1", true)],
        ..BASE_MODEL
    }
}

fn what_databases_do() -> Vec<(&'static str, BrigadeModel)> {
    vec![
        (
            "one row whose path is a key, locked",
            BrigadeModel {
                locks: 1,
                path_is_key: true,
                ..small()
            },
        ),
        (
            "one row with a trigger that rewrites its path",
            BrigadeModel {
                rewrites_path: true,
                max_receive_count: 3,
                ..small()
            },
        ),
        (
            "one damaged row, the database under suspicion",
            BrigadeModel {
                has_damaged_rows: true,
                suspicions: 1,
                ..small()
            },
        ),
        (
            "one row, the database under suspicion twice",
            BrigadeModel {
                suspicions: 2,
                ..small()
            },
        ),
        (
            "one row, a silent connection",
            BrigadeModel {
                silences: 1,
                ..small()
            },
        ),
        (
            "one row, two silent connections",
            BrigadeModel {
                silences: 2,
                writes: 0,
                ..small()
            },
        ),
    ]
}

fn deliveries_and_writes() -> Vec<(&'static str, BrigadeModel)> {
    vec![
        ("one row", small()),
        (
            "one row, received three times",
            BrigadeModel {
                max_receive_count: 3,
                ..small()
            },
        ),
        (
            "one row, locked, consumers asked to stop",
            BrigadeModel {
                locks: 1,
                stops: true,
                ..small()
            },
        ),
        (
            "one row without an object",
            BrigadeModel {
                rows: vec![("1", "image/1", false)],
                max_receive_count: 3,
                ..small()
            },
        ),
        (
            "one row and a poison message",
            BrigadeModel {
                foreign_messages: vec!["{}"],
                writes: 0,
                ..small()
            },
        ),
        (
            "two rows with one object",
            BrigadeModel {
                rows: vec![("1", "image/1", true), ("2", "image/1", true)],
                sends: 2,
                writes: 0,
                max_receive_count: 1,
                ..small()
            },
        ),
        (
            "one row, written to twice",
            BrigadeModel {
                writes: 2,
                ..small()
            },
        ),
        (
            "one row, fed twice, locked",
            BrigadeModel {
                sends: 2,
                writes: 0,
                locks: 1,
                ..small()
            },
        ),
        (
            "one row in each of two runs",
            BrigadeModel {
                runs: 2,
                sends: 2,
                writes: 0,
                max_receive_count: 1,
                ..small()
            },
        ),
        (
            "one row with a companion, written to",
            BrigadeModel {
                has_companions: true,
                ..small()
            },
        ),
        (
            "one row, fed twice, written to",
            BrigadeModel {
                sends: 2,
                ..small()
            },
        ),
    ]
}

/// The first configuration with this broken, in a world where it matters.
pub fn sabotaged_model(sabotage: Sabotage) -> Option<BrigadeModel> {
    let (_, brigade) = model_configurations().into_iter().next()?;
    Some(BrigadeModel {
        sabotage,
        rewrites_path: sabotage == Sabotage::UncheckedPath,
        suspicions: u8::from(sabotage == Sabotage::UntestedSuspicion),
        has_companions: sabotage == Sabotage::ForgottenCompanions,
        runs: if sabotage == Sabotage::RunsMixedUp {
            2
        } else {
            1
        },
        ..brigade
    })
}
