//! The model over the whole space of small but complete configurations; and the test for the test:
//! with a part of the protocol removed it finds the counterexample.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests that print how many states there are"
)]

use bucket_brigade_simulation::model::{
    ExplorationResult, explore_model, model_configurations, sabotaged_model, shortest_violation,
};
use bucket_brigade_simulation::sabotage::Sabotage;

/// Explores one configuration by name.
fn explore_by_name(name: &str) -> ExplorationResult {
    let mut all = model_configurations().into_iter();
    let (_, brigade) = all.find(|(other, _)| *other == name).unwrap();
    let explored = explore_model(brigade, 2);
    println!(
        "{name}: {} states, depth {}, {:?}",
        explored.states, explored.depth, explored.elapsed
    );
    for (name, steps) in &explored.violations {
        println!("{name}:\n    {}", steps.join("\n    "));
    }
    explored
}

/// No violation, and all of this reached.
fn assert_holds(name: &str, reached: &[&str]) {
    let explored = explore_by_name(name);
    assert!(explored.violations.is_empty());
    for one in reached {
        assert!(explored.reached.contains(one), "never reached: {one}");
    }
}

#[test]
fn one_row() {
    let reached = [
        "a row is moved",
        "a change is recorded",
        "a failure is recorded",
        "an orphan is recorded",
        "a message is dead",
        "a dead letter is deleted",
        "both consumers hold one message",
        "a lost lease is let go",
    ];
    assert_holds("one row", &reached);
}

#[test]
fn a_row_without_an_object() {
    assert_holds("one row without an object", &["a failure is recorded"]);
}

#[test]
fn a_poison_message() {
    let reached = ["a row is moved", "a message is dead"];
    assert_holds("one row and a poison message", &reached);
}

#[test]
fn two_rows_with_one_object() {
    assert_holds("two rows with one object", &["a row is moved"]);
}

#[test]
fn a_locked_row() {
    let name = "one row, locked, consumers asked to stop";
    let reached = [
        "a locked row fails",
        "a row moves while an application holds its key",
    ];
    assert_holds(name, &reached);
}

#[test]
fn a_trigger_that_rewrites_the_path() {
    let name = "one row with a trigger that rewrites its path";
    assert_holds(name, &["a path was rewritten", "a message is dead"]);
}

#[test]
fn a_damaged_row_and_a_database_that_looks_so() {
    let name = "one damaged row, the database under suspicion";
    assert_holds(name, &["a damaged row fails", "a message is dead"]);
}

#[test]
fn a_silent_connection() {
    assert_holds("one row, two silent connections", &["a row is moved"]);
}

#[test]
fn two_runs_on_one_queue() {
    let name = "one row in each of two runs";
    assert_holds(name, &["a row of each run is moved", "a message is dead"]);
}

#[test]
fn a_companion() {
    let name = "one row with a companion, written to";
    assert_holds(
        name,
        &["a row is moved", "a companion of the application's is kept"],
    );
}

#[test]
fn without_a_try_without_rows_an_outage_is_a_rows_failure() {
    assert_violates(Sabotage::UntestedSuspicion, "I10");
}

/// The test for the test: with this missing, this is what breaks first.
fn assert_violates(sabotage: Sabotage, invariant: &str) {
    let sabotaged = sabotaged_model(sabotage).unwrap();
    let found = shortest_violation(&sabotaged).unwrap();
    println!("{sabotage:?}: {:#?}", found.violations);
    let mut broken = found.violations.keys();
    assert!(broken.any(|name| name.starts_with(invariant)));
}

#[test]
fn without_the_compare_and_set_a_write_of_the_application_is_lost() {
    assert_violates(Sabotage::NoCompareAndSet, "I3: the application's writes");
}

#[test]
fn without_the_conditional_copy_an_object_of_the_application_is_overwritten() {
    assert_violates(Sabotage::UnconditionalCopy, "I3: its objects");
}

#[test]
fn with_the_delete_before_the_commit_a_row_is_forgotten() {
    assert_violates(Sabotage::DeleteBeforeCommit, "I5");
}

#[test]
fn without_a_look_at_what_was_stored_a_path_names_no_object() {
    assert_violates(Sabotage::UncheckedPath, "I1");
}

#[test]
fn with_a_dead_letter_that_is_not_sent_a_message_is_lost() {
    assert_violates(Sabotage::UnsentDeadLetter, "I5");
}

#[test]
fn with_runs_mixed_up_a_row_of_the_other_run_is_forgotten() {
    assert_violates(Sabotage::RunsMixedUp, "I5");
}

#[test]
fn without_companions_a_moved_image_lacks_its_own() {
    assert_violates(Sabotage::ForgottenCompanions, "I1: every moved image");
}
