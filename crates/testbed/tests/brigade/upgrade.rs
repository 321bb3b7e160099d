//! Ledgers of other versions.

use crate::rig::{TestRig, stop_consumer, wait_until};

#[tokio::test]
async fn a_ledger_of_the_version_before_is_brought_up_to_date_by_the_feeder_alone() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let first = include_str!("../../../common/migrations/0001_ledger.sql");
    rig.execute_sql(&format!(
        "CREATE SCHEMA bucket_brigade; {first}
         CREATE TABLE bucket_brigade.schema_migrations (version bigint PRIMARY KEY,
             description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
             success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL);"
    ))
    .await;
    sqlx::query(
        "INSERT INTO bucket_brigade.schema_migrations (version, description, success, checksum, execution_time)
         VALUES (1, 'ledger', true, sha384(convert_to($1, 'UTF8')), 0)",
    )
    .bind(first)
    .execute(&rig.pool)
    .await
    .unwrap();
    // A run of then, with a failure on record.
    let failed = rig.add_row("image/failed.png").await;
    rig.execute_sql(&format!(
        "INSERT INTO bucket_brigade.run (images_table, id_column, path_column, old_prefix, new_prefix,
             source_bucket, source_key_prefix, destination_bucket, destination_key_prefix, sweep, fed)
         VALUES ('\"public\".\"images\"', 'id', 'path', 'image/', 'avatar/', 'images-old', 'image/', 'images-new', 'avatar/', 4, 7);
         INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
         VALUES (1, '{failed}', 'image/failed.png', 'NoSuchKey', 'gone', true);
         INSERT INTO bucket_brigade.counters (run_id, worker, failed) VALUES (1, 'consumer-1', 1);"
    ))
    .await;
    let consumer = rig.spawn_consumer(&[]);
    wait_until("the consumer to wait", async || {
        consumer.log_tail(50).contains("waiting for the feeder")
    })
    .await;
    let early = rig.run_feeder(&["status"]).await;
    assert_eq!(early.code, 64, "{}", early.log);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(
        (rig.count_rows("moves").await, rig.count_rows("run").await),
        (3, 1)
    );
    let fed = "SELECT fed FROM bucket_brigade.feed_cursors WHERE sweep = 5";
    assert_eq!(rig.query_number(fed).await, 10);
    let status = rig.feeder_json(&["status", "--json"]).await;
    assert_eq!(status["failures"][0]["code"], "NoSuchKey", "{status}");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_ledger_of_a_later_version_is_reported() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql("INSERT INTO bucket_brigade.schema_migrations (version, description, success, checksum, execution_time)
             VALUES (99, 'later', true, '', 0)")
        .await;
    for program in ["consumer", "feeder"] {
        let ended = rig.run_program(program, &[]).await;
        assert_eq!(ended.code, Some(70), "{program}: {}", ended.log);
        assert!(
            ended.log.contains("does not fit this version"),
            "{}",
            ended.log
        );
    }
}
