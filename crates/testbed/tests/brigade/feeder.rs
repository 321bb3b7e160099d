//! The feeder: pages, confirmed sends, the cursor, the backlog limit, sweeps.

use bucket_brigade_common::ledger::feed_source::FeedSource as _;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

#[tokio::test]
async fn failed_entries_and_lost_answers_of_a_send_are_sent_again() {
    let rig = TestRig::new().await;
    let failing = FaultEffect::FailEntries {
        code: "InternalError".into(),
        sender_fault: false,
    };
    let partly = rig
        .cloud
        .inject_fault(Fault::new("SendMessageBatch", failing).times(2));
    let lost = rig
        .cloud
        .inject_fault(Fault::new("SendMessageBatch", FaultEffect::ResetAfterEffect).times(2));
    rig.add_images(60).await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!((partly.hits(), lost.hits()), (2, 2));
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.ledger_counter("moved").await
        ),
        (60, 60)
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_row_the_queue_refuses_fails_alone() {
    let rig = TestRig::new().await;
    let refusing = FaultEffect::FailEntries {
        code: "InvalidMessageContents".into(),
        sender_fault: true,
    };
    let _refusing = rig
        .cloud
        .inject_fault(Fault::new("SendMessageBatch", refusing).key_contains("refused"));
    rig.add_images(15).await;
    let consumer = rig.spawn_consumer(&[("MAX_CONCURRENCY", "8")]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    let refused = rig.add_image("image/refused.png").await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.failure_code(&refused).await.unwrap(), "RefusedByQueue");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn it_does_not_outrun_the_consumers() {
    let rig = TestRig::new().await;
    rig.add_images(100).await;
    let mut feeder = rig.spawn("feeder", &[("MAX_BACKLOG", "30")], &[]);
    wait_until("the backlog to fill", async || {
        feeder.log_tail(50).contains("waiting: backlog full")
    })
    .await;
    assert_eq!(rig.queued_messages().await, 30);
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 100);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_killed_feeder_goes_on_from_its_cursor() {
    let rig = TestRig::new().await;
    rig.add_images(100).await;
    let settings = [("PAGE_SIZE", "10"), ("MAX_BACKLOG", "40")];
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    let fed = async || {
        rig.query_number("SELECT coalesce(sum(fed), 0)::bigint FROM bucket_brigade.feed_cursors")
            .await
    };
    wait_until("some to be fed", async || fed().await >= 40).await;
    feeder.kill().await.unwrap();
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &settings).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 100);
    // At most the page in hand was sent twice.
    assert!(fed().await <= 110, "{} fed", fed().await);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn sigterm_stops_it_with_its_cursor_kept() {
    let rig = TestRig::new().await;
    rig.add_images(50).await;
    let mut feeder = rig.spawn("feeder", &[("PAGE_SIZE", "10"), ("MAX_BACKLOG", "20")], &[]);
    wait_until("the backlog to fill", async || {
        feeder.log_tail(50).contains("waiting: backlog full")
    })
    .await;
    feeder.terminate().unwrap();
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 50);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn rows_that_appear_behind_the_cursor_are_swept_up() {
    let rig = TestRig::new().await;
    rig.add_images(40).await;
    let settings = [("PAGE_SIZE", "10"), ("MAX_BACKLOG", "10")];
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    wait_until("a first page", async || {
        rig.query_number("SELECT coalesce(sum(fed), 0)::bigint FROM bucket_brigade.feed_cursors")
            .await
            >= 10
    })
    .await;
    rig.put_object("images-old", "image/late.png", b"late")
        .await;
    rig.execute_sql(
        "INSERT INTO images (id, path) OVERRIDING SYSTEM VALUE VALUES (-5, 'image/late.png')",
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.path_of("-5").await.unwrap(), "avatar/late.png");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn watching_it_picks_up_what_comes() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[("WATCH_INTERVAL", "200ms")], &["--watch"]);
    wait_until("the first", async || rig.count_rows("moves").await == 5).await;
    rig.add_image("image/later.png").await;
    wait_until("the later one", async || rig.count_rows("moves").await == 6).await;
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn rows_without_a_route_fail_unsent_and_failed_rows_are_not_fed_again() {
    let rig = TestRig::new().await;
    let long = rig.add_row(&format!("image/{}", "x".repeat(1100))).await;
    let missing = rig.add_row("image/missing.png").await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert!(
        ended.log.contains("NoSuchKey") && ended.log.contains("KeyTooLong"),
        "{}",
        ended.log
    );
    assert_eq!(rig.failure_code(&long).await.unwrap(), "KeyTooLong");
    let sent = rig
        .cloud
        .request_counts()
        .count_operation_by("feeder", "SendMessageBatch");
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(2));
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("feeder", "SendMessageBatch"),
        sent
    );
    // When the application mends a row, it has not failed any more.
    rig.execute_sql(&format!(
        "DELETE FROM images WHERE id IN ({missing}, {long})"
    ))
    .await;
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    assert_eq!(
        (
            rig.count_rows("failures").await,
            rig.ledger_counter("failed").await
        ),
        (0, 0)
    );
    assert_eq!(
        (
            rig.count_rows("changes").await,
            rig.ledger_counter("changed").await
        ),
        (2, 2)
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_run_that_is_done_finds_new_rows_when_it_is_started_again() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    rig.execute_sql(
        "UPDATE images SET path = 'image/' || substr(path, 8) WHERE path = 'avatar/1.png'",
    )
    .await;
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    assert_eq!(
        rig.query_number("SELECT count(*) FROM images WHERE path LIKE 'avatar/%'")
            .await,
        3
    );
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.ledger_counter("moved").await
        ),
        (3, 3)
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_paused_run_feeds_nothing_until_it_goes_on_and_a_limit_slows_it() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    rig.open_run().await;
    rig.execute_sql(
        "UPDATE bucket_brigade.run SET paused = true, paused_by = 'ana', rate_limit = 10",
    )
    .await;
    let mut feeder = rig.spawn("feeder", &[("LOG_FORMAT", "json")], &[]);
    wait_until("the pause", async || {
        feeder.log_tail(50).contains("paused by ana")
    })
    .await;
    assert_eq!(rig.queued_messages().await, 0);
    let started = std::time::Instant::now();
    rig.execute_sql("UPDATE bucket_brigade.run SET paused = false")
        .await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert!(started.elapsed().as_secs() >= 3, "30 rows at 10 per second");
    assert_eq!(rig.count_rows("moves").await, 30);
    stop_consumer(consumer).await;
}

/// A page without rows to feed costs the database as much as any: under a limit it counts as a batch.
#[tokio::test]
async fn a_limit_slows_empty_stretches_too() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "INSERT INTO images (path) SELECT 'other/' || n FROM generate_series(1, 600) n",
    )
    .await;
    rig.open_run().await;
    rig.execute_sql("UPDATE bucket_brigade.run SET rate_limit = 100")
        .await;
    let started = std::time::Instant::now();
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "10")]).await;
    let seconds = started.elapsed().as_secs();
    assert_eq!(ended.code, Some(66), "{}", ended.log);
    assert!(seconds >= 4, "60 pages of ten rows' worth: {seconds} s");
}

/// What each process reads of its run once a second does not grow with the pages that are fed under an open snapshot.
#[tokio::test]
async fn the_cursor_moves_beside_the_run() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    let mut snapshot = rig.pool.begin().await.unwrap();
    let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM images";
    sqlx::raw_sql(begin).execute(&mut *snapshot).await.unwrap();
    for number in 0..500 {
        let cursor = RowId::from_database(number.to_string());
        ledger.advance_cursor(&cursor, 1).await.unwrap();
        ledger.count_scope_stretch().await.unwrap();
    }
    for (table, pages) in [("run", 1..2), ("feed_cursors", 3..99)] {
        let size = format!("SELECT pg_relation_size('bucket_brigade.{table}') / 8192");
        let size = rig.query_number(&size).await;
        assert!(pages.contains(&size), "{table}: {size} pages");
    }
    snapshot.rollback().await.unwrap();
}
