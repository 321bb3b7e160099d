//! Several runs on one queue, served by consumers that were given none.

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::process::ChildProcess;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// What a consumer of all runs needs: nothing of any of them.
pub(crate) const NO_RUN: [(&str, &str); 7] = [
    ("IMAGES_TABLE", "-"),
    ("ID_COLUMN", "-"),
    ("PATH_COLUMN", "-"),
    ("SOURCE_BUCKET_NAME", "-"),
    ("DESTINATION_BUCKET_NAME", "-"),
    ("OLD_PREFIX", "-"),
    ("NEW_PREFIX", "-"),
];

/// A second run: another table, other columns, buckets and prefixes.
pub(crate) const FACES: [(&str, &str); 8] = [
    ("RUN_NAME", "faces"),
    ("IMAGES_TABLE", "people"),
    ("ID_COLUMN", "number"),
    ("PATH_COLUMN", "face"),
    ("SOURCE_BUCKET_NAME", "faces-old"),
    ("DESTINATION_BUCKET_NAME", "faces-new"),
    ("OLD_PREFIX", "legacy/"),
    ("NEW_PREFIX", "face/"),
];

pub(crate) async fn add_faces(rig: &TestRig, count: usize) {
    for bucket in ["faces-old", "faces-new"] {
        create_bucket(rig, bucket).await;
    }
    rig.execute_sql("CREATE TABLE people (number text PRIMARY KEY, face text)")
        .await;
    for number in 0..count {
        let path = format!("legacy/{number}.png");
        rig.put_object("faces-old", &path, path.as_bytes()).await;
        rig.execute_sql(&format!(
            "INSERT INTO people VALUES ('p-{number}', '{path}')"
        ))
        .await;
    }
}

async fn create_bucket(rig: &TestRig, bucket: &str) {
    let create = rig.application.s3.create_bucket().bucket(bucket);
    create.send().await.unwrap();
}

async fn delete_bucket(rig: &TestRig, bucket: &str) {
    let delete = rig.application.s3.delete_bucket().bucket(bucket);
    delete.send().await.unwrap();
}

pub(crate) fn spawn_consumer_of_all(rig: &TestRig, more: &[(&str, &str)]) -> ChildProcess {
    let settings = [&NO_RUN[..], more].concat();
    rig.spawn_consumer(&settings)
}

pub(crate) async fn moved(rig: &TestRig, run: i64) -> i64 {
    let sql = format!("SELECT count(*) FROM bucket_brigade.moves WHERE run_id = {run}");
    rig.query_number(&sql).await
}

pub(crate) async fn run_command(rig: &TestRig, arguments: &[&str]) -> String {
    let ended = wait_for_exit(&mut rig.spawn("feeder", &NO_RUN, arguments)).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.log);
    ended.log
}

#[tokio::test]
async fn a_consumer_that_was_there_before_any_run_serves_two() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    add_faces(&rig, 30).await;
    let consumer = spawn_consumer_of_all(&rig, &[]);
    wait_until("the consumer to wait", async || {
        consumer.log_tail(50).contains("waiting for the feeder")
    })
    .await;
    let (mut images, mut faces) = (
        rig.spawn("feeder", &[], &[]),
        rig.spawn("feeder", &FACES, &[]),
    );
    for feeder in [&mut images, &mut faces] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    let in_place =
        "SELECT count(*) FROM people WHERE face = 'face/' || substr(number, 3) || '.png'";
    assert_eq!(rig.query_number(in_place).await, 30);
    assert_eq!(rig.count_rows("moves").await, 60);
    for nothing in ["failures", "changes", "poison"] {
        assert_eq!(rig.count_rows(nothing).await, 0, "{nothing}");
    }
    let log = stop_consumer(consumer).await;
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn a_run_whose_bucket_is_missing_delays_only_itself() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(2),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.add_images(30).await;
    add_faces(&rig, 10).await;
    let mut faces = rig.spawn("feeder", &FACES, &[]);
    wait_until("the faces in the queue", async || {
        rig.visible_messages().await == 10
    })
    .await;
    delete_bucket(&rig, "faces-new").await;
    let short = [("VISIBILITY_TIMEOUT", "2s")];
    let consumer = spawn_consumer_of_all(&rig, &short);
    let mut images = rig.spawn("feeder", &[], &[]);
    wait_until("the images", async || rig.count_rows("moves").await == 30).await;
    wait_until("the reason", async || {
        let log = consumer.log_tail(400);
        log.contains("there is no bucket 'faces-new'") && log.contains("cannot be served")
    })
    .await;
    // Longer than a message is hidden at a time.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(rig.dead_letters().await, 0);
    create_bucket(&rig, "faces-new").await;
    for feeder in [&mut faces, &mut images] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    assert_eq!(rig.count_rows("moves").await, 40);
    assert_eq!(rig.dead_letters().await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_paused_run_leaves_the_other_moving_and_loses_no_receives() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(1),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.add_images(40).await;
    add_faces(&rig, 40).await;
    let mut faces = rig.spawn("feeder", &FACES, &[]);
    wait_until("the faces in the queue", async || {
        rig.visible_messages().await == 40
    })
    .await;
    run_command(&rig, &["pause", "--run", "faces", "--reason", "release"]).await;
    let consumer = spawn_consumer_of_all(&rig, &[("VISIBILITY_TIMEOUT", "2s")]);
    let mut images = rig.spawn("feeder", &[], &[]);
    wait_until("the images", async || moved(&rig, 2).await == 40).await;
    // Longer than a message is hidden at a time: with one receive each, another would be the last.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!((moved(&rig, 1).await, rig.dead_letters().await), (0, 0));
    // Messages of the other run keep no feeder from its end.
    let ended = wait_for_exit(&mut images).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    run_command(&rig, &["resume", "--run", "faces"]).await;
    let ended = wait_for_exit(&mut faces).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!((moved(&rig, 1).await, rig.dead_letters().await), (40, 0));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn settings_of_a_run_must_agree_with_the_ledger() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    add_faces(&rig, 1).await;
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the run", async || rig.visible_messages().await == 1).await;
    for (given, word) in [
        (
            &[("NEW_PREFIX", "face/")][..],
            "NEW_PREFIX: 'avatar/' there, 'face/' here",
        ),
        (
            &[("RUN_NAME", "images.path"), ("OLD_PREFIX", "i")],
            "OLD_PREFIX: 'image/' there, 'i' here",
        ),
    ] {
        let ended = rig.run_program("consumer", given).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        assert!(ended.log.contains(word), "{word}: {}", ended.log);
    }
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn feeders_share_the_backlog_and_none_starves() {
    let rig = TestRig::new().await;
    rig.add_images(60).await;
    add_faces(&rig, 60).await;
    let limit = [("MAX_BACKLOG", "20"), ("PAGE_SIZE", "10")];
    let mut images = rig.spawn("feeder", &limit, &[]);
    wait_until("a full backlog", async || {
        rig.visible_messages().await == 20
    })
    .await;
    let mut faces = rig.spawn("feeder", &[&FACES[..], &limit].concat(), &[]);
    wait_until("the second feeder's half", async || {
        rig.visible_messages().await == 30
    })
    .await;
    let consumer = spawn_consumer_of_all(&rig, &[]);
    for feeder in [&mut images, &mut faces] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    assert_eq!(rig.count_rows("moves").await, 120);
    stop_consumer(consumer).await;
}

/// Its cursor moves with its pages alone: what it has sent is counted all the same.
#[tokio::test]
async fn a_feeder_in_stretches_holds_the_backlog_beside_an_earlier_run() {
    let rig = TestRig::new().await;
    add_faces(&rig, 1).await;
    let consumer = spawn_consumer_of_all(&rig, &[]);
    let ended = wait_for_exit(&mut rig.spawn("feeder", &FACES, &[])).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    rig.execute_sql(
        "INSERT INTO images (path) SELECT 'image/' || n FROM generate_series(1, 2000) n",
    )
    .await;
    let settings = [("MAX_BACKLOG", "20"), ("FEED_ORDER", "spread")];
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    let asked = || {
        let requests = rig.cloud.request_counts();
        requests.count_operation_by("feeder", "GetQueueAttributes")
    };
    wait_until("a full backlog", async || {
        rig.visible_messages().await >= 20
    })
    .await;
    let before = asked();
    wait_until("some more looks", async || asked() > before + 3).await;
    assert_eq!(rig.visible_messages().await, 20);
    feeder.terminate().unwrap();
    wait_for_exit(&mut feeder).await;
}

#[tokio::test]
async fn commands_control_all_runs_and_the_history_knows_who_and_why() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    add_faces(&rig, 5).await;
    let (mut images, mut faces) = (
        rig.spawn("feeder", &[], &[]),
        rig.spawn("feeder", &FACES, &[]),
    );
    wait_until("both runs", async || rig.count_rows("run").await == 2).await;
    let who = ["--by", "ana", "--reason", "release 4.2"];
    run_command(&rig, &[&["pause", "--all"], &who[..]].concat()).await;
    let paused = "SELECT count(*) FROM bucket_brigade.run WHERE paused";
    assert_eq!(rig.query_number(paused).await, 2);
    let screen = run_command(&rig, &["status", "--all"]).await;
    for word in [
        "images.path (run",
        "faces (run",
        "paused by ana: release 4.2",
        "queue ",
    ] {
        assert!(screen.contains(word), "{word}: {screen}");
    }
    let limits = run_command(&rig, &["limit", "--rate", "500", "--all", "--by", "bob"]).await;
    assert_eq!(
        limits.matches("at most 500 rows per second").count(),
        2,
        "{limits}"
    );
    run_command(&rig, &["resume", "--all", "--by", "ana"]).await;
    assert_eq!(rig.query_number(paused).await, 0);
    let consumer = spawn_consumer_of_all(&rig, &[]);
    for feeder in [&mut images, &mut faces] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    stop_consumer(consumer).await;
    run_command(&rig, &["retry", "--run", "faces", "--yes", "--by", "eve"]).await;
    let undo = [
        "rollback",
        "--run",
        "images.path",
        "--all",
        "--yes",
        "--reason",
        "wrong bucket",
    ];
    run_command(&rig, &undo).await;
    let clean = [
        "clean",
        "--run",
        "faces",
        "--orphans",
        "--older-than",
        "0s",
        "--confirm",
        "faces-new",
        "--by",
        "bob",
        "--reason",
        "tidy",
    ];
    rig.execute_sql(
        "INSERT INTO bucket_brigade.orphans (run_id, destination_key, new_path, etag, row_id)
         SELECT id, 'faces/gone', 'faces/gone', 'e', '0' FROM bucket_brigade.run WHERE name = 'faces'",
    )
    .await;
    run_command(&rig, &clean).await;
    let history = run_command(&rig, &["runs", "--history"]).await;
    for entry in [
        "): clean orphans in faces-new by bob: tidy",
        "): pause by ana: release 4.2",
        "): limit 500 rows per second by bob",
        "): resume by ana",
        "): retry 0 failures, 0 dead letters by eve",
        "): rollback of all by ",
        ": wrong bucket",
    ] {
        assert!(history.contains(entry), "{entry}: {history}");
    }
}

#[tokio::test]
async fn retry_moves_the_dead_letters_of_its_run_alone() {
    let queue = CreateQueueOptions {
        max_receive_count: Some(1),
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.add_row("image/missing.png").await;
    add_faces(&rig, 1).await;
    let mut faces = rig.spawn("feeder", &FACES, &[]);
    let consumer = spawn_consumer_of_all(&rig, &[]);
    assert_eq!(wait_for_exit(&mut faces).await.code, Some(0));
    let mut images = rig.spawn("feeder", &[], &[]);
    wait_until("a failure", async || rig.count_rows("failures").await == 1).await;
    rig.send_message(r#"{"run":1,"id":"p-9","path":"elsewhere/9.png"}"#)
        .await;
    wait_until("two dead letters", async || rig.dead_letters().await == 2).await;
    assert_eq!(wait_for_exit(&mut images).await.code, Some(2));
    stop_consumer(consumer).await;
    let preview = run_command(&rig, &["retry", "--run", "images.path"]).await;
    assert!(preview.contains("those of this run"), "{preview}");
    run_command(&rig, &["retry", "--run", "images.path", "--yes"]).await;
    assert_eq!(
        (rig.visible_messages().await, rig.dead_letters().await),
        (1, 1)
    );
    let url = rig.queue.dead_letter_url.as_ref().unwrap();
    let left = rig.cloud.queue_depth(url).await.unwrap();
    assert_eq!(left.visible, 1, "the other run's is not hidden");
}

#[tokio::test]
async fn a_canary_tells_of_its_own_rows() {
    let rig = TestRig::new().await;
    rig.add_row("image/missing.png").await;
    rig.add_images(5).await;
    let consumer = rig.spawn_consumer(&[]);
    let first = rig.run_feeder(&["--limit", "1"]).await;
    assert_eq!(first.code, 2, "{}", first.log);
    let second = rig.run_feeder(&["--limit", "3"]).await;
    assert_eq!(second.code, 0, "{}", second.log);
    assert!(second.log.contains("done: 3 moved"), "{}", second.log);
    assert!(!second.log.contains("NoSuchKey"), "{}", second.log);
    let rest = rig.run_program("feeder", &[]).await;
    assert_eq!(rest.code, Some(2), "{}", rest.log);
    stop_consumer(consumer).await;
}
