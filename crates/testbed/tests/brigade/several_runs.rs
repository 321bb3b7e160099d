//! What several runs share in one consumer, and how it takes them on.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Cluster, Fault, FaultEffect};
use sqlx::PgPool;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};
use crate::shared_queue::{FACES, add_faces, moved, run_command, spawn_consumer_of_all};

#[tokio::test]
async fn all_runs_share_the_connections_of_one() {
    let rig = TestRig::new().await;
    rig.add_images(150).await;
    add_faces(&rig, 150).await;
    let consumer = spawn_consumer_of_all(&rig, &[]);
    let (mut images, mut faces) = (
        rig.spawn("feeder", &[], &[]),
        rig.spawn("feeder", &FACES, &[]),
    );
    for feeder in [&mut images, &mut faces] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    assert_eq!(rig.count_rows("moves").await, 300);
    let connections = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'bucket-brigade consumer' AND datname = current_database()";
    let count = rig.query_number(connections).await;
    assert!((1..=3).contains(&count), "{count}");
    stop_consumer(consumer).await;
}

/// After a canary, for example: the number is that of another run by then, with another rule.
#[tokio::test]
async fn a_ledger_that_was_made_anew_has_other_runs_of_the_same_numbers() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let consumer = spawn_consumer_of_all(&rig, &[]);
    let mut watching = rig.spawn("feeder", &[], &["--watch"]);
    wait_until("the moves", async || rig.count_rows("moves").await == 5).await;
    rig.execute_sql(
        "DROP SCHEMA bucket_brigade CASCADE;
         UPDATE images SET path = 'image/' || substr(path, 8)",
    )
    .await;
    let ended = rig.run_program("feeder", &[("NEW_PREFIX", "photo/")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let ended = wait_for_exit(&mut watching).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(ended.log.contains("made anew"), "{}", ended.log);
    let moved = "SELECT count(*) FROM images WHERE path LIKE 'photo/%'";
    assert_eq!(rig.query_number(moved).await, 5);
    for number in 0..5 {
        let key = format!("photo/{number}.png");
        assert!(rig.object_exists("images-new", &key).await, "{key}");
    }
    let log = stop_consumer(consumer).await;
    assert!(log.contains("taken on anew"), "{log}");
}

/// What was copied for the run that is gone gives way to the one that has its number.
#[tokio::test]
async fn what_is_in_hand_of_a_run_that_is_gone_holds_up_no_other() {
    let rig = TestRig::new().await;
    rig.add_images(60).await;
    let slow = Fault::new("CopyObject", FaultEffect::Delay(Duration::from_secs(3)));
    let slow = slow.key_contains("avatar/").caller("consumer").times(61);
    let slow = rig.cloud.inject_fault(slow);
    let consumer = spawn_consumer_of_all(&rig, &[]);
    let mut watching = rig.spawn("feeder", &[], &["--watch"]);
    // With that of the probe.
    wait_until("the copies", async || slow.hits() >= 60).await;
    rig.execute_sql("DROP SCHEMA bucket_brigade CASCADE").await;
    let ended = rig.run_program("feeder", &[("NEW_PREFIX", "photo/")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let moved = "SELECT count(*) FROM images WHERE path LIKE 'photo/%'";
    assert_eq!(rig.query_number(moved).await, 60);
    assert_eq!(wait_for_exit(&mut watching).await.code, Some(64));
    stop_consumer(consumer).await;
}

/// What starts it again must not take all for done.
#[tokio::test]
async fn a_consumer_of_one_run_that_is_gone_gives_back_what_it_has_and_fails() {
    let rig = TestRig::new().await;
    rig.add_images(20).await;
    let mut feeder = rig.spawn("feeder", &[], &["--watch"]);
    wait_until("the messages", async || rig.visible_messages().await == 20).await;
    let slow = Fault::new("CopyObject", FaultEffect::Delay(Duration::from_secs(3)));
    let slow = rig.cloud.inject_fault(slow.key_contains("avatar/"));
    let mut consumer = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "600")]);
    wait_until("the copies", async || slow.hits() >= 10).await;
    rig.execute_sql("UPDATE bucket_brigade.run SET started_at = started_at + interval '1 second'")
        .await;
    let ended = wait_for_exit(&mut consumer).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(ended.log.contains("made anew"), "{}", ended.log);
    assert_eq!(rig.visible_messages().await, 20, "{}", ended.log);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(64));
}

#[tokio::test]
async fn a_stop_waits_for_the_probe_of_a_run_that_is_taken_on() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the message", async || rig.visible_messages().await == 1).await;
    let slow = Fault::new("CopyObject", FaultEffect::Delay(Duration::from_secs(3)));
    let slow = rig
        .cloud
        .inject_fault(slow.key_contains("bucket-brigade-probe"));
    let consumer = spawn_consumer_of_all(&rig, &[]);
    wait_until("the probe", async || slow.hits() > 0).await;
    assert!(rig.cloud.count_objects("images-new") > 0);
    stop_consumer(consumer).await;
    assert_eq!(rig.cloud.count_objects("images-new"), 0);
    wait_until("the message again", async || {
        rig.visible_messages().await == 1
    })
    .await;
    feeder.terminate().unwrap();
    wait_for_exit(&mut feeder).await;
}

#[tokio::test]
async fn a_store_that_is_silent_while_its_run_is_taken_on_delays_that_run_alone() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    add_faces(&rig, 10).await;
    let silent = Fault::new("PutObject", FaultEffect::Delay(Duration::from_hours(1)));
    let silent = silent.key_contains("face/.bucket-brigade-probe");
    let silent = rig.cloud.inject_fault(silent);
    let mut faces = rig.spawn("feeder", &FACES, &[]);
    wait_until("the faces", async || rig.visible_messages().await == 10).await;
    let consumer = spawn_consumer_of_all(&rig, &[]);
    wait_until("the silence", async || silent.hits() > 0).await;
    let mut images = rig.spawn("feeder", &[], &[]);
    wait_until("the images", async || moved(&rig, 2).await == 30).await;
    assert_eq!(wait_for_exit(&mut images).await.code, Some(0));
    wait_until("the reason", async || {
        let log = consumer.log_tail(100);
        log.contains("run 1 cannot be served") && log.contains("no response within 60s")
    })
    .await;
    silent.remove();
    assert_eq!(wait_for_exit(&mut faces).await.code, Some(0));
    assert_eq!(moved(&rig, 1).await, 10);
    stop_consumer(consumer).await;
}

/// What the ledger takes of the one is no comfort to the other, whose messages wait without a further receive.
#[tokio::test]
async fn a_table_that_is_locked_holds_up_its_run_alone() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    add_faces(&rig, 200).await;
    let mut images = rig.spawn("feeder", &[], &[]);
    wait_until("the images", async || rig.visible_messages().await == 30).await;
    let mut locking = rig.pool.begin().await.unwrap();
    let lock = sqlx::query("LOCK TABLE images IN ACCESS EXCLUSIVE MODE");
    lock.execute(&mut *locking).await.unwrap();
    let consumer = spawn_consumer_of_all(&rig, &[]);
    wait_until("the reason", async || {
        let log = consumer.log_tail(50);
        log.contains("the database cannot be used for run 'images.path'")
    })
    .await;
    let mut faces = rig.spawn("feeder", &FACES, &[]);
    let ended = wait_for_exit(&mut faces).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!((moved(&rig, 1).await, moved(&rig, 2).await), (0, 200));
    let log = consumer.log_tail(200);
    assert!(!log.contains("receiving stops"), "{log}");
    locking.rollback().await.unwrap();
    let ended = wait_for_exit(&mut images).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!((moved(&rig, 1).await, rig.dead_letters().await), (30, 0));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_limit_that_leaves_nothing_to_one_of_two_consumers_costs_no_dead_letter() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(3),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.add_images(120).await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the run", async || rig.visible_messages().await == 120).await;
    run_command(&rig, &["limit", "--concurrency", "1"]).await;
    let slow = FaultEffect::Delay(Duration::from_millis(50));
    let _slow = rig.cloud.inject_fault(Fault::new("CopyObject", slow));
    let consumers = [(); 2].map(|()| spawn_consumer_of_all(&rig, &[]));
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!((moved(&rig, 1).await, rig.dead_letters().await), (120, 0));
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
}

#[tokio::test]
async fn what_a_limit_leaves_to_another_consumer_reaches_it_soon() {
    let rig = TestRig::new().await;
    rig.add_images(20).await;
    add_faces(&rig, 200).await;
    let mut images = rig.spawn("feeder", &[], &[]);
    let mut faces = rig.spawn("feeder", &FACES, &[]);
    wait_until("both runs", async || rig.visible_messages().await == 220).await;
    let limit = ["limit", "--concurrency", "1", "--run", "images.path"];
    run_command(&rig, &limit).await;
    let slow = Fault::new("CopyObject", FaultEffect::Delay(Duration::from_secs(5)));
    let slow = rig.cloud.inject_fault(slow.key_contains("face/"));
    // Both are at work on the faces for longer than this takes.
    let consumers = [(); 2].map(|()| spawn_consumer_of_all(&rig, &[("MAX_CONCURRENCY", "4")]));
    wait_until("all in hand", async || rig.visible_messages().await == 0).await;
    let began = Instant::now();
    let moved_images = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%'";
    wait_until("the images", async || {
        rig.query_number(moved_images).await == 20
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(45),
        "{:?}",
        began.elapsed()
    );
    assert!(rig.count_rows("moves").await < 220);
    slow.remove();
    for feeder in [&mut images, &mut faces] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    assert_eq!(rig.dead_letters().await, 0);
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
}

/// Their runs have the same number and their rows the same ids.
#[tokio::test]
async fn two_databases_on_one_queue_leave_each_others_messages() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(100),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.add_images(5).await;
    let url = Cluster::shared().await.create_database().await.unwrap();
    let other = PgPool::connect(&url).await.unwrap();
    rig.application.create_table(&other).await.unwrap();
    for number in 5..10 {
        let path = format!("image/{number}.png");
        rig.put_object("images-old", &path, path.as_bytes()).await;
        let insert = sqlx::query("INSERT INTO images (path) VALUES ($1)");
        insert.bind(path).execute(&other).await.unwrap();
    }
    let at_other = [("DATABASE_URL", url.as_str())];
    let consumers = [&[][..], &at_other].map(|at| spawn_consumer_of_all(&rig, at));
    let feeders = [&[][..], &at_other].map(|at| rig.spawn("feeder", at, &[]));
    for mut feeder in feeders {
        let ended = wait_for_exit(&mut feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    for pool in [&rig.pool, &other] {
        let counts = "SELECT sum(moved)::bigint, sum(changed)::bigint, sum(poison)::bigint
            FROM bucket_brigade.counters";
        let counts: (i64, i64, i64) = sqlx::query_as(counts).fetch_one(pool).await.unwrap();
        assert_eq!(counts, (5, 0, 0));
    }
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
}
