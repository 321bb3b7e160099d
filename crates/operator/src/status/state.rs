//! The one word for what goes on, and its reason.

use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::printable::counted;

use super::queries::WorkerStatus;
use super::queue::QueueStatus;
use crate::runs::RunSummary;

const READ_ONLY: &str = "the database takes no writes (transaction_read_only is on)";

/// What weighs most comes first: what an operator did, what is broken, what slows the work down, and
/// only then what goes well.
pub(super) fn reported_state(
    run: &RunSummary,
    workers: &[WorkerStatus],
    queue: &QueueStatus,
) -> (WorkerState, String) {
    let is = |word, reason: &str| (word, reason.to_owned());
    let some = |state| workers.iter().find(|worker| worker.state == state);
    let count = |role: &str| workers.iter().filter(|worker| worker.role == role).count();
    if let Some(paused) = &run.paused {
        return is(WorkerState::Paused, paused);
    }
    if run.is_read_only && workers.is_empty() {
        return is(WorkerState::Waiting, READ_ONLY);
    }
    let is_running = some(WorkerState::Running).is_some();
    let waiting = some(WorkerState::Waiting);
    let waiting = waiting.map(|worker| format!("{}: {}", worker.worker, worker.reason));
    let feeder = workers.iter().find(|worker| worker.role == "feeder");
    let feeder_waits = feeder.is_some_and(|feeder| feeder.state == WorkerState::Waiting);
    if let Some(waiting) = &waiting
        && (feeder_waits || !is_running)
    {
        return is(WorkerState::Waiting, waiting);
    }
    if let Some(worker) = some(WorkerState::DatabaseSlow) {
        return is(WorkerState::DatabaseSlow, &worker.reason);
    }
    let is_held =
        |worker: &&WorkerStatus| worker.role == "consumer" && worker.state == WorkerState::Paused;
    if let Some(worker) = workers.iter().find(is_held) {
        return is(WorkerState::Paused, &worker.reason);
    }
    let consumers = count("consumer");
    let resting = feeder.and_then(resting_feeder);
    if consumers == 0
        && let Some(resting) = resting
    {
        return resting;
    }
    // They may be of another run.
    let has_messages = queue.has_messages() && run.finished_at.is_none();
    if consumers == 0 && (feeder.is_some() || has_messages) {
        return is(WorkerState::Waiting, "no consumer is at work on it");
    }
    if consumers == 0 {
        return match workers.iter().find(|worker| worker.is_command()) {
            Some(command) => is(
                command.state,
                &format!("{}: {}", command.role, command.reason),
            ),
            None => idle_state(
                run,
                "no feeder is running, and no consumer is at work on it",
            ),
        };
    }
    if let Some(worker) = some(WorkerState::ThrottledByStore) {
        return is(WorkerState::ThrottledByStore, &worker.reason);
    }
    if is_running {
        let limits = run.limits.describe();
        let limits = limits.map(|limits| format!("limited to {limits}"));
        let waiting = waiting.map(|waiting| format!("but not {waiting}"));
        let reasons: Vec<String> = limits.into_iter().chain(waiting).collect();
        return is(WorkerState::Running, &reasons.join(", "));
    }
    match feeder {
        Some(feeder) if feeder.state == WorkerState::BacklogFull => {
            is(WorkerState::Waiting, "backlog full")
        }
        Some(feeder) => resting_feeder(feeder)
            .unwrap_or_else(|| is(WorkerState::Running, feeder.state.as_str())),
        None if has_messages => is(
            WorkerState::Waiting,
            "the messages left are hidden for a while",
        ),
        None => idle_state(run, "no feeder is running"),
    }
}

/// One that sends nothing for now; consumers may have gone meanwhile.
fn resting_feeder(feeder: &WorkerStatus) -> Option<(WorkerState, String)> {
    let (word, reason) = match feeder.state {
        WorkerState::Watching => (WorkerState::NothingToDo, "the feeder watches for new rows"),
        WorkerState::Paused => (WorkerState::Paused, &*feeder.reason),
        _ => return None,
    };
    Some((word, reason.to_owned()))
}

fn idle_state(run: &RunSummary, otherwise: &str) -> (WorkerState, String) {
    match (&run.finished_at, run.progress.rows_left()) {
        (Some(at), _) => (
            WorkerState::NothingToDo,
            format!("a sweep found nothing left at {at}"),
        ),
        (None, Some(left @ 1..)) => (
            WorkerState::Waiting,
            format!("{otherwise}, {} left", counted(left, "row is", "rows are")),
        ),
        (None, _) => (WorkerState::NothingToDo, otherwise.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(role: &str, state: &str, reason: &str) -> WorkerStatus {
        WorkerStatus {
            run_id: 0,
            worker: format!("{role}-1"),
            role: role.into(),
            state: state.to_owned().into(),
            reason: reason.into(),
            concurrency: 1,
            in_hand: 1,
            moved_per_second: 1.0,
            commit_seconds: None,
        }
    }

    #[test]
    fn a_condition_that_holds_is_the_reason() {
        let held = "THROTTLE_QUERY is true: select 1";
        let feeder = worker("feeder", "paused", "it is 12:00, outside FEED_WINDOW");
        let idle = worker("consumer", "nothing to do", "");
        for (consumer, expected) in [
            (
                worker("consumer", "paused", held),
                format!("paused: {held}"),
            ),
            (worker("consumer", "running", ""), "running: ".into()),
            (idle, "paused: it is 12:00, outside FEED_WINDOW".into()),
        ] {
            assert_eq!(
                state_text(&RunSummary::default(), &[feeder.clone(), consumer], 9),
                expected
            );
        }
    }

    fn state_text(run: &RunSummary, workers: &[WorkerStatus], visible: u64) -> String {
        let queue = QueueStatus {
            visible: Some(visible),
            ..QueueStatus::default()
        };
        let (word, reason) = reported_state(run, workers, &queue);
        format!("{word}: {reason}")
    }

    #[test]
    fn each_state_has_its_reason() {
        let consumer = |state, why| worker("consumer", state, why);
        let feeder = |state| worker("feeder", state, "");
        let run = RunSummary::default();
        let paused = RunSummary {
            paused: Some("by ana: release".into()),
            ..run.clone()
        };
        let finished = RunSummary {
            finished_at: Some("2026-01-01T01:00:00Z".into()),
            ..run.clone()
        };
        let check = |run: &RunSummary, workers: &[WorkerStatus], visible, expected: &str| {
            assert_eq!(state_text(run, workers, visible), expected);
        };
        let running = || consumer("running", "");
        let idle = || consumer("nothing to do", "");
        let held = [consumer("paused", "")];
        let read_only = RunSummary {
            is_read_only: true,
            ..run.clone()
        };
        check(&read_only, &[], 9, &format!("waiting: {READ_ONLY}"));
        check(&paused, &held, 9, "paused: by ana: release");
        let denied = [running(), consumer("waiting", "S3: denied")];
        check(&run, &denied, 9, "running: but not consumer-1: S3: denied");
        let all = [consumer("waiting", "S3: denied")];
        check(&run, &all, 9, "waiting: consumer-1: S3: denied");
        let feeder_waits = [running(), worker("feeder", "waiting", "SQS")];
        check(&run, &feeder_waits, 9, "waiting: feeder-1: SQS");
        let slow = [running(), consumer("database slow", "lag")];
        check(&run, &slow, 9, "database slow: lag");
        let alone = "waiting: no consumer is at work on it";
        check(&run, &[feeder("feeding")], 0, alone);
        check(&run, &[], 5, alone);
        let nothing = "nothing to do: no feeder is running, and no consumer is at work on it";
        check(&run, &[], 0, nothing);
        let mut begun = run.clone();
        (begun.progress.in_scope, begun.progress.moved) = (Some(3), 1);
        let waiting = "waiting: no feeder is running, 2 rows are left";
        check(&begun, &[idle()], 0, waiting);
        let command = [worker("verify", "running", "1 of 2")];
        check(&run, &command, 0, "running: verify: 1 of 2");
        let nothing = "nothing to do: a sweep found nothing left at 2026-01-01T01:00:00Z";
        check(&finished, &[idle()], 0, nothing);
        let throttled = [running(), consumer("throttled by S3", "40")];
        check(&run, &throttled, 9, "throttled by S3: 40");
        let full = || feeder("waiting: backlog full");
        check(&run, &[full(), running()], 9, "running: ");
        check(&run, &[full(), idle()], 9, "waiting: backlog full");
        let hidden = "waiting: the messages left are hidden for a while";
        check(&run, &[idle()], 9, hidden);
        // Consumers drop a run that has no messages.
        let watching = "nothing to do: the feeder watches for new rows";
        let watcher = || feeder("watching: nothing to do");
        check(&run, &[watcher()], 0, watching);
        check(&finished, &[watcher(), idle()], 0, watching);
        // They are of another run.
        check(&finished, &[], 9, nothing);
    }

    /// The page colours a state by its word.
    #[test]
    fn the_dashboard_knows_each_state_of_a_run() {
        let script = include_str!("../../page/page.js");
        let line = script.lines().find(|line| line.starts_with("const KIND"));
        let words = line.unwrap().replace('"', "");
        for state in [
            WorkerState::Running,
            WorkerState::NothingToDo,
            WorkerState::Paused,
            WorkerState::ThrottledByStore,
            WorkerState::DatabaseSlow,
            WorkerState::Waiting,
        ] {
            assert!(words.contains(&format!(" {state}:")), "{state}: {words}");
        }
    }
}
