//! Commit: rows the database refuses, rows that are locked, a database that goes away.

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::move_ledger::{MoveFailure, MoveLedger, PendingMove};

use crate::rig::{TestRig, stop_consumer, wait_until};

#[tokio::test]
async fn a_row_the_database_refuses_fails_alone() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "ALTER TABLE images ADD CHECK (path <> 'avatar/3.png');
         CREATE UNIQUE INDEX ON images (path);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.path = 'avatar/5.png' THEN RAISE EXCEPTION 'not this one'; END IF;
            IF NEW.path = 'avatar/9.png' THEN RAISE EXCEPTION 'nor this' USING ERRCODE = 'U0001'; END IF;
            RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let ids = rig.add_images(20).await;
    // Its new path is another row's already: the application's, with an object of the same bytes.
    rig.add_row("avatar/7.png").await;
    rig.put_object("images-new", "avatar/7.png", b"image/7.png")
        .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 16);
    for (number, code) in [(3, "23514"), (5, "P0001"), (7, "23505"), (9, "U0001")] {
        assert_eq!(rig.failure_code(&ids[number]).await.unwrap(), code);
    }
    assert!(ended.log.contains("23514"), "{}", ended.log);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_path_that_becomes_too_long_for_its_column_fails_alone() {
    let rig = TestRig::new().await;
    rig.execute_sql("ALTER TABLE images ALTER path TYPE varchar(12)")
        .await;
    let long = rig.add_image("image/123456").await;
    let short = rig.add_image("image/1").await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(2));
    assert_eq!(rig.failure_code(&long).await.unwrap(), "22001");
    assert_eq!(rig.path_of(&short).await.unwrap(), "avatar/1");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_locked_row_delays_only_itself() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let ids = rig.add_images(20).await;
    let mut lock = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images WHERE path = 'image/4.png' FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(&[]);
    wait_until("all but the locked one", async || {
        rig.count_rows("moves").await == 19
    })
    .await;
    lock.rollback().await.unwrap();
    wait_until("the one that was locked", async || {
        rig.count_rows("moves").await == 20
    })
    .await;
    rig.wait_until_drained().await;
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "CopyObject"),
        21,
        "20 and the probe's"
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_path_is_compared_byte_by_byte_whatever_its_collation() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE COLLATION sloppy (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         ALTER TABLE images ALTER path TYPE text COLLATE sloppy",
    )
    .await;
    let other_case = rig.add_image("IMAGE/a.png").await;
    let fed = rig.add_image("image/b.png").await;
    rig.open_run().await;
    rig.feed_row(&fed, "image/B.png").await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    assert_eq!(rig.path_of(&other_case).await.unwrap(), "IMAGE/a.png");
    assert_eq!(rig.path_of(&fed).await.unwrap(), "avatar/b.png");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn cut_connections_lose_nothing() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let ids = rig.add_images(200).await;
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(&[("MAX_CONCURRENCY", "4")]);
    for moved in [20, 60, 100] {
        wait_until("some to move", async || {
            rig.count_rows("moves").await >= moved
        })
        .await;
        rig.query_number(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'bucket-brigade consumer'",
        )
        .await;
    }
    wait_until("all to move", async || rig.count_rows("moves").await == 200).await;
    rig.wait_until_drained().await;
    assert_eq!(rig.ledger_counter("moved").await, 200);
    assert_eq!(
        rig.count_rows("failures").await + rig.count_rows("changes").await,
        0
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_failure_that_comes_too_late_leaves_the_evidence_of_the_move() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    let id = ledger
        .id_type()
        .parse(&rig.add_image("image/a.png").await)
        .unwrap();
    let one = PendingMove {
        id: id.clone(),
        old_path: "image/a.png".into(),
        new_path: "avatar/a.png".into(),
        destination_key: "avatar/a.png".into(),
        etag: "e".into(),
        size_bytes: None,
        is_source_gone: false,
        is_found: false,
        companions: CompanionCopies::new(),
        fence: 0,
    };
    let failure = MoveFailure {
        id,
        path: "image/a.png".into(),
        code: "RowLocked".into(),
        message: String::new(),
        permanent: false,
        orphan: None,
    };
    ledger.commit(&[&one]).await.unwrap();
    ledger
        .record_failures(std::slice::from_ref(&failure))
        .await
        .unwrap();
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("failures").await
        ),
        (1, 0)
    );
    assert_eq!(
        (
            rig.ledger_counter("moved").await,
            rig.ledger_counter("failed").await
        ),
        (1, 0)
    );
    // Undone by hand, it fails like any other row, and is not counted as moved too.
    rig.execute_sql("UPDATE images SET path = 'image/a.png'")
        .await;
    ledger.record_failures(&[failure]).await.unwrap();
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("failures").await
        ),
        (0, 1)
    );
    assert_eq!(
        (
            rig.ledger_counter("moved").await,
            rig.ledger_counter("failed").await
        ),
        (0, 1)
    );
    ledger.commit(&[&one]).await.unwrap();
    assert_eq!(
        (
            rig.ledger_counter("moved").await,
            rig.ledger_counter("failed").await
        ),
        (1, 0)
    );
}
