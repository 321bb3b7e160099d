//! rollback: which rows go back, which stay and why, and that they can move again.

use std::process::Stdio;
use std::time::Duration;

use bucket_brigade_testbed::process::{ChildProcess, binary_path};
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, sha256, wait_for_exit, wait_until};

#[tokio::test]
async fn rows_go_back_and_can_move_again() {
    let rig = TestRig::new().await;
    let mut ids = rig.add_images(3).await;
    ids.push(rig.add_row("image/0.png").await);
    rig.run_migration().await;
    let result = rig.run_json_command(&["rollback", "--all"]).await;
    assert_eq!((result.code, result.number_of("rolled_back")), (0, 4));
    assert_eq!(
        (result.json["done"].as_bool(), rig.count_rows("moves").await),
        (Some(false), 4),
        "only printed"
    );
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((result.code, result.number_of("rolled_back")), (0, 4));
    assert_eq!(rig.path_of(&ids[3]).await.unwrap(), "image/0.png");
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("rollbacks").await
        ),
        (0, 4)
    );
    // The copies have no row now; three, because two rows share one.
    assert_eq!(rig.count_rows("orphans").await, 3);
    rig.assert_counts_agree().await;
    let again = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((again.code, again.number_of("rolled_back")), (0, 0));
    rig.run_migration().await;
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("orphans").await
        ),
        (4, 0)
    );
    for id in &ids {
        assert!(rig.path_of(id).await.unwrap().starts_with("avatar/"));
    }
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn what_must_stay_stays_and_is_reported() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(8).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.delete_object("images-new", "avatar/1.png").await;
    rig.delete_object("images-old", "image/2.png").await;
    rig.set_path(&ids[3], "elsewhere/3.png").await;
    rig.execute_sql(&format!("DELETE FROM images WHERE id = {}", ids[4]))
        .await;
    rig.execute_sql(&format!(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
         CREATE TRIGGER no BEFORE UPDATE ON images FOR EACH ROW WHEN (old.id = {}) EXECUTE FUNCTION no()",
        ids[5]
    ))
    .await;
    let mut transaction = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images WHERE id::text = $1 FOR UPDATE")
        .bind(&ids[6])
        .execute(&mut *transaction)
        .await
        .unwrap();
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((result.code, result.number_of("rolled_back")), (2, 1));
    let reason = |number: usize| result.field_of("left_alone", &ids[number], "reason");
    assert_eq!(reason(0), "copy_replaced");
    assert_eq!(reason(1), "copy_gone");
    assert_eq!(reason(2), "source_gone");
    assert_eq!(reason(3), "changed");
    assert_eq!(reason(4), "deleted");
    assert_eq!(reason(5), "refused");
    assert_eq!(reason(6), "locked");
    assert_eq!(result.json["left_alone_by_reason"]["locked"], 1);
    transaction.rollback().await.unwrap();
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.path_of(&ids[3]).await.unwrap(), "elsewhere/3.png");
    assert_eq!(rig.path_of(&ids[7]).await.unwrap(), "image/7.png");
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("rollbacks").await
        ),
        (7, 1)
    );
    rig.assert_counts_agree().await;
    let seen = rig.run_command(&["rollback", "--all"]).await.log;
    assert!(
        seen.contains("1 left alone: the source does not exist any more"),
        "{seen}"
    );
    assert!(
        seen.contains("Nothing was changed. To do it, add --yes."),
        "{seen}"
    );
}

/// By a trigger that fires after the update, or at the end of the transaction.
#[tokio::test]
async fn a_row_that_a_later_trigger_gives_another_path_stays_alone() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(5).await;
    rig.execute_sql(&format!(
        "CREATE FUNCTION fold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE images SET path = path || '.old' WHERE id = NEW.id AND path NOT LIKE '%.old'; RETURN NULL; END $$;
         CREATE TRIGGER soon AFTER UPDATE ON images FOR EACH ROW WHEN (old.id = {}) EXECUTE FUNCTION fold();
         CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON images DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (old.id = {}) EXECUTE FUNCTION fold()",
        ids[1], ids[4]
    ))
    .await;
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((result.code, result.number_of("rolled_back")), (2, 3));
    for number in [1, 4] {
        let field = |name| result.field_of("left_alone", &ids[number], name);
        assert_eq!(field("reason"), "refused");
        assert!(field("detail").contains("PathRewritten: a trigger"));
        assert!(
            rig.path_of(&ids[number])
                .await
                .unwrap()
                .starts_with("avatar/")
        );
    }
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
    assert_eq!(rig.count_rows("moves").await, 2);
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn some_rows_alone_by_id_or_time() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(4).await;
    rig.execute_sql(&format!(
        "UPDATE bucket_brigade.moves SET moved_at = now() - interval '3 hours' WHERE row_id IN ('{}', '{}')",
        ids[0], ids[1]
    ))
    .await;
    let both = format!("{},999999", ids[0]);
    let result = rig
        .run_json_command(&["rollback", "--ids", &both, "--yes"])
        .await;
    assert_eq!((result.code, result.number_of("rolled_back")), (2, 1));
    assert_eq!(
        result.field_of("left_alone", "999999", "reason"),
        "not_moved"
    );
    let result = rig
        .run_json_command(&["rollback", "--since", "2h", "--yes"])
        .await;
    assert_eq!((result.code, result.number_of("rolled_back")), (0, 2));
    assert_eq!(rig.path_of(&ids[1]).await.unwrap(), "avatar/1.png");
    let result = rig
        .run_json_command(&["rollback", "--since", "2020-01-01T00:00:00Z", "--yes"])
        .await;
    assert_eq!(result.number_of("rolled_back"), 1);
    for wrong in [
        &["--ids", "x"][..],
        &["--since", "yesterday"],
        &[],
        &["--all", "--since", "2h"],
    ] {
        let ended = rig.run_command(&[&["rollback"], wrong].concat()).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
    }
}

#[tokio::test]
async fn it_refuses_while_the_rows_could_be_moved_again() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    let ledger = rig.open_run().await;
    let feeder = ledger.acquire_feeder_lock().await.unwrap();
    assert_refused(&rig, "stop the feeder first").await;
    drop(feeder);
    rig.send_message("a message of another sender").await;
    wait_until("the message", async || rig.visible_messages().await == 1).await;
    assert_refused(&rig, "1 message waits in the queue").await;
    let purge = rig
        .cloud
        .sqs_client()
        .purge_queue()
        .queue_url(&rig.queue.url);
    purge.send().await.unwrap();
    // That of the command before may not have ended yet.
    let mut other = None;
    while other.is_none() {
        other = ledger.acquire_operator_lock().await.unwrap();
    }
    assert_refused(&rig, "another verify, rollback or clean").await;
    drop(other);
    let mut of_another_run = None;
    while of_another_run.is_none() {
        of_another_run = ledger.acquire_undo_lock().await.unwrap();
    }
    assert_refused(&rig, "clean of another run is at work").await;
    drop(of_another_run);
    wait_until("the locks' end", async || {
        rig.run_command(&["rollback", "--all", "--yes"]).await.code == Some(0)
    })
    .await;
    assert_eq!(rig.count_rows("rollbacks").await, 1);
}

/// A lock's end takes a moment to reach the server, so this may take more than one try.
async fn assert_refused(rig: &TestRig, reason: &str) {
    wait_until(reason, async || {
        let ended = rig.run_command(&["rollback", "--all", "--yes"]).await;
        assert_eq!(ended.code, Some(75), "{}", ended.log);
        ended.log.contains(reason)
    })
    .await;
}

/// The application replaces an image between the look at its copy and the compare-and-set.
#[tokio::test]
async fn an_image_replaced_in_that_very_moment_is_restored() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    let late = Fault::new(
        "HeadObject",
        FaultEffect::DelayedResponse(Duration::from_secs(1)),
    );
    let late = late.caller("feeder").key_contains("avatar/0").times(1);
    let late = rig.cloud.inject_fault(late);
    let mut rollback = rig.spawn_json_command(&["rollback", "--all", "--yes"]);
    wait_until("the look at the copy", async || late.hits() > 0).await;
    // The look has its answer, as of before this, a little later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    assert_eq!(rollback.wait_for_exit().await.unwrap().code(), Some(2));
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.path_of(&ids[1]).await.unwrap(), "image/1.png");
    assert_eq!(
        rig.destination_sha256("avatar/0.png").await.unwrap(),
        sha256(b"the application's")
    );
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("orphans").await
        ),
        (1, 1)
    );
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn a_move_whose_source_was_cleaned_cannot_be_undone() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(2).await;
    rig.execute_sql("UPDATE images SET path = 'image/1.png' WHERE path = 'avatar/1.png'")
        .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let cleaned = rig
        .run_json_command(&["clean", "--older-than", "0s", "--confirm", "images-old"])
        .await;
    assert_eq!(cleaned.number_of("removed"), 1);
    let result = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((result.code, result.number_of("rolled_back")), (2, 0));
    assert_eq!(
        result.field_of("left_alone", &ids[0], "reason"),
        "source_removed"
    );
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    // Verify knows that there is nothing to compare with any more.
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
}

#[tokio::test]
async fn a_run_whose_rows_went_back_is_not_finished_and_times_are_told_in_utc() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    let finished = "SELECT count(*) FROM bucket_brigade.run WHERE finished_at IS NOT NULL";
    assert_eq!(rig.query_number(finished).await, 1);
    let since = ["rollback", "--since", "2020-01-01 14:00:00", "--yes"];
    let ended = rig.run_command(&since).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        ended
            .log
            .contains("moves since 2020-01-01T14:00:00Z, which is UTC"),
        "{}",
        ended.log
    );
    assert_eq!(rig.query_number(finished).await, 0);
}

/// A rollback that has asked for the first copy, and has no answer for two seconds.
async fn spawn_late_rollback(rig: &TestRig) -> ChildProcess {
    let late = Fault::new(
        "HeadObject",
        FaultEffect::DelayedResponse(Duration::from_secs(2)),
    );
    let late = late.caller("feeder").key_contains("avatar/0").times(1);
    let late = rig.cloud.inject_fault(late);
    let rollback = rig.spawn("feeder", &[], &["rollback", "--all", "--yes"]);
    wait_until("the request for the copy", async || late.hits() > 0).await;
    rollback
}

/// As after a failover, or with a full disk: reads succeed.
#[tokio::test]
async fn a_database_that_takes_no_writes_for_a_while_is_waited_for() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    let mut rollback = spawn_late_rollback(&rig).await;
    change_writes(&rig, "SET default_transaction_read_only = on").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    change_writes(&rig, "RESET default_transaction_read_only").await;
    assert_eq!(rollback.wait_for_exit().await.unwrap().code(), Some(0));
    let counts = (
        rig.count_rows("moves").await,
        rig.count_rows("rollbacks").await,
    );
    assert_eq!(counts, (0, 3));
    rig.assert_counts_agree().await;
}

/// Also while an image that was replaced is given back to its row.
#[tokio::test]
async fn no_write_for_a_while_leaves_no_row_without_its_image() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(1).await;
    rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    // As if it had been killed before it looked at the copy once more.
    rig.execute_sql("UPDATE bucket_brigade.rollbacks SET looked_at = NULL")
        .await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    let mut rollback = spawn_late_rollback(&rig).await;
    change_writes(&rig, "SET default_transaction_read_only = on").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    change_writes(&rig, "RESET default_transaction_read_only").await;
    let ended = wait_for_exit(&mut rollback).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    rig.assert_counts_agree().await;
}

/// A full disk must not end a rollback between its rows and the second look at their copies.
#[tokio::test]
async fn copies_are_looked_at_again_also_where_nothing_can_be_printed() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    let mut transaction = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM images WHERE id::text = $1 FOR UPDATE")
        .bind(&ids[0])
        .execute(&mut *transaction)
        .await
        .unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
    command.args(["rollback", "--all", "--yes"]);
    command.env_clear().current_dir("/");
    command.envs(rig.environment("operator", &[]));
    command.stdout(full.unwrap()).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().await.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{log}");
    let checked = "SELECT count(*) FROM bucket_brigade.rollbacks WHERE looked_at IS NOT NULL";
    assert_eq!(rig.query_number(checked).await, 2);
}

/// The paths would not be set, and the moves be undone.
#[tokio::test]
async fn rules_that_the_table_gets_meanwhile_are_waited_for() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    let mut rollback = spawn_late_rollback(&rig).await;
    rig.execute_sql(
        "CREATE TABLE other (LIKE images INCLUDING DEFAULTS);
         INSERT INTO other SELECT * FROM images;
         CREATE RULE elsewhere AS ON UPDATE TO images
             DO INSTEAD UPDATE other SET path = new.path WHERE id = old.id RETURNING other.*",
    )
    .await;
    wait_until("the rollback to wait", async || {
        rollback.log_tail(50).contains("rules ON UPDATE")
    })
    .await;
    assert_eq!(rig.count_rows("rollbacks").await, 0);
    rig.execute_sql("DROP RULE elsewhere ON images").await;
    assert_eq!(rollback.wait_for_exit().await.unwrap().code(), Some(0));
    let back = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!(rig.query_number(back).await, 3);
    rig.assert_counts_agree().await;
}

/// For all sessions: those there are end.
async fn change_writes(rig: &TestRig, setting: &str) {
    rig.execute_sql(&format!(
        "SET transaction_read_only = off;
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {setting}', current_database()); END $$"
    ))
    .await;
    rig.execute_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name LIKE 'bucket-brigade %'",
    )
    .await;
}
