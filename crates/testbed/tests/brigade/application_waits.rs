//! The application waits for none of its own rows because of us, and wins every deadlock.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::process::ChildProcess;
use sqlx::{Postgres, Transaction};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// Longer than a bounded statement of ours, far shorter than the application's own transaction.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// Twenty images with unique paths, and a table of children.
async fn rig_with_unique_paths() -> (TestRig, Vec<String>) {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "ALTER TABLE images ADD views bigint NOT NULL DEFAULT 0;
         CREATE UNIQUE INDEX ON images (path);
         CREATE TABLE comments (image_id bigint REFERENCES images (id))",
    )
    .await;
    rig.open_run().await;
    let ids = rig.add_images(20).await;
    (rig, ids)
}

async fn feed_all(rig: &TestRig, ids: &[String]) -> ChildProcess {
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    rig.spawn_consumer(&[])
}

async fn view_image(rig: &TestRig, id: &str) {
    let began = Instant::now();
    rig.execute_sql(&format!(
        "UPDATE images SET views = views + 1 WHERE id = {id}"
    ))
    .await;
    assert!(began.elapsed() < LONGEST_WAIT, "{:?}", began.elapsed());
}

async fn execute(transaction: &mut Transaction<'_, Postgres>, sql: String) {
    let query = sqlx::query(sqlx::AssertSqlSafe(sql));
    query.execute(&mut **transaction).await.unwrap();
}

/// Until the others have moved, an update of one of them does not wait.
async fn wait_for_others(rig: &TestRig, id: &str) {
    wait_until("all but the one", async || {
        view_image(rig, id).await;
        rig.count_rows("moves").await == 19
    })
    .await;
}

async fn expect_all_moved(rig: &TestRig, consumer: ChildProcess) {
    wait_until("the last one", async || rig.count_rows("moves").await == 20).await;
    rig.wait_until_drained().await;
    assert_eq!(rig.count_rows("failures").await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_new_child_of_a_row_delays_only_that_row() {
    let (rig, ids) = rig_with_unique_paths().await;
    let mut open = rig.pool.begin().await.unwrap();
    let child = format!("INSERT INTO comments (image_id) VALUES ({})", ids[5]);
    execute(&mut open, child).await;
    let consumer = feed_all(&rig, &ids).await;
    wait_for_others(&rig, &ids[6]).await;
    let view = format!("UPDATE images SET views = views + 1 WHERE id = {}", ids[6]);
    execute(&mut open, view).await;
    open.commit().await.unwrap();
    expect_all_moved(&rig, consumer).await;
}

#[tokio::test]
async fn a_path_that_is_about_to_be_taken_delays_only_its_row() {
    let (rig, ids) = rig_with_unique_paths().await;
    let mut open = rig.pool.begin().await.unwrap();
    let taken = "INSERT INTO images (path) VALUES ('avatar/3.png')";
    execute(&mut open, taken.into()).await;
    let consumer = feed_all(&rig, &ids).await;
    let view = format!("UPDATE images SET views = views + 1 WHERE id = {}", ids[6]);
    wait_until("a commit that waits for the path", async || {
        rig.query_number(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
              AND datname = current_database() AND application_name = 'bucket-brigade consumer'",
        )
        .await
            > 0
    })
    .await;
    // A cycle: the commit has locked row 6 and waits for this transaction.
    execute(&mut open, view).await;
    let began = Instant::now();
    wait_until("all that this transaction has not touched", async || {
        view_image(&rig, &ids[7]).await;
        rig.count_rows("moves").await == 18
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(30));
    open.rollback().await.unwrap();
    expect_all_moved(&rig, consumer).await;
}

/// Its name is that of one of the ledger's tables.
#[tokio::test]
async fn a_row_that_a_trigger_waits_for_delays_only_its_row() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "ALTER TABLE images ADD views bigint NOT NULL DEFAULT 0;
         CREATE TABLE counters (path text PRIMARY KEY, moves bigint NOT NULL DEFAULT 0);
         INSERT INTO counters (path) SELECT 'avatar/' || n || '.png' FROM generate_series(0, 19) n;
         CREATE FUNCTION count_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE counters SET moves = moves + 1 WHERE path = NEW.path; RETURN NEW; END $$;
         CREATE TRIGGER count_move BEFORE UPDATE OF path ON images FOR EACH ROW EXECUTE FUNCTION count_move()",
    )
    .await;
    rig.open_run().await;
    let ids = rig.add_images(20).await;
    let mut open = rig.pool.begin().await.unwrap();
    let held = "UPDATE counters SET moves = moves WHERE path = 'avatar/5.png'";
    execute(&mut open, held.into()).await;
    let consumer = feed_all(&rig, &ids).await;
    wait_for_others(&rig, &ids[6]).await;
    open.commit().await.unwrap();
    expect_all_moved(&rig, consumer).await;
}

/// As where a trigger counts the images of their owners: half of the rows need a lock of the application's.
#[tokio::test]
async fn rows_that_share_a_lock_in_a_trigger_delay_only_themselves() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "ALTER TABLE images ADD views bigint NOT NULL DEFAULT 0;
         CREATE TABLE owners (id bigint PRIMARY KEY, moves bigint NOT NULL DEFAULT 0);
         INSERT INTO owners (id) VALUES (0), (1);
         CREATE FUNCTION count_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE owners SET moves = moves + 1 WHERE id = NEW.id % 2; RETURN NULL; END $$;
         CREATE TRIGGER count_move AFTER UPDATE OF path ON images FOR EACH ROW EXECUTE FUNCTION count_move()",
    )
    .await;
    rig.open_run().await;
    let ids = rig.add_images(60).await;
    let mut open = rig.pool.begin().await.unwrap();
    let held = "UPDATE owners SET moves = moves WHERE id = 1";
    execute(&mut open, held.into()).await;
    let consumer = feed_all(&rig, &ids).await;
    let is_free = |id: &&String| id.parse::<i64>().unwrap() % 2 == 0;
    let free = ids.iter().find(is_free).unwrap();
    wait_until("those that need another lock", async || {
        view_image(&rig, free).await;
        rig.count_rows("moves").await == 30
    })
    .await;
    open.commit().await.unwrap();
    wait_until("the others", async || rig.count_rows("moves").await == 60).await;
    stop_consumer(consumer).await;
}

/// Others of our statements succeed meanwhile, the heartbeat's above all.
#[tokio::test]
async fn a_feeder_whose_table_is_locked_says_so_and_goes_on() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.open_run().await;
    let mut locking = rig.pool.begin().await.unwrap();
    execute(
        &mut locking,
        "LOCK TABLE images IN ACCESS EXCLUSIVE MODE".into(),
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    let waits =
        "SELECT count(*) FROM bucket_brigade.workers WHERE role = 'feeder' AND state = 'waiting'
        AND reason LIKE '%another session holds the lock%'";
    wait_until("the reason", async || rig.query_number(waits).await == 1).await;
    locking.rollback().await.unwrap();
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("can be used again"), "{}", ended.log);
    stop_consumer(consumer).await;
}
