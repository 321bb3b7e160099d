//! Rows that a trigger refuses or rewrites fail alone, and late failures leave the evidence of a newer move.

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::move_ledger::{MoveFailure, MoveLedger, PendingMove};
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Cluster};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

#[tokio::test]
async fn whatever_a_trigger_raises_is_its_rows_trouble() {
    let codes = [
        (3, "42501"),
        (5, "55000"),
        (7, "0A000"),
        (9, "XX001"),
        (11, "54001"),
        (13, "25006"),
    ];
    fail_alone(&TestRig::new().await, codes).await;
}

/// As PL/Perl and PL/Python raise everything, and a foreign server that is down.
#[tokio::test]
async fn also_where_it_looks_like_the_servers() {
    let codes = [
        (3, "XX000"),
        (5, "08006"),
        (7, "40001"),
        (9, "53100"),
        (11, "57P01"),
        (13, "58030"),
    ];
    fail_alone(&TestRig::new().await, codes).await;
}

/// Only where the translations are installed.
#[tokio::test]
async fn also_where_the_server_speaks_german() {
    let cluster = Cluster::start_in_language("de").await.unwrap();
    let (options, queue) = (CloudOptions::default(), CreateQueueOptions::default());
    let rig = TestRig::on_cluster(&cluster, options, queue).await;
    rig.application.create_table(&rig.pool).await.unwrap();
    let division = sqlx::query("SELECT 1 / 0").execute(&rig.pool).await;
    if division
        .unwrap_err()
        .to_string()
        .contains("division by zero")
    {
        return;
    }
    let codes = [
        (3, "42501"),
        (5, "08001"),
        (7, "57014"),
        (9, "40001"),
        (11, "53100"),
        (13, "25006"),
    ];
    fail_alone(&rig, codes).await;
}

/// Of twenty rows all move but those for which a trigger raises a code.
async fn fail_alone(rig: &TestRig, codes: [(usize, &str); 6]) {
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

/// An index entry that is too long: 54000, which no function raises.
#[tokio::test]
async fn a_row_beyond_a_limit_of_the_servers_fails_alone() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE FUNCTION entry(path text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
            SELECT CASE WHEN path = 'avatar/7.png'
                   THEN (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200) n) ELSE path END $$;
         CREATE INDEX ON images (entry(path))",
    )
    .await;
    let ids = rig.add_images(20).await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 19);
    assert_eq!(rig.failure_code(&ids[7]).await.unwrap(), "54000");
    stop_consumer(consumer).await;
}

/// Each row passes alone.
#[tokio::test]
async fn a_batch_that_is_too_large_as_a_whole_moves_in_parts() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE SEQUENCE refused;
         CREATE FUNCTION limit_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM updated) > 3 THEN
                PERFORM nextval('refused');
                RAISE EXCEPTION 'too many' USING ERRCODE = '54000';
            END IF; RETURN NULL; END $$;
         CREATE TRIGGER limit_rows AFTER UPDATE ON images REFERENCING NEW TABLE AS updated
            FOR EACH STATEMENT EXECUTE FUNCTION limit_rows()",
    )
    .await;
    gather_batches(&rig).await;
    rig.add_images(100).await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 100);
    let refused = "SELECT last_value FROM refused WHERE is_called";
    assert!(rig.query_number(refused).await > 0);
    stop_consumer(consumer).await;
}

/// Commits take long enough for a batch to gather beside two that are in flight.
async fn gather_batches(rig: &TestRig) {
    rig.execute_sql(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(0.15); RETURN NULL; END $$;
         CREATE TRIGGER linger BEFORE UPDATE ON images FOR EACH STATEMENT EXECUTE FUNCTION linger()",
    )
    .await;
}

/// A trigger of one row reaches the time limit, which its neighbours wait for twice, not once for each half.
#[tokio::test]
async fn a_row_that_takes_too_long_is_tried_alone_at_once() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION time_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.path = 'avatar/90.png' THEN
                PERFORM nextval('tries');
                RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014';
            END IF; RETURN NEW; END $$;
         CREATE TRIGGER time_out BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION time_out()",
    )
    .await;
    gather_batches(&rig).await;
    let ids = rig.add_images(100).await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 99);
    assert_eq!(rig.failure_code(&ids[90]).await.unwrap(), "57014");
    let tries = rig.query_number("SELECT last_value FROM tries").await;
    assert!(tries <= 2, "{tries}");
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
async fn a_path_that_is_rewritten_after_the_update_is_left_alone_too() {
    let rig = TestRig::new().await;
    let upper = rig.add_image("image/A.PNG").await;
    rig.add_images(5).await;
    rig.execute_sql(
        "CREATE FUNCTION fold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE images SET path = lower(path) WHERE id = NEW.id AND path <> lower(path); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER fold AFTER UPDATE ON images DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION fold()",
    )
    .await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(plan.output.contains("PathRewritten"), "{}", plan.output);
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.failure_code(&upper).await.unwrap(), "PathRewritten");
    assert_eq!(rig.path_of(&upper).await.unwrap(), "image/A.PNG");
    assert_eq!(rig.count_rows("moves").await, 5);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_trigger_that_comes_while_the_run_is_under_way_is_met_as_well() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE FUNCTION fold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE images SET path = lower(path) WHERE id = NEW.id AND path <> lower(path); RETURN NULL; END $$;
         CREATE TRIGGER fold AFTER UPDATE ON images FOR EACH ROW EXECUTE FUNCTION fold();
         ALTER TABLE images DISABLE TRIGGER fold",
    )
    .await;
    rig.open_run().await;
    let ids = rig.add_images(2).await;
    let upper = rig.add_image("image/A.PNG").await;
    let consumer = rig.spawn_consumer(&[]);
    rig.feed_row(&ids[0], "image/0.png").await;
    wait_until("the first move", async || {
        rig.count_rows("moves").await == 1
    })
    .await;
    rig.execute_sql("ALTER TABLE images ENABLE TRIGGER fold")
        .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.failure_code(&upper).await.unwrap(), "PathRewritten");
    assert_eq!(rig.path_of(&upper).await.unwrap(), "image/A.PNG");
    assert_eq!(rig.count_rows("moves").await, 2);
    let back = ["rollback", "--all", "--yes"];
    let back = rig.run_json_command(&back).await;
    assert_eq!(back.number_of("rolled_back"), 2, "{}", back.json);
    stop_consumer(consumer).await;
}

/// Its table's index holds an id that the ledger's, with the run's number before it, does not.
#[tokio::test]
async fn a_row_that_cannot_be_recorded_as_failed_is_counted_and_ends_the_run() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "ALTER TABLE images ALTER id DROP IDENTITY;
         ALTER TABLE images ALTER id TYPE text;
         INSERT INTO images (id, path) SELECT
            left(string_agg(md5(n::text), ''), 2690), 'image/long.png' FROM generate_series(1, 99) n",
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    rig.execute_sql("INSERT INTO images VALUES ('7', 'image/7.png'), ('x', 'image/x.png')")
        .await;
    for key in ["image/long.png", "image/7.png", "image/x.png"] {
        rig.put_object("images-old", key, b"bytes").await;
    }
    for arguments in [&["--limit", "3"][..], &[]] {
        let ended = rig.run_program_with("feeder", &[], arguments).await;
        assert_eq!(ended.code, Some(2), "{}", ended.log);
        let counted = "1 row failed that the ledger cannot hold";
        assert!(ended.log.contains(counted), "{}", ended.log);
        assert!(ended.log.contains("its id has 2690 bytes"), "{}", ended.log);
    }
    assert_eq!(rig.count_rows("moves").await, 2);
    assert_eq!(rig.dead_letters().await, 0);
    rig.execute_sql("UPDATE images SET id = '8' WHERE path = 'image/long.png'")
        .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 3);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_failure_is_recorded_without_what_the_database_cannot_hold() {
    let rig = TestRig::new().await;
    let rig = rig.in_database("ENCODING 'LATIN1' LOCALE 'C'").await;
    let ledger = rig.open_run().await;
    let ids = rig.add_images(2).await;
    let noise: String = (0..3000).map(|_| fastrand::alphanumeric()).collect();
    for ((id, path), (code, message)) in ids.iter().zip(["image/0.png", "image/1.png"]).zip([
        ("XMinioDiskFull", "\u{9519}\u{8bef} of the store"),
        (&*noise, "a code longer than an index holds"),
    ]) {
        let failure = MoveFailure {
            id: ledger.id_type().parse(id).unwrap(),
            path: path.into(),
            code: code.into(),
            message: message.into(),
            permanent: true,
            orphan: None,
        };
        ledger.record_failures(&[failure]).await.unwrap();
        let recorded = rig.failure_code(id).await.unwrap();
        assert!(code.starts_with(&recorded), "{recorded}");
    }
    // With their paths, by which they are not fed again.
    let with_path = "SELECT count(*) FROM bucket_brigade.failures WHERE path LIKE 'image/%'";
    assert_eq!(rig.query_number(with_path).await, 2);
}

/// Neither the name of an outage nor that of a query is of letters that every database has.
#[tokio::test]
async fn a_long_query_holds_the_fleet_whatever_the_database_s_letters() {
    let rig = TestRig::new().await;
    let rig = rig.in_database("ENCODING 'LATIN1' LOCALE 'C'").await;
    rig.add_images(1).await;
    let query = format!("SELECT count(*) > 0 FROM images -- {}", "x".repeat(80));
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[("THROTTLE_QUERY", &query)], &[]);
    wait_until("the fleet to hold", async || {
        let status = rig.run_feeder(&["status"]).await.output;
        status.contains("THROTTLE_QUERY is true")
    })
    .await;
    assert_eq!(rig.count_rows("moves").await, 0);
    feeder.terminate().unwrap();
    wait_for_exit(&mut feeder).await;
    stop_consumer(consumer).await;
}

/// A trigger that writes to another server fails as long as that is away.
#[tokio::test]
async fn what_a_trigger_runs_into_may_pass() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    rig.execute_sql(
        "CREATE FUNCTION forward() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'could not connect to server' USING ERRCODE = '08001'; END $$;
         CREATE TRIGGER forward BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION forward()",
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the failure", async || {
        rig.count_rows("failures").await == 1
    })
    .await;
    rig.execute_sql("DROP TRIGGER forward ON images").await;
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.dead_letters().await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_table_that_is_closed_for_updates_is_waited_for() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.execute_sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'closed for the night'; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON images FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the consumer to say so", async || {
        consumer.log_tail(50).contains("closed for the night")
    })
    .await;
    rig.execute_sql("DROP TRIGGER refuse ON images").await;
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("failures").await, 0);
    assert_eq!(rig.dead_letters().await, 0);
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
        is_found: false,
        companions: CompanionCopies::new(),
        fence: 0,
    };
    ledger.commit(&[&pending]).await.unwrap();
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
            orphan: None,
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
