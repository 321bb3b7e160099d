//! Rows fed from many stretches of the id range at once.

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::application::{ApplicationIdType, ImagesTable};
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const CURSOR: &str =
    "SELECT count(*) FROM bucket_brigade.feed_cursors WHERE cursor LIKE 'spread %..%'";

/// Rows from -100 to 299, of which every second is in scope.
async fn seed(rig: &TestRig) {
    rig.execute_sql(
        "INSERT INTO images (id, path)
         SELECT n, CASE WHEN n % 2 = 0 THEN 'image/' ELSE 'other/' END || n || '.png'
           FROM generate_series(-100, 299) n",
    )
    .await;
    for id in (-100..300).step_by(2) {
        rig.put_object("images-old", &format!("image/{id}.png"), b"bytes")
            .await;
    }
}

/// The ids in the queue.
async fn queued_ids(rig: &TestRig) -> Vec<i64> {
    let receive = rig.cloud.sqs_client().receive_message();
    let receive = receive.queue_url(&rig.queue.url).visibility_timeout(0);
    let received = receive.max_number_of_messages(10).send().await.unwrap();
    let messages = received.messages.unwrap_or_default();
    let id = |body: &str| {
        let task: serde_json::Value = serde_json::from_str(body).unwrap();
        task["id"].as_str().unwrap().parse().unwrap()
    };
    messages
        .iter()
        .map(|message| id(message.body().unwrap()))
        .collect()
}

/// The first rows are of all stretches, a killed feeder's successor goes on in each, and none is left out, whatever the
/// order it is fed in next.
#[tokio::test]
async fn stretches_are_fed_in_turn_and_resumed() {
    let rig = TestRig::new().await;
    seed(&rig).await;
    let slow = [("FEED_ORDER", "spread:4"), ("PAGE_SIZE", "8")];
    rig.open_run().await;
    rig.execute_sql("UPDATE bucket_brigade.run SET rate_limit = 20")
        .await;
    let mut killed = rig.spawn("feeder", &slow, &[]);
    wait_until("the first rows", async || rig.queued_messages().await >= 40).await;
    wait_until("the cursor", async || rig.query_number(CURSOR).await == 1).await;
    killed.kill().await.unwrap();
    let fed = rig
        .query_number("SELECT fed FROM bucket_brigade.feed_cursors")
        .await;
    assert!((1..200).contains(&fed), "{fed}");
    // The first ten of them: of each quarter.
    let ids = queued_ids(&rig).await;
    for from in [-100, 0, 100, 200] {
        let is_of = |id: &&i64| (from..from + 100).contains(*id);
        assert!(ids.iter().any(|id| is_of(&id)), "{from}: {ids:?}");
    }
    rig.execute_sql("UPDATE bucket_brigade.run SET rate_limit = NULL")
        .await;
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &slow, &[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 200);
    // It went on from where the other was: all it fed again is what was not on record.
    let fed_in_all = rig
        .query_number("SELECT fed FROM bucket_brigade.feed_cursors")
        .await;
    assert_eq!(fed_in_all, 200);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_sweep_of_another_order_is_begun_again() {
    let rig = TestRig::new().await;
    seed(&rig).await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[]);
    for (cursor, order) in [("spread 250.. ", "id"), ("250", "spread")] {
        rig.execute_sql(&format!(
            "UPDATE bucket_brigade.feed_cursors SET cursor = '{cursor}', sweep_fed = 1"
        ))
        .await;
        let ended = rig.run_program("feeder", &[("FEED_ORDER", order)]).await;
        assert_eq!(ended.code, Some(0), "{order}: {}", ended.log);
        assert_eq!(rig.count_rows("moves").await, 200, "{order}");
    }
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_watch_finds_new_rows_soon_and_an_index_serves_stretches() {
    let rig = TestRig::new().await;
    seed(&rig).await;
    let settings = [
        ("FEED_ORDER", "spread:4"),
        ("PAGE_SIZE", "8"),
        ("WATCH_INTERVAL", "100ms"),
    ];
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let moved = async |count| {
        wait_until("the moves", async || rig.count_rows("moves").await == count).await;
    };
    moved(200).await;
    // A look at the whole table takes a day.
    rig.execute_sql(
        "INSERT INTO images (id, path) SELECT n, 'other/' || n FROM generate_series(300, 9999) n",
    )
    .await;
    rig.put_object("images-old", "image/new.png", b"bytes")
        .await;
    rig.execute_sql("INSERT INTO images (id, path) VALUES (10000, 'image/new.png')")
        .await;
    moved(201).await;
    rig.execute_sql("CREATE INDEX ON images (id) WHERE path LIKE 'image/%'")
        .await;
    rig.put_object("images-old", "image/old.png", b"bytes")
        .await;
    rig.execute_sql("UPDATE images SET path = 'image/old.png' WHERE id = 5000")
        .await;
    moved(202).await;
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn ids_that_are_no_numbers_are_refused() {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table = ImagesTable {
        id_type: ApplicationIdType::Uuid,
        ..ImagesTable::default()
    };
    rig.application.create_table(&rig.pool).await.unwrap();
    let refused = rig.run_program("feeder", &[("FEED_ORDER", "spread")]).await;
    assert_eq!(refused.code, Some(64), "{}", refused.log);
    for words in ["FEED_ORDER", "whole numbers", "uuid"] {
        assert!(refused.log.contains(words), "{}", refused.log);
    }
    let refused = rig.run_program("feeder", &[("FEED_ORDER", "random")]).await;
    assert_eq!(refused.code, Some(64), "{}", refused.log);
}
