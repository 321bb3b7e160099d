//! Rows that a trigger refuses or rewrites fail alone, and late failures leave the evidence of a newer move.

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::move_ledger::{MoveFailure, MoveLedger, PendingMove};

use crate::rig::{TestRig, stop_consumer, wait_until};

#[tokio::test]
async fn whatever_a_trigger_raises_is_its_rows_trouble() {
    let rig = TestRig::new().await;
    let codes = [
        (3, "42501"),
        (5, "55000"),
        (7, "0A000"),
        (9, "XX001"),
        (11, "54001"),
        (13, "25006"),
    ];
    let raises: Vec<String> = codes
        .iter()
        .map(|(number, code)| {
            format!("IF NEW.path = 'avatar/{number}.png' THEN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END IF;")
        })
        .collect();
    rig.execute_sql(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION refuse()",
        raises.join(" ")
    ))
    .await;
    let ids = rig.add_images(20).await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 14);
    for (number, code) in codes {
        assert_eq!(rig.failure_code(&ids[number]).await.unwrap(), code);
    }
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_path_that_a_trigger_rewrites_is_left_alone() {
    let rig = TestRig::new().await;
    let upper = rig.add_image("image/A.PNG").await;
    rig.add_images(5).await;
    rig.execute_sql(
        "CREATE FUNCTION fold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            NEW.path := lower(NEW.path); RETURN NEW; END $$;
         CREATE TRIGGER fold BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION fold()",
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.failure_code(&upper).await.unwrap(), "PathRewritten");
    assert_eq!(rig.path_of(&upper).await.unwrap(), "image/A.PNG");
    assert_eq!(rig.count_rows("moves").await, 5);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_late_failure_leaves_a_newer_move_on_record() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    let text_id = rig.add_image("image/a.png").await;
    let id = ledger.id_type().parse(&text_id).unwrap();
    let pending = PendingMove {
        id: id.clone(),
        old_path: "image/a.png".into(),
        new_path: "avatar/a.png".into(),
        destination_key: "avatar/a.png".into(),
        etag: "e".into(),
        size_bytes: None,
        is_source_gone: false,
        companions: CompanionCopies::new(),
    };
    ledger.commit(&[pending]).await.unwrap();
    // The application sets it back; it is fed again, and delivered twice.
    rig.execute_sql("UPDATE images SET path = 'image/a.png'")
        .await;
    let mut newer = rig.pool.begin().await.unwrap();
    for sql in [
        "UPDATE images SET path = 'avatar/a.png'",
        "UPDATE bucket_brigade.moves SET moved_at = now()",
    ] {
        sqlx::query(sql).execute(&mut *newer).await.unwrap();
    }
    let late = tokio::spawn(async move {
        let failure = MoveFailure {
            id,
            path: "image/a.png".into(),
            code: "RowLocked".into(),
            message: String::new(),
            permanent: false,
        };
        ledger.record_failures(&[failure]).await
    });
    wait_until("the failure to wait for the move", async || {
        rig.query_number(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
              AND datname = current_database()",
        )
        .await
            > 0
    })
    .await;
    newer.commit().await.unwrap();
    late.await.unwrap().unwrap();
    assert_eq!(rig.count_rows("moves").await, 1);
    assert_eq!(rig.ledger_counter("moved").await, 1);
}
