//! What must hold in every state, and what must be reachable for the model to mean anything.

use std::collections::BTreeSet;

use bucket_brigade_consumer::protocol::Action;
use stateright::Property;

use super::consumer::DAMAGED_ROW;
use super::{BrigadeModel, ModelState, RowLock, RunState};
use crate::world::{NEW_PREFIX, OLD_PREFIX};

/// What must never be otherwise, by the invariants of the design.
pub(super) fn all_properties() -> Vec<Property<BrigadeModel>> {
    let mut properties = safety_properties();
    properties.extend(reachability_properties());
    properties
}

fn safety_properties() -> Vec<Property<BrigadeModel>> {
    vec![
        Property::always("I1: every path names an object", |model, state| {
            in_each_run(state, |run| every_path_names_an_object(model, run))
        }),
        Property::always("I1: every moved image has its companion", |_, state| {
            in_each_run(state, companions_are_there)
        }),
        Property::always("I3: the application's writes win", |_, state| {
            in_each_run(state, writes_win)
        }),
        Property::always("I3: its objects are never overwritten", |_, state| {
            in_each_run(state, objects_are_kept)
        }),
        Property::always("I4: one state at most, and the true one", |_, state| {
            in_each_run(state, states_are_true)
        }),
        Property::always("I4: nothing is forgotten", |_, state| {
            nothing_is_forgotten(state)
        }),
        Property::always("I5: never deleted early", |_, state: &ModelState| {
            !state.deleted_early && !state.deleted_foreign_message
        }),
        Property::always("I6: what is on record is what was copied", |_, state| {
            in_each_run(state, evidence_is_true)
        }),
        Property::always("I7: the source stays", |model, state| {
            in_each_run(state, |run| sources_stay(model, run))
        }),
        Property::always(
            "I10: trouble of the database's is no row's",
            |model, state| in_each_run(state, |run| only_damaged_rows_fail_so(model, run)),
        ),
    ]
}

fn in_each_run(state: &ModelState, holds: impl Fn(&RunState) -> bool) -> bool {
    state.runs.iter().all(holds)
}

fn sources_stay(model: &BrigadeModel, run: &RunState) -> bool {
    let mut seeded = model.rows.iter().filter(|(.., has_object)| *has_object);
    seeded.all(|(_, path, _)| run.buckets.source.contains_key(*path))
}

fn only_damaged_rows_fail_so(model: &BrigadeModel, run: &RunState) -> bool {
    let mut failures = run.table.failures.iter();
    failures.all(|(id, failed)| failed.code != DAMAGED_ROW || model.is_damaged(id, &failed.path))
}

/// What a model that never gets there could not be trusted with.
fn reachability_properties() -> Vec<Property<BrigadeModel>> {
    vec![
        Property::sometimes("a row is moved", |_, state: &ModelState| {
            !state.runs[0].table.moves.is_empty()
        }),
        Property::sometimes("a row of each run is moved", |_, state: &ModelState| {
            in_each_run(state, |run| !run.table.moves.is_empty())
        }),
        Property::sometimes("a change is recorded", |_, state: &ModelState| {
            !state.runs[0].table.changes.is_empty()
        }),
        Property::sometimes("a failure is recorded", |_, state: &ModelState| {
            !state.runs[0].table.failures.is_empty()
        }),
        Property::sometimes("an orphan is recorded", |_, state: &ModelState| {
            !state.runs[0].table.orphans.is_empty()
        }),
        Property::sometimes("a path was rewritten", |_, state: &ModelState| {
            let mut failures = state.runs[0].table.failures.values();
            failures.any(|failed| failed.code == "PathRewritten")
        }),
        Property::sometimes("a damaged row fails", |_, state: &ModelState| {
            let mut failures = state.runs[0].table.failures.values();
            failures.any(|failed| failed.code == DAMAGED_ROW)
        }),
        Property::sometimes(
            "a companion of the application's is kept",
            |_, state: &ModelState| {
                let mut failures = state.runs[0].table.failures.values();
                failures.any(|failed| failed.code == "CompanionConflict")
            },
        ),
        Property::sometimes("a locked row fails", |_, state: &ModelState| {
            let mut failures = state.runs[0].table.failures.values();
            failures.any(|failed| failed.code == "RowLocked")
        }),
        Property::sometimes(
            "a row moves while an application holds its key",
            |_, state: &ModelState| {
                let lock = state.lock.as_ref();
                lock.is_some_and(|(id, lock)| {
                    *lock == RowLock::KeyShare && state.runs[0].table.moves.contains_key(id)
                })
            },
        ),
        Property::sometimes("a message is dead", |_, state: &ModelState| {
            !state.mailbox.dead_letters.is_empty()
        }),
        Property::sometimes("a dead letter is deleted", |_, state: &ModelState| {
            let in_hand = state.consumers.iter().flatten();
            let mut deleted = in_hand.filter(|in_hand| in_hand.action == Action::Delete);
            deleted.any(|in_hand| {
                let letters = &state.mailbox.dead_letters;
                letters.contains(&in_hand.message.body)
            })
        }),
        Property::sometimes(
            "both consumers hold one message",
            |_, state: &ModelState| consumers_share_message(state),
        ),
        Property::sometimes("a lost lease is let go", |_, state: &ModelState| {
            let let_go = |in_hand: &super::InHand| in_hand.action == Action::Abandon;
            state.consumers.iter().flatten().any(let_go)
        }),
    ]
}

/// A row seeded without an object is the exception, until it is changed.
fn every_path_names_an_object(model: &BrigadeModel, run: &RunState) -> bool {
    let missing: BTreeSet<(&str, &str)> = model
        .rows
        .iter()
        .filter(|(.., has_object)| !has_object)
        .map(|(id, path, _)| (*id, *path))
        .collect();
    run.table.rows.iter().all(|(id, path)| {
        run.buckets.object_at_path(path).is_some()
            || missing.contains(&(id.as_str(), path.as_str()))
    })
}

fn companions_are_there(run: &RunState) -> bool {
    let mut paths = run.table.moves.values().map(|moved| &moved.new_path);
    paths.all(|path| run.puts.contains_key(path) || !run.buckets.lacks_companion(path))
}

/// A path of the application's outside the old prefix stays as it is; one under the old prefix is moved,
/// which is what the migration is for.
fn writes_win(run: &RunState) -> bool {
    run.written.iter().all(|(id, path)| {
        let now = run.table.rows.get(id);
        match path {
            Some(path) if path.starts_with(OLD_PREFIX) => now.is_some(),
            path => now == path.as_ref(),
        }
    })
}

fn objects_are_kept(run: &RunState) -> bool {
    let holds = |key: &String| run.buckets.destination.get(key);
    run.puts
        .iter()
        .all(|(key, bytes)| holds(key) == Some(bytes))
}

fn states_are_true(run: &RunState) -> bool {
    let table = &run.table;
    let ids = table.moves.keys().chain(table.changes.keys());
    let mut ids = ids.chain(table.failures.keys());
    ids.all(|id| {
        let path = table.rows.get(id);
        // A row that the application renamed under the old prefix is fed, and moved, once more.
        let is_at_end = path.is_none_or(|path| !path.starts_with(OLD_PREFIX));
        let has_ended = table.changes.contains_key(id) || table.moves.contains_key(id);
        table.count_states(id) == 1 && (is_at_end || !has_ended || run.written.contains_key(id))
    })
}

/// When nothing is under way, every row is done, or on record as failed, or a feeder's next sweep feeds it.
fn nothing_is_forgotten(state: &ModelState) -> bool {
    let is_idle = state.consumers.iter().all(Option::is_none) && state.mailbox.queued.is_empty();
    !is_idle || in_each_run(state, |run| all_rows_are_known(run, state.upload.is_some()))
}

fn all_rows_are_known(run: &RunState, is_uploading: bool) -> bool {
    let table = &run.table;
    table.rows.iter().all(|(id, path)| {
        let is_on_record = table.failures.contains_key(id);
        let is_written = run.written.contains_key(id) || is_uploading;
        let is_done = path.starts_with(NEW_PREFIX) && (table.moves.contains_key(id) || is_written);
        is_done || is_on_record || table.needs_move(id, path) || is_written
    })
}

/// The ledger holds a move only of what was copied, with the source's bytes for its ETag.
fn evidence_is_true(run: &RunState) -> bool {
    run.table.moves.iter().all(|(id, moved)| {
        let source = run.buckets.source.get(&moved.old_path);
        let is_there = run.buckets.destination.contains_key(&moved.new_path);
        let is_written = run.written.contains_key(id);
        let path = run.table.rows.get(id);
        source == Some(&moved.etag) && is_there && (is_written || path == Some(&moved.new_path))
    })
}

fn consumers_share_message(state: &ModelState) -> bool {
    match &state.consumers {
        [Some(one), Some(other)] => one.message.message_id == other.message.message_id,
        _ => false,
    }
}
