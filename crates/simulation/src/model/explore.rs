//! The configurations that are explored, and what was found in them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stateright::{Checker, CheckerBuilder, Expectation, Model};

use super::{Action, Brigade, State};
use crate::sabotage::Sabotage;

/// No counterexample needs more steps.
const DEEPEST: usize = 20;

/// What the exploration of one configuration found.
#[derive(Debug, Clone)]
pub struct Explored {
    /// Distinct states.
    pub states: usize,
    /// Steps on the shortest way to the farthest of them.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// What does not hold, each with the shortest way there, a step a line.
    pub violations: BTreeMap<String, Vec<String>>,
    /// What could be reached, by name.
    pub reached: Vec<&'static str>,
}

/// Explores every state, with so many threads.
pub fn explore(brigade: Brigade, threads: usize) -> Explored {
    search(brigade.checker().threads(threads))
}

/// The least number of steps in which something goes wrong, and how. None when nothing does.
pub fn shortest_violation(brigade: &Brigade) -> Option<Explored> {
    let deeper = |depth| search(brigade.clone().checker().target_max_depth(depth));
    let mut found = (2..DEEPEST).map(deeper);
    found.find(|explored| !explored.violations.is_empty())
}

fn search(builder: CheckerBuilder<Brigade>) -> Explored {
    let started = Instant::now();
    let checker = builder.spawn_bfs().join();
    let (mut violations, mut reached) = (BTreeMap::new(), Vec::new());
    for (name, path) in checker.discoveries() {
        if is_example(checker.model(), name) {
            reached.push(name);
            continue;
        }
        let steps = path.into_vec();
        let steps = steps
            .iter()
            .filter_map(|(state, action)| Some(told(state, action.as_ref()?)));
        violations.insert(name.to_owned(), steps.collect());
    }
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
        violations,
        reached,
    }
}

/// An action, and for a consumer's step which one it is.
fn told(state: &State, action: &Action) -> String {
    let Action::Step(consumer, outcome) = action else {
        return format!("{action:?}");
    };
    let in_hand = state.consumers[*consumer].as_ref();
    let step = in_hand.map_or_else(String::new, |in_hand| format!("{:?}", in_hand.step));
    format!("Consumer({consumer}) {step}: {outcome:?}")
}

fn is_example(brigade: &Brigade, name: &str) -> bool {
    let properties = brigade.properties();
    let found = properties.iter().find(|property| property.name == name);
    found.is_some_and(|property| matches!(property.expectation, Expectation::Sometimes))
}

/// One row, fed once, delivered twice, written to once by the application.
const SMALL: Brigade = Brigade {
    rows: Vec::new(),
    strangers: Vec::new(),
    sends: 1,
    writes: 1,
    locks: 0,
    stops: false,
    max_receive_count: 2,
    sabotage: Sabotage::None,
};

/// The configurations by name. Each is small, and complete: two consumers, the feeder, the application,
/// with every crash, second delivery, expiry and lost answer between any two steps.
pub fn configurations() -> Vec<(&'static str, Brigade)> {
    let one_row = || vec![("1", "image/1", true)];
    let small = || Brigade {
        rows: one_row(),
        ..SMALL
    };
    vec![
        ("one row", small()),
        (
            "one row, received three times",
            Brigade {
                max_receive_count: 3,
                ..small()
            },
        ),
        (
            "one row, locked, consumers asked to stop",
            Brigade {
                locks: 1,
                stops: true,
                ..small()
            },
        ),
        (
            "one row without an object",
            Brigade {
                rows: vec![("1", "image/1", false)],
                max_receive_count: 3,
                ..small()
            },
        ),
        (
            "one row and a poison message",
            Brigade {
                strangers: vec!["{}"],
                writes: 0,
                ..small()
            },
        ),
        (
            "two rows with one object",
            Brigade {
                rows: vec![("1", "image/1", true), ("2", "image/1", true)],
                sends: 2,
                writes: 0,
                max_receive_count: 1,
                ..small()
            },
        ),
        (
            "one row, written to twice",
            Brigade {
                writes: 2,
                ..small()
            },
        ),
        (
            "one row, fed twice, locked",
            Brigade {
                sends: 2,
                writes: 0,
                locks: 1,
                ..small()
            },
        ),
        (
            "one row, fed twice, written to",
            Brigade {
                sends: 2,
                ..small()
            },
        ),
    ]
}
