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
const FACES: [(&str, &str); 8] = [
    ("RUN_NAME", "faces"),
    ("IMAGES_TABLE", "people"),
    ("ID_COLUMN", "number"),
    ("PATH_COLUMN", "face"),
    ("SOURCE_BUCKET_NAME", "faces-old"),
    ("DESTINATION_BUCKET_NAME", "faces-new"),
    ("OLD_PREFIX", "legacy/"),
    ("NEW_PREFIX", "face/"),
];

async fn add_faces(rig: &TestRig, count: usize) {
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

fn spawn_consumer_of_all(rig: &TestRig, more: &[(&str, &str)]) -> ChildProcess {
    let settings = [&NO_RUN[..], more].concat();
    rig.spawn_consumer(&settings)
}

async fn moved(rig: &TestRig, run: i64) -> i64 {
    let sql = format!("SELECT count(*) FROM bucket_brigade.moves WHERE run_id = {run}");
    rig.query_number(&sql).await
}

async fn run_command(rig: &TestRig, arguments: &[&str]) -> String {
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
    run_command(&rig, &["resume", "--run", "faces"]).await;
    for feeder in [&mut faces, &mut images] {
        let ended = wait_for_exit(feeder).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    assert_eq!((moved(&rig, 1).await, rig.dead_letters().await), (40, 0));
    stop_consumer(consumer).await;
}
