//! One consumer, several runs on its queue: trouble of one is its own, and costs its messages no receives.

#![expect(clippy::unwrap_used, reason = "tests")]

mod two_run_rig;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bucket_brigade_common::http_endpoints::ProcessStatus;
use bucket_brigade_consumer::runs::RUN_IDLE_LIMIT;
use tokio::time::{Instant, sleep};

use self::two_run_rig::{ROW_COUNT, TwoRunRig};

#[tokio::test(start_paused = true)]
async fn one_consumer_serves_every_run_of_its_queue() {
    let rig = TwoRunRig::start(|_| {});
    rig.send_rows(ROW_COUNT);
    rig.wait_until("both runs", || {
        (rig.moved(1), rig.moved(2)) == (ROW_COUNT, ROW_COUNT)
    })
    .await;
    let etag = rig.worlds[1].lock().table.moves["7"].etag.clone();
    assert_eq!(etag, "2/7", "from its own bucket");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_pause_costs_no_receives_and_holds_up_no_other_run() {
    let rig = TwoRunRig::start(|operators| operators[1].is_paused.store(true, Ordering::Relaxed));
    rig.send_rows(ROW_COUNT);
    rig.wait_until("the first run", || rig.moved(1) == ROW_COUNT)
        .await;
    sleep(Duration::from_mins(20)).await;
    assert_eq!((rig.moved(2), rig.most_receives()), (0, 1));
    assert_eq!(rig.status.unhealthy_reason(), None);
    // In hand or not, what is left goes on at once.
    rig.operator(2).is_paused.store(false, Ordering::Relaxed);
    rig.wait_until("the second run", || rig.moved(2) == ROW_COUNT)
        .await;
    rig.end().await;
}

/// Its messages are no other run's, and no poison.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_opened_after_its_messages_came_is_served() {
    let rig = TwoRunRig::start(|operators| operators[1].opens_late.store(true, Ordering::Relaxed));
    rig.send_rows(ROW_COUNT);
    rig.wait_until("both runs", || {
        (rig.moved(1), rig.moved(2)) == (ROW_COUNT, ROW_COUNT)
    })
    .await;
    assert_eq!(rig.operator(2).loads.load(Ordering::Relaxed), 2);
    assert_eq!(rig.most_receives(), 1);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_its_checks_delays_itself_alone() {
    let rig = TwoRunRig::start(|operators| operators[1].is_broken.store(true, Ordering::Relaxed));
    rig.send_rows(ROW_COUNT);
    rig.wait_until("the first run", || rig.moved(1) == ROW_COUNT)
        .await;
    sleep(Duration::from_hours(1)).await;
    assert_eq!(rig.status.notes(), ["run 2: there is no bucket 'gone'"]);
    assert_eq!((rig.moved(2), rig.most_receives()), (0, 1));
    assert!(rig.operator(2).loads.load(Ordering::Relaxed) > 30);
    rig.operator(2).is_broken.store(false, Ordering::Relaxed);
    rig.wait_until("the second run", || rig.moved(2) == ROW_COUNT)
        .await;
    assert!(rig.status.notes().is_empty());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_run_is_dropped_and_taken_on_again() {
    let rig = TwoRunRig::start(|_| {});
    rig.send_rows(1);
    rig.wait_until("a row of each", || rig.moved(1) + rig.moved(2) == 2)
        .await;
    sleep(RUN_IDLE_LIMIT / 2).await;
    rig.send(r#"{"run":1,"id":"1","path":"image/1"}"#);
    sleep(RUN_IDLE_LIMIT / 2 + Duration::from_secs(10)).await;
    let left = |run| rig.operator(run).deregistered.load(Ordering::Relaxed);
    assert_eq!((left(1), left(2)), (0, 1));
    rig.send(r#"{"run":2,"id":"1","path":"image/1"}"#);
    rig.wait_until("the second run again", || rig.moved(2) == 2)
        .await;
    assert_eq!(rig.operator(2).loads.load(Ordering::Relaxed), 2);
    rig.end().await;
}

/// Or `status` would say that no consumer is running.
#[tokio::test(start_paused = true)]
async fn a_run_is_not_dropped_while_the_queue_cannot_be_asked() {
    let rig = TwoRunRig::start(|_| {});
    rig.send_rows(1);
    rig.wait_until("a row of each", || rig.moved(1) + rig.moved(2) == 2)
        .await;
    let in_queue = || rig.worlds[0].lock().mailbox.queued.len();
    rig.wait_until("an empty queue", || in_queue() == 0).await;
    let set_faults = |percent| rig.worlds[0].lock().fault_rates.faults = percent;
    set_faults(100);
    sleep(RUN_IDLE_LIMIT * 2).await;
    let left = || rig.operator(2).deregistered.load(Ordering::Relaxed);
    assert_eq!(left(), 0);
    set_faults(0);
    rig.wait_until("the end of the second run", || left() == 1)
        .await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_no_known_run_is_poison_and_one_without_a_run_among_several_too() {
    let rig = TwoRunRig::start(|_| {});
    rig.send(r#"{"run":9,"id":"1","path":"image/1"}"#);
    rig.send(r#"{"id":"1","path":"image/1"}"#);
    rig.send("poison");
    let is_recorded = || rig.worlds[0].lock().table.poison.len() == 3;
    rig.wait_until("three records", is_recorded).await;
    let in_queue = || rig.worlds[0].lock().mailbox.queued.len();
    rig.wait_until("the dead-letter queue", || in_queue() == 0)
        .await;
    assert_eq!(rig.moved(1) + rig.moved(2), 0);
    rig.worlds[0].lock().mailbox.dead_letters.clear();
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_copies_of_all_runs_together_are_bounded() {
    let rig = TwoRunRig::start(|_| {});
    rig.send_rows(ROW_COUNT);
    rig.wait_until_moved(1).await;
    rig.wait_until_moved(2).await;
    assert_eq!(rig.copies.most.load(Ordering::Relaxed), 4);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_store_hangs_leaves_the_other_its_part() {
    let rig = TwoRunRig::start(|operators| operators[1].is_hung.store(true, Ordering::Relaxed));
    for id in 0..ROW_COUNT {
        rig.send_row(2, id);
    }
    let has_all = || rig.copies.current.load(Ordering::Relaxed) == 4;
    rig.wait_until("all places taken", has_all).await;
    for id in 0..ROW_COUNT {
        rig.send_row(1, id);
    }
    let began = Instant::now();
    rig.wait_until_moved(1).await;
    assert!(
        began.elapsed() < Duration::from_mins(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(rig.copies.most.load(Ordering::Relaxed), 4);
    assert_eq!(rig.most_receives(), 1);
    rig.operator(2).is_hung.store(false, Ordering::Relaxed);
    rig.wait_until_moved(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_left_to_other_processes_is_not_received_again() {
    let rig = TwoRunRig::start(|operators| {
        operators[0].is_finished.store(true, Ordering::Relaxed);
        operators[1].is_excluded.store(true, Ordering::Relaxed);
    });
    for id in 0..ROW_COUNT {
        rig.send_row(2, id);
    }
    sleep(Duration::from_mins(1)).await;
    let now = Instant::now();
    let is_visible = |at: &Instant| *at <= now;
    let are_visible = rig.worlds[0].lock().visible_at.values().all(is_visible);
    assert!(are_visible, "others can have them");
    sleep(Duration::from_hours(2)).await;
    assert_eq!((rig.moved(2), rig.most_receives()), (0, 1));
    rig.operator(2).is_excluded.store(false, Ordering::Relaxed);
    rig.wait_until_moved(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn in_a_mixed_queue_it_costs_few_receives() {
    let rig = TwoRunRig::start(|operators| operators[1].is_excluded.store(true, Ordering::Relaxed));
    rig.send_rows(ROW_COUNT);
    rig.wait_until_moved(1).await;
    sleep(Duration::from_mins(10)).await;
    assert!(rig.most_receives() <= 3, "{}", rig.most_receives());
    rig.operator(2).is_excluded.store(false, Ordering::Relaxed);
    rig.wait_until_moved(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_panics_is_a_failure_of_its_own() {
    let rig = TwoRunRig::start(|_| {});
    let defect = ("defect".to_owned(), "image/defect".to_owned());
    rig.worlds[1].lock().table.rows.extend([defect]);
    rig.send(r#"{"run":2,"id":"defect","path":"image/defect"}"#);
    rig.send_rows(ROW_COUNT);
    rig.wait_until_moved(1).await;
    rig.wait_until_moved(2).await;
    let in_queue = || rig.worlds[0].lock().mailbox.queued.len();
    rig.wait_until("the dead-letter queue", || in_queue() == 0)
        .await;
    let failure = rig.worlds[1].lock().table.failures.remove("defect");
    let failure = failure.unwrap();
    assert_eq!((&*failure.code, failure.permanent), ("Panic", false));
    assert_eq!(rig.worlds[0].lock().mailbox.dead_letters.len(), 1);
    rig.worlds[0].lock().mailbox.dead_letters.clear();
    rig.end().await;
}
