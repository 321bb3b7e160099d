use super::*;
use tokio::time::{advance, timeout};

#[tokio::test(start_paused = true)]
async fn one_failure_is_no_outage_and_a_late_one_no_second_outage() {
    let health = Health::new(WorkerRole::Feeder);
    let began = Instant::now();
    health.record_failure(Dependency::Database, began, 1, "refused");
    assert_eq!(health.outage(), None);
    health.record_failure(Dependency::Database, began, 2, "refused");
    let outage = health.outage().unwrap_or_default();
    assert!(
        outage.starts_with("the database: refused; check"),
        "{outage}"
    );
    advance(Duration::from_secs(1)).await;
    health.mark_up(Dependency::Database);
    assert_eq!(health.outage(), None);
    health.record_failure(Dependency::Database, began, 9, "refused");
    assert_eq!(health.outage(), None);
    advance(Duration::from_secs(1)).await;
    health.record_failure(Dependency::Database, Instant::now(), 2, "refused");
    assert!(health.outage().is_some());
}

/// A consumer with nothing in hand asks the database nothing else.
#[tokio::test(start_paused = true)]
async fn heartbeats_that_are_missed_for_long_are_an_outage() {
    let process = Health::new(WorkerRole::Consumer);
    let run = process.for_run("images");
    let database = Dependency::Database;
    let missed = StatementError::Unavailable("no response".into());
    for second in 0..25 {
        let is_down = !process.is_up(database);
        assert_eq!(is_down, second > 20, "after {second} s");
        run.record_heartbeat(Err(&missed));
        advance(Duration::from_secs(1)).await;
    }
    run.record_heartbeat(Ok(()));
    assert!(process.is_up(database));
}

#[tokio::test(start_paused = true)]
async fn what_is_met_last_is_the_reason() {
    let health = Health::new(WorkerRole::Feeder);
    for reason in ["unavailable", "denied"] {
        health.mark_down(Dependency::Queue, reason);
        let outage = health.outage().unwrap_or_default();
        assert!(outage.contains(reason), "{outage}");
    }
    let mut state = DependencyState::default();
    for (reason, is_new) in [("a", true), ("b", true), ("a", false), ("b", false)] {
        assert_eq!(state.log_once(reason), is_new);
        advance(LOG_INTERVAL / 3).await;
    }
    assert!(state.log_once("c") && !state.log_once("d"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_alone_fails_again_and_again_is_noticed() {
    let health = Health::new(WorkerRole::Feeder);
    let database = Dependency::Database;
    for failures in 1..=3 {
        assert_eq!(health.outage(), None);
        let began = Instant::now();
        health.mark_up(database);
        health.record_call_failure(database, began, failures, ("reading", "locked"));
    }
    health.mark_up(database);
    health.record_success(database, "counting");
    let outage = health.outage().unwrap_or_default();
    assert!(
        outage.starts_with("the database: reading: locked"),
        "{outage}"
    );
    health.record_success(database, "reading");
    assert_eq!(health.outage(), None);
}

#[test]
fn an_outage_of_two_calls_ends_with_both() {
    let (health, queue) = (Health::new(WorkerRole::Consumer), Dependency::Queue);
    health.mark_stuck(queue, "deleting", "denied");
    health.mark_stuck(queue, "renewing", "denied");
    health.record_success(queue, "renewing");
    assert!(health.outage().is_some());
    health.record_success(queue, "deleting");
    assert!(health.outage().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_silent_queue_is_noticed_at_once() {
    let health = Health::new(WorkerRole::Consumer);
    let began = Instant::now();
    advance(Duration::from_secs(1)).await;
    health.record_failure(Dependency::Queue, began, 1, "throttled");
    assert_eq!(health.outage(), None);
    advance(Duration::from_secs(7)).await;
    health.record_failure(Dependency::Queue, began, 1, "no response");
    assert!(health.outage().is_some());
}

#[tokio::test(start_paused = true)]
async fn each_dependency_has_its_own_outage() {
    let health = Health::new(WorkerRole::Feeder);
    health.record_failure(Dependency::Queue, Instant::now(), 3, "gone");
    health.mark_up(Dependency::Database);
    let outage = health.outage().unwrap_or_default();
    assert!(outage.contains("sqs:SendMessage"), "{outage}");
    assert!(health.is_up(Dependency::Objects));
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_on_when_the_outage_is_over() {
    let health = Health::new(WorkerRole::Consumer);
    health.wait_until_up(Dependency::Objects).await;
    health.mark_down(Dependency::Objects, "denied");
    health.wait_until_down(Dependency::Objects).await;
    let wait = Duration::from_secs(1);
    let waiting = timeout(wait, health.wait_until_up(Dependency::Objects));
    assert!(waiting.await.is_err());
    health.mark_up(Dependency::Objects);
    health.wait_until_up(Dependency::Objects).await;
}

#[test]
fn each_run_has_buckets_of_its_own() {
    let process = Health::new(WorkerRole::Consumer);
    let (one, other) = (process.for_run("one"), process.for_run("other"));
    one.mark_down(Dependency::Objects, "denied");
    assert!(other.outage().is_none() && process.outage().is_none());
    process.mark_down(Dependency::Queue, "gone");
    assert!(!other.is_up(Dependency::Queue) && other.own_outage().is_none());
    assert!(process.outage().is_some() && process.own_outage().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_table_is_closed_holds_up_no_other_while_heartbeats_get_through() {
    let process = Health::new(WorkerRole::Consumer);
    let (one, other) = (process.for_run("one"), process.for_run("other"));
    let fail = || one.record_failure(Dependency::Database, Instant::now(), 2, "locked");
    advance(Duration::from_mins(1)).await;
    other.record_heartbeat(Ok(()));
    fail();
    assert!(one.own_outage().is_some() && one.outage().is_some());
    assert!(process.outage().is_none() && other.outage().is_none());
    // In an outage of all nothing gets through.
    advance(HEARTBEATS_MISSED_AFTER * 2).await;
    other.record_heartbeat(Err(&StatementError::Unavailable("gone".into())));
    fail();
    assert!(process.outage().is_some() && other.outage().is_some());
    assert!(other.own_outage().is_none());
    other.record_heartbeat(Ok(()));
    assert!(process.outage().is_none() && one.outage().is_some());
    one.mark_up(Dependency::Database);
    assert!(one.outage().is_none());
}

#[test]
fn where_no_connection_is_had_the_heartbeat_says_why() {
    let full = StatementError::Unavailable("too many connections for role".into());
    let process = Health::new(WorkerRole::Consumer);
    for health in [process.for_run("one"), Health::new(WorkerRole::Consumer)] {
        let fail = |reason| {
            health.record_failure(Dependency::Database, Instant::now(), 2, reason);
        };
        health.record_heartbeat(Err(&full));
        assert_eq!(health.outage(), None);
        fail(NO_CONNECTION);
        health.record_heartbeat(Err(&full));
        fail(NO_CONNECTION);
        let database = health.process.as_deref().unwrap_or(&health);
        let outage = database.outage().unwrap_or_default();
        assert!(outage.contains("too many connections for role"), "{outage}");
        health.record_heartbeat(Err(&StatementError::Unavailable("starting up".into())));
        fail(NO_CONNECTION);
        let outage = database.outage().unwrap_or_default();
        assert!(outage.contains("starting up"), "{outage}");
        health.record_heartbeat(Ok(()));
        fail("locked");
        let outage = health.outage().unwrap_or_default();
        assert!(outage.contains("locked"), "{outage}");
    }
}
