//! clean: what it costs on large tables, and what it says of that first.

use super::clean::CLEAN;
use crate::rig::{TestRig, wait_until};

/// Whatever is in it.
const AS_IF_LARGE: &str = "UPDATE pg_class SET reltuples = 10000000 WHERE oid = 'images'::regclass";

/// Four images whose sources may go by the ledger: a row names one, and one each may be meant by a query and by
/// another host.
async fn four_sources(rig: &TestRig) {
    rig.add_moved_images(4).await;
    for path in ["image/0.png?v=2", "//elsewhere/1.png", "image/2.png"] {
        rig.add_row(path).await;
    }
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.execute_sql(AS_IF_LARGE).await;
}

async fn assert_one_goes(rig: &TestRig) {
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (
            result.code,
            result.number_of("removed"),
            result.number_of("left_alone")
        ),
        (2, 1, 3),
        "{}",
        result.json
    );
    assert!(!rig.object_exists("images-old", "image/3.png").await);
}

#[tokio::test]
async fn without_indexes_the_table_is_read_in_stretches_after_saying_so() {
    let rig = TestRig::new().await;
    four_sources(&rig).await;
    let ended = rig.run_command(&CLEAN[..3]).await;
    for words in [
        "is read three times for each 16000 objects",
        "(about 10000000 rows) is read once before the first removal",
        "an index spares that: CREATE INDEX CONCURRENTLY ON public.images (\"path\");",
    ] {
        assert!(ended.log.contains(words), "no '{words}': {}", ended.log);
    }
    assert_one_goes(&rig).await;
}

#[tokio::test]
async fn the_indexes_that_a_preview_names_are_taken() {
    let rig = TestRig::new().await;
    four_sources(&rig).await;
    let preview = rig.run_json_command(&CLEAN[..3]).await;
    assert!(preview.json["rows_outside"].is_null(), "{}", preview.json);
    for sql in preview.sorted_fields("missing_indexes", "sql") {
        rig.execute_sql(&sql).await;
    }
    rig.execute_sql(AS_IF_LARGE).await;
    let preview = rig.run_json_command(&CLEAN[..3]).await;
    assert_eq!(preview.json["missing_indexes"].as_array().unwrap().len(), 0);
    assert_eq!(preview.number_of("rows_outside"), 1);
    assert_one_goes(&rig).await;
    wait_until("the statistics", async || {
        let used = "SELECT count(*) FROM pg_stat_user_indexes
            WHERE relname = 'images' AND idx_scan > 0 AND indexrelname <> 'images_pkey'";
        rig.query_number(used).await == 2
    })
    .await;
}

/// Of so many a preview counts a sample, and of few that are left each.
#[tokio::test]
async fn a_preview_of_many_moves_is_an_estimate_and_of_few_exact() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.moves
             (run_id, row_id, old_path, new_path, etag, consumer, moved_at, verified_at, source_etag, size_bytes)
         SELECT 1, n::text, 'image/' || n, 'avatar/' || n, md5(n::text), 'c', now() - interval '1 hour',
                CASE WHEN n % 4 > 0 THEN now() END, 'e', 10
           FROM generate_series(1, 300000) n",
    )
    .await;
    let preview = rig.run_json_command(&CLEAN[..3]).await;
    assert_eq!(preview.json["is_estimate"], true, "{}", preview.json);
    for (name, expected) in [
        ("moves", 300_000),
        ("unverified", 75_000),
        ("objects", 225_000),
        ("bytes", 2_250_000),
    ] {
        let found = preview.number_of(name);
        let is_near = (found - expected).abs() < expected / 10;
        assert!(is_near, "{name}: {found} of {expected}");
    }
    let seen = rig.run_command(&CLEAN[..3]).await.log;
    assert!(seen.contains("run 1: about 2"), "{seen}");
    rig.execute_sql(
        "DELETE FROM bucket_brigade.moves WHERE row_id::integer % 30000 <> 1;
         UPDATE bucket_brigade.moves SET verified_at = now()",
    )
    .await;
    let preview = rig.run_json_command(&CLEAN[..3]).await;
    assert_eq!(
        (preview.number_of("objects"), preview.number_of("bytes")),
        (10, 100)
    );
}

/// Through the index on their times it knows at once that all are too young.
#[tokio::test]
async fn young_moves_are_not_gone_through() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.moves
             (run_id, row_id, old_path, new_path, etag, consumer, moved_at, verified_at, source_etag)
         SELECT 1, n::text, 'image/' || n, 'avatar/' || n, 'e', 'c', now() - interval '1 hour', now(), 'e'
           FROM generate_series(1, 50000) n",
    )
    .await;
    rig.execute_sql("VACUUM ANALYZE bucket_brigade.moves").await;
    let older = ["clean", "--older-than", "2h", "--confirm", "images-old"];
    let result = rig.run_json_command(&older).await;
    assert_eq!((result.code, result.number_of("objects")), (0, 0));
    let count = async |what: &str, index: &str| {
        let sql = format!("SELECT {what} FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
        rig.query_number(&sql).await
    };
    wait_until("the statistics", async || {
        count("idx_scan", "moves_by_time").await > 0
    })
    .await;
    assert!(count("idx_tup_read", "moves_cleanable").await <= 10_000);
}
