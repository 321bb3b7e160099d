//! Feeding through a partial index: a sweep costs what is left, and nothing where nothing is.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::{PageReader as _, SweepAccess};
use bucket_brigade_common::ledger::{self, PostgresLedger, SecondRun};
use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const INDEX: &str = "CREATE INDEX left_idx ON images (id) WHERE path LIKE 'image/%'";

/// Rows that are moved already, and ten images anywhere among them.
async fn rig_with_moved_rows(rows: u32) -> TestRig {
    let rig = TestRig::new().await;
    // Vacuums and analyzes in the background would count as reads.
    rig.execute_sql(&format!(
        "ALTER TABLE images SET (autovacuum_enabled = off);
         INSERT INTO images (path) SELECT 'avatar/old/' || n FROM generate_series(1, {rows}) n;
         UPDATE images SET path = 'image/' || id || '.png' WHERE id % ({rows} / 10) = 0; ANALYZE images"
    ))
    .await;
    for number in 1..=10 {
        let key = format!("image/{}.png", number * rows / 10);
        rig.put_object("images-old", &key, b"bytes").await;
    }
    rig
}

/// Pages of the table and its indexes that were read, by the server's own count.
async fn buffers(rig: &TestRig) -> i64 {
    rig.query_number(
        "SELECT sum(coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0)
                  + coalesce(idx_blks_hit, 0))::bigint FROM pg_statio_user_tables
          WHERE relname = 'images' OR relid IN (SELECT relid FROM pg_partition_tree('images'))",
    )
    .await
}

#[tokio::test]
async fn a_sweep_costs_what_is_left() {
    let rig = rig_with_moved_rows(100_000).await;
    rig.execute_sql(INDEX).await;
    rig.execute_sql("VACUUM images").await;
    // The count in scope reads the table, once for each run.
    rig.open_run().await;
    rig.execute_sql("UPDATE bucket_brigade.run SET in_scope = 10")
        .await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output.contains("each goes through left_idx"),
        "{}",
        plan.output
    );
    let consumer = rig.spawn_consumer(&[]);
    wait_until("the consumer", async || rig.count_rows("workers").await > 0).await;
    let before = settled_buffers(&rig).await;
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "3")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("moves").await, 10);
    let read = settled_buffers(&rig).await - before;
    assert!(read < 1000, "{read} buffers for ten rows");
}

/// Once the sessions that have ended have reported.
pub(crate) async fn settled_buffers(rig: &TestRig) -> i64 {
    let mut last = -1;
    loop {
        let now = buffers(rig).await;
        if now == last {
            return now;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
}

#[tokio::test]
async fn watching_with_nothing_to_do_costs_nothing() {
    for index in [
        INDEX,
        "CREATE INDEX path_idx ON images (path text_pattern_ops)",
    ] {
        let rig = rig_with_moved_rows(20_000).await;
        rig.execute_sql("UPDATE images SET path = 'avatar/' || id WHERE path LIKE 'image/%'")
            .await;
        rig.execute_sql(index).await;
        rig.execute_sql("VACUUM images").await;
        rig.open_run().await;
        rig.execute_sql(
            "UPDATE bucket_brigade.run SET in_scope = 10; UPDATE bucket_brigade.feed_cursors SET fed = 10",
        )
        .await;
        let mut feeder = rig.spawn("feeder", &[("WATCH_INTERVAL", "100ms")], &["--watch"]);
        let watching = "SELECT count(*) FROM bucket_brigade.workers WHERE state LIKE 'watching%'";
        wait_until("the watch", async || rig.query_number(watching).await > 0).await;
        let looked =
            "SELECT sum(idx_scan)::bigint FROM pg_stat_user_indexes WHERE relname = 'images'";
        let (before, looks) = (buffers(&rig).await, rig.query_number(looked).await);
        wait_until("some looks", async || {
            rig.query_number(looked).await > looks + 10
        })
        .await;
        // The two are not read at once: twice as much would do.
        let read = buffers(&rig).await - before;
        let looks = rig.query_number(looked).await - looks;
        assert!(read <= looks * 10, "{read} buffers for {looks} looks");
        // And what comes is found.
        rig.put_object("images-old", "image/new.png", b"bytes")
            .await;
        let consumer = rig.spawn_consumer(&[]);
        let id = rig.add_row("image/new.png").await;
        wait_until("the row", async || {
            rig.path_of(&id).await.as_deref() == Some("avatar/new.png")
        })
        .await;
        feeder.terminate().unwrap();
        assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
        stop_consumer(consumer).await;
    }
}

async fn access(rig: &TestRig, filter: Option<&str>) -> SweepAccess {
    let mut spec = rig.run_spec();
    spec.options.row_filter = filter.map(Into::into);
    let pool = ledger::create_pool(rig.application.database_url.parse().unwrap(), 2);
    let ledger = PostgresLedger::open(pool, &spec, "test", SecondRun::Allowed)
        .await
        .unwrap();
    ledger.prepare().await.unwrap()
}

#[tokio::test]
async fn the_planner_decides_which_index_serves() {
    let rig = TestRig::new().await;
    rig.add_row("image/1.png").await;
    rig.execute_sql("ALTER TABLE images ADD deleted_at timestamptz")
        .await;
    assert_eq!(access(&rig, None).await, SweepAccess::Stretches);
    let alive = Some("deleted_at IS NULL");
    for (predicate, serves, serves_filtered) in [
        ("path LIKE 'avatar/%'", false, false),
        ("path IS NOT NULL", false, false),
        ("path LIKE 'image/%' AND deleted_at IS NULL", false, true),
        ("path LIKE 'image/%'", true, true),
        ("deleted_at IS NULL", false, false),
    ] {
        rig.execute_sql(&format!(
            "CREATE INDEX \"left on it\" ON images (id) WHERE {predicate}"
        ))
        .await;
        let expected = |serves| {
            if serves {
                SweepAccess::Index("\"left on it\"".into())
            } else {
                SweepAccess::Stretches
            }
        };
        assert_eq!(access(&rig, None).await, expected(serves), "{predicate}");
        assert_eq!(
            access(&rig, alive).await,
            expected(serves_filtered),
            "{predicate}"
        );
        rig.execute_sql("DROP INDEX \"left on it\"").await;
    }
    rig.execute_sql(
        "UPDATE images SET deleted_at = now(); CREATE INDEX ON images (path text_pattern_ops)",
    )
    .await;
    // Under load the index is not asked for long.
    wait_until("the index to tell", async || {
        access(&rig, alive).await == SweepAccess::NothingLeft
    })
    .await;
    assert_eq!(access(&rig, None).await, SweepAccess::Stretches);
}

/// For which Postgres knows no LIKE under the column's own collation, not even to plan it.
#[tokio::test]
async fn paths_without_case_are_swept_by_stretches_or_an_index_of_another_collation() {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(
        "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE images (id bigint PRIMARY KEY, path text COLLATE caseless, deleted_at timestamptz);
         INSERT INTO images SELECT n, 'image/' || n FROM generate_series(1, 1000) n;
         CREATE INDEX ON images (id) WHERE deleted_at IS NULL; ANALYZE images",
    )
    .await;
    assert_eq!(access(&rig, None).await, SweepAccess::Stretches);
    create_printed_index(&rig).await;
}

#[tokio::test]
async fn partitions_have_their_own_indexes() {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(
        "CREATE TABLE images (id bigint PRIMARY KEY, path text) PARTITION BY HASH (id);
         CREATE TABLE images_0 PARTITION OF images FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE images_1 PARTITION OF images FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         INSERT INTO images SELECT n, 'image/' || n FROM generate_series(1, 100) n;
         CREATE INDEX ON images_0 (id) WHERE path LIKE 'image/%'",
    )
    .await;
    assert_eq!(
        access(&rig, None).await,
        SweepAccess::Stretches,
        "one has none"
    );
    rig.execute_sql("CREATE INDEX ON images_1 (id) WHERE path LIKE 'image/%'")
        .await;
    assert!(matches!(access(&rig, None).await, SweepAccess::Index(_)));
}

/// The one that plan prints, which has to serve.
async fn create_printed_index(rig: &TestRig) {
    let plan = rig.run_feeder(&["plan"]).await;
    let (_, statement) = plan.output.split_once("CREATE INDEX CONCURRENTLY").unwrap();
    let (statement, _) = statement.split_once(';').unwrap();
    rig.execute_sql(&format!("CREATE INDEX {statement}")).await;
    assert!(
        matches!(access(rig, None).await, SweepAccess::Index(_)),
        "{statement}"
    );
}

#[tokio::test]
async fn plan_prints_an_index_that_serves() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    create_printed_index(&rig).await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "2")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("moves").await, 3);
    assert_eq!(access(&rig, None).await, SweepAccess::NothingLeft);
}

#[tokio::test]
async fn without_an_index_a_watch_looks_at_new_rows_and_slowly_at_the_others() {
    let rig = rig_with_moved_rows(20_000).await;
    rig.execute_sql("UPDATE images SET path = 'avatar/' || id WHERE path LIKE 'image/%'")
        .await;
    let settings = [
        ("WATCH_INTERVAL", "200ms"),
        ("PAGE_SIZE", "10"),
        ("FULL_SWEEP_INTERVAL", "8s"),
    ];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let consumer = rig.spawn_consumer(&[]);
    let watching = "SELECT count(*) FROM bucket_brigade.workers WHERE state LIKE 'watching%'";
    wait_until("the watch", async || rig.query_number(watching).await > 0).await;
    // One near the table's end goes back to its old path, and a new one comes, which is found first.
    rig.put_object("images-old", "image/new.png", b"bytes")
        .await;
    rig.put_object("images-old", "image/late.png", b"bytes")
        .await;
    rig.execute_sql("UPDATE images SET path = 'image/late.png' WHERE id = 19000")
        .await;
    let id = rig.add_row("image/new.png").await;
    for (id, path) in [(&*id, "avatar/new.png"), ("19000", "avatar/late.png")] {
        wait_until("the row", async || {
            rig.path_of(id).await.as_deref() == Some(path)
        })
        .await;
    }
    let finished = "SELECT count(*) FROM bucket_brigade.run WHERE finished_at IS NOT NULL";
    wait_until("the end", async || rig.query_number(finished).await > 0).await;
    feeder.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    stop_consumer(consumer).await;
}
