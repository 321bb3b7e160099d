//! Random ids: sweeps in the order of the heap, and one by id that proves that nothing is left.

use std::collections::BTreeSet;

use bucket_brigade_common::ledger::feed_source::{PageReader as _, SweepAccess};
use bucket_brigade_common::ledger::{
    HeapAccess, PostgresLedger, SecondRun, create_pool, find_random_ids,
};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use crate::rig::{TestRig, stop_consumer};

/// Twenty rows a page of the heap; every hundredth is in scope.
async fn rig_with_rows(rows: u32) -> TestRig {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(&format!(
        "CREATE TABLE images (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), path text, n int, filler text);
         INSERT INTO images (path, n, filler)
         SELECT CASE WHEN n % 100 = 0 THEN 'image/' ELSE 'other/' END || n, n, repeat('x', 350)
           FROM generate_series(1, {rows}) n;
         ANALYZE images"
    ))
    .await;
    for number in (100..=rows).step_by(100) {
        rig.put_object("images-old", &format!("image/{number}"), b"bytes")
            .await;
    }
    rig
}

/// The ids that a sweep finds.
async fn sweep(ledger: &PostgresLedger, start: Option<RowId>) -> Vec<String> {
    let (mut cursor, mut ids) = (start, Vec::new());
    loop {
        let page = ledger.read(cursor.as_ref(), 1000).await.unwrap();
        ids.extend(page.rows.iter().map(|(id, _)| id.to_string()));
        if page.last_id.is_none() {
            return ids;
        }
        cursor = page.last_id;
    }
}

/// Pages of the heap that this session has read, which is the only one.
async fn pages_read(rig: &TestRig, ledger: &PostgresLedger) -> i64 {
    sqlx::query("SELECT pg_stat_force_next_flush()")
        .execute(ledger.pool())
        .await
        .unwrap();
    rig.query_number(
        "SELECT (heap_blks_read + heap_blks_hit)::bigint FROM pg_statio_user_tables WHERE relname = 'images'",
    )
    .await
}

#[tokio::test]
async fn a_sweep_reads_each_page_of_the_heap_once() {
    let rig = rig_with_rows(20_000).await;
    rig.open_run().await;
    let pool = create_pool(rig.application.database_url.parse().unwrap(), 1);
    let spec = rig.run_spec();
    let ledger = PostgresLedger::open(pool, &spec, "test", SecondRun::Refused)
        .await
        .unwrap();
    let SweepAccess::Heap(start) = ledger.prepare().await.unwrap() else {
        panic!("not in the order of the heap");
    };
    let pages = rig
        .query_number("SELECT pg_relation_size('images') / 8192")
        .await;
    let mut read = Vec::new();
    for start in [Some(start), None] {
        let before = pages_read(&rig, &ledger).await;
        let ids = sweep(&ledger, start).await;
        assert_eq!((ids.len(), BTreeSet::from_iter(ids).len()), (200, 200));
        read.push(pages_read(&rig, &ledger).await - before);
    }
    assert!(read[0] <= pages + 10, "{read:?} pages of {pages}");
    assert!(read[1] >= 5 * pages, "{read:?} pages of {pages}");
}

/// A row that moved behind the cursor is found by the sweep by id, and a sweep goes on where it was cut off.
#[tokio::test]
async fn rows_behind_the_cursor_are_found() {
    let rig = rig_with_rows(2000).await;
    rig.open_run().await;
    rig.execute_sql("UPDATE bucket_brigade.feed_cursors SET cursor = 'heap 60', sweep_fed = 1")
        .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 20);
    let fed = "SELECT fed FROM bucket_brigade.feed_cursors WHERE sweep = 3";
    assert_eq!(rig.query_number(fed).await, 20);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_row_that_is_refused_fails_alone() {
    for (filter, code) in [("10 / n >= 0", "22012"), ("is_even(n)", "42704")] {
        let rig = rig_with_rows(2000).await;
        rig.execute_sql(
            "UPDATE images SET n = 0 WHERE n = 700;
             CREATE FUNCTION is_even(n bigint) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
                IF n = 0 THEN RAISE 'no such thing' USING ERRCODE = '42704'; END IF;
                RETURN true;
             END $$",
        )
        .await;
        let consumer = rig.spawn_consumer(&[]);
        let filter = [("ROW_FILTER", filter), ("PAGE_SIZE", "100")];
        let ended = rig.run_program("feeder", &filter).await;
        assert_eq!(ended.code, Some(2), "{}", ended.log);
        assert_eq!(rig.count_rows("moves").await, 19);
        let refused = format!("SELECT count(*) FROM bucket_brigade.failures WHERE code = '{code}'");
        assert_eq!(rig.query_number(&refused).await, 1);
        stop_consumer(consumer).await;
    }
}

async fn access(rig: &TestRig) -> SweepAccess {
    rig.open_run().await.prepare().await.unwrap()
}

#[tokio::test]
async fn the_order_depends_on_the_ids_and_on_the_rights() {
    let rig = rig_with_rows(2000).await;
    let is_heap = async || matches!(access(&rig).await, SweepAccess::Heap(_));
    assert!(is_heap().await, "by the statistics");
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output.contains("ids are random: the last reads"),
        "{}",
        plan.output
    );
    rig.execute_sql("CREATE INDEX left_idx ON images (id) WHERE path LIKE 'image/%'")
        .await;
    assert_eq!(access(&rig).await, SweepAccess::Index("left_idx".into()));
    rig.execute_sql(
        "DROP INDEX left_idx; CREATE TABLE copy (LIKE images INCLUDING ALL);
         INSERT INTO copy SELECT * FROM images; DROP TABLE images; ALTER TABLE copy RENAME TO images",
    )
    .await;
    assert!(is_heap().await, "by the version");
    rig.execute_sql("CLUSTER images USING copy_pkey; ANALYZE images")
        .await;
    assert_eq!(access(&rig).await, SweepAccess::Stretches);
}

#[tokio::test]
async fn a_role_with_rights_to_columns_needs_one_more() {
    let rig = rig_with_rows(200).await;
    let ledger = rig.open_run().await;
    let role = format!("columns_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT SELECT (id, path) ON images TO {role}"
    ))
    .await;
    let url = rig.url_as(&role);
    let pool = create_pool(url.parse().unwrap(), 1);
    let access = async || find_random_ids(&pool, ledger.table()).await.unwrap();
    assert_eq!(access().await, Some(HeapAccess::Denied));
    rig.execute_sql(&format!("GRANT SELECT (ctid) ON images TO {role}"))
        .await;
    assert_eq!(access().await, Some(HeapAccess::Granted));
    let read = "SELECT count(*) FROM images WHERE ctid >= '(0,0)' AND ctid < '(9,0)'";
    sqlx::query(read).execute(&*pool).await.unwrap();
}
