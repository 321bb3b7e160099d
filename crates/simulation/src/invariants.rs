//! What must hold once a migration has ended.

use bucket_brigade_feeder::outcome::FeedOutcome;

use crate::shared_world::WorldState;
use crate::world::OLD_PREFIX;

/// Everything that does not hold at the end, beside what was found on the way.
pub fn check_invariants(things: &WorldState, outcome: &FeedOutcome) -> Vec<String> {
    let mut wrong = things.violations.clone();
    let table = &things.table;
    for (id, path) in &table.rows {
        let states = table.count_states(id);
        let is_written = things.written.contains_key(id);
        if path.starts_with(OLD_PREFIX) && !table.failures.contains_key(id) {
            wrong.push(format!("I4: row {id} was forgotten at '{path}'"));
        }
        if states > 1 || states == 0 && !is_written {
            wrong.push(format!("I4: row {id} is in {states} states"));
        }
    }
    for (id, moved) in &table.moves {
        let has = things.buckets.source.get(&moved.old_path) == Some(&moved.etag);
        if !has {
            wrong.push(format!("I2, I7: row {id}: its evidence is not its source"));
        }
    }
    for (id, failed) in &table.failures {
        if table.rows.get(id) != Some(&failed.path) {
            wrong.push(format!("I4: row {id} did not fail: it has changed"));
        }
    }
    let counts = (table.moves.len(), table.changes.len(), table.failures.len());
    let numbers = &outcome.progress;
    let counted = (numbers.moved, numbers.changed, numbers.failed);
    let found = [counts.0, counts.1, counts.2].map(|count| u64::try_from(count).unwrap_or(0));
    if counted != (found[0], found[1], found[2]) {
        wrong.push(format!("I4: counted {counted:?}, found {counts:?}"));
    }
    wrong
}
