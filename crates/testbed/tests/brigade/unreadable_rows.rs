//! Rows that the database refuses to read fail alone.

use sqlx::PgPool;

use crate::rig::{TestRig, stop_consumer, wait_until};

#[tokio::test]
async fn a_path_that_is_not_utf8_fails_alone() {
    // A database without an encoding, as old ones are.
    let rig = TestRig::new().await;
    let rig = rig.in_database("ENCODING 'SQL_ASCII' LOCALE 'C'").await;
    rig.add_images(7).await;
    rig.execute_sql(r"INSERT INTO images (path) VALUES (E'image/caf\xe9.png')")
        .await;
    let bad = rig.query_number("SELECT max(id) FROM images").await;
    rig.add_image("image/last.png").await;
    // Outside the rule: nothing of ours.
    rig.execute_sql(r"INSERT INTO images (path) VALUES (E'other/caf\xe9.png')")
        .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 8);
    assert_eq!(rig.count_rows("failures").await, 1);
    assert_eq!(rig.failure_code(&bad.to_string()).await.unwrap(), "22021");
    let verified = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!((verified.code, verified.number_of("table_rows")), (1, 10));
    assert_eq!(
        verified.sorted_fields("mismatches", "code"),
        ["Unreadable", "Unreadable"]
    );
    // Mended, it moves by itself.
    rig.execute_sql(&format!(
        "UPDATE images SET path = 'image/0.png' WHERE id = {bad}"
    ))
    .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("failures").await, 0);
    stop_consumer(consumer).await;
}

/// Stores long paths out of line.
async fn store_paths_apart(rig: &TestRig) {
    rig.execute_sql(
        "CREATE EXTENSION pg_surgery;
         ALTER TABLE images ADD COLUMN filler text DEFAULT repeat('x', 1900);
         ALTER TABLE images ALTER COLUMN filler SET STORAGE PLAIN, ALTER COLUMN path SET STORAGE EXTERNAL",
    )
    .await;
}

/// What a broken disk or a crash without fsync leaves behind.
async fn damage_stored_paths(pool: &PgPool) {
    let damage = "DO $$ DECLARE
            toast regclass := (SELECT reltoastrelid FROM pg_class WHERE oid = 'images'::regclass);
            places tid[];
        BEGIN
            EXECUTE format('SELECT array_agg(ctid) FROM %s', toast) INTO places;
            PERFORM heap_force_kill(toast, places);
        END $$";
    sqlx::raw_sql(damage).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_damaged_path_fails_alone() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    store_paths_apart(&rig).await;
    rig.add_images(3).await;
    let path = format!("image/{}.png", "x".repeat(600));
    let bad = rig.add_image(&path).await;
    damage_stored_paths(&rig.pool).await;
    rig.feed_row(&bad, &path).await;
    let consumer = rig.spawn_consumer(&[]);
    // It was fed before the damage: its message is not deleted.
    wait_until("the dead letter", async || rig.dead_letters().await == 1).await;
    assert_eq!(rig.failure_code(&bad).await.unwrap(), "XX001");
    assert_eq!(rig.count_rows("changes").await, 0);
    rig.add_image("image/last.png").await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 4);
    assert_eq!(rig.count_rows("failures").await, 1);
    assert_eq!(rig.ledger_counter("failed").await, 1);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn rows_that_come_to_share_an_id_fail() {
    let rig = TestRig::new().await;
    let ids = rig.add_images(3).await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[]);
    rig.feed_row(&ids[0], "image/0.png").await;
    wait_until("the first move", async || {
        rig.count_rows("moves").await == 1
    })
    .await;
    rig.execute_sql(&format!(
        "ALTER TABLE images DROP CONSTRAINT images_pkey;
         INSERT INTO images (id, path) OVERRIDING SYSTEM VALUE VALUES ({}, 'image/2.png')",
        ids[1]
    ))
    .await;
    rig.feed_row(&ids[1], "image/1.png").await;
    rig.feed_row(&ids[2], "image/2.png").await;
    wait_until("the other move", async || {
        rig.count_rows("moves").await == 2
    })
    .await;
    wait_until("the failure", async || {
        rig.count_rows("failures").await == 1
    })
    .await;
    let code = rig.failure_code(&ids[1]).await;
    assert_eq!(code.as_deref(), Some("IdNotUnique"));
    stop_consumer(consumer).await;
}
