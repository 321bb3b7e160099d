//! `ROW_FILTER`: which of the rows with the old prefix are to move.

use bucket_brigade_common::ledger::{self, PostgresLedger, SecondRun};
use bucket_brigade_common::row_id::RowId;

use crate::rig::{TestRig, stop_consumer, wait_for_exit};

/// Ten images, of which those with an even number are deleted.
async fn rig_with_deleted_rows() -> TestRig {
    let rig = TestRig::new().await;
    rig.add_images(10).await;
    rig.execute_sql(
        "ALTER TABLE images ADD deleted_at timestamptz, ADD state text DEFAULT 'live', ADD note text;
         UPDATE images SET deleted_at = now(), note = 'not json' WHERE id % 2 = 0",
    )
    .await;
    rig
}

/// With a comment, an alternative that must not reach beyond the filter, and a bracket in a string.
const ALIVE: &str = "deleted_at IS NULL AND state <> ')' OR state = '-- dead' -- alive";

#[tokio::test]
async fn rows_that_it_leaves_out_stay_and_are_counted_nowhere() {
    let rig = rig_with_deleted_rows().await;
    rig.execute_sql("UPDATE images SET path = 'image/lost.png' WHERE id = 2")
        .await;
    let filter = ("ROW_FILTER", ALIVE);
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[filter]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains(ALIVE), "{}", ended.log);
    stop_consumer(consumer).await;
    let moved = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%' AND deleted_at IS NULL";
    assert_eq!(rig.query_number(moved).await, 5);
    assert_eq!(rig.count_rows("moves").await, 5);
    let counted = "SELECT in_scope FROM bucket_brigade.run";
    assert_eq!(rig.query_number(counted).await, 5);
    assert!(!rig.open_filtered(ALIVE).await.unwrap());
    for command in ["runs", "status", "plan"] {
        let shown = rig.run_program_with("feeder", &[filter], &[command]).await;
        let filter = format!("where {ALIVE},");
        assert!(shown.log.contains(&filter), "{}", shown.log);
    }
    // Another run would have no filter.
    let plan = rig.run_feeder(&["plan", "--new-run"]).await;
    assert!(!plan.output.contains(ALIVE), "{}", plan.output);
    // The object of a row that is left out is no business of this run.
    let verified = rig.feeder_json(&["verify", "--full", "--json"]).await;
    assert_eq!(verified["sound"], 5, "{verified}");
    assert_eq!(verified["mismatched"], 0, "{verified}");
    assert_eq!(verified["table_outside"], 5, "{verified}");
}

#[tokio::test]
async fn a_row_that_was_fed_before_it_left_the_filter_is_moved() {
    let rig = rig_with_deleted_rows().await;
    rig.open_filtered(ALIVE).await.unwrap();
    rig.feed_row("2", "image/1.png").await;
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    stop_consumer(consumer).await;
    assert_eq!(rig.path_of("2").await.unwrap(), "avatar/1.png");
}

#[tokio::test]
async fn rows_outside_the_scope_are_not_asked() {
    let rig = rig_with_deleted_rows().await;
    rig.execute_sql("UPDATE images SET path = 'other/x', note = 'not json' WHERE id > 5; UPDATE images SET note = '{}' WHERE id <= 5")
        .await;
    assert!(
        rig.open_filtered("note::json ->> 'x' IS NULL")
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_row_for_which_it_fails_fails_alone() {
    let rig = rig_with_deleted_rows().await;
    rig.execute_sql(
        "CREATE FUNCTION is_live(bigint) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
            IF $1 = 5 THEN RAISE EXCEPTION 'no' USING ERRCODE = 'XX000'; END IF; RETURN true; END $$",
    )
    .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig
        .run_program("feeder", &[("ROW_FILTER", "is_live(id)")])
        .await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.failure_code("5").await.unwrap(), "XX000");
    assert_eq!(rig.count_rows("moves").await, 9);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn one_that_leaves_out_everything_is_named() {
    let rig = rig_with_deleted_rows().await;
    let ended = rig
        .run_program("feeder", &[("ROW_FILTER", "state = 'Live'")])
        .await;
    assert_eq!(ended.code, Some(66), "{}", ended.log);
    assert!(
        ended.log.contains("ROW_FILTER leaves out every row"),
        "{}",
        ended.log
    );
}

#[tokio::test]
async fn the_right_to_read_what_it_names_is_asked_for() {
    let rig = rig_with_deleted_rows().await;
    let role = format!("narrow_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT SELECT (id, path) ON images TO {role}"
    ))
    .await;
    let url = rig.url_as(&role);
    let settings = [("DATABASE_URL", &*url), ("ROW_FILTER", ALIVE)];
    for arguments in [&[][..], &["plan"]] {
        let ended = wait_for_exit(&mut rig.spawn("feeder", &settings, arguments)).await;
        assert!(
            ended
                .log
                .contains("GRANT SELECT ON \"public\".\"images\" TO"),
            "{}",
            ended.log
        );
    }
}

#[tokio::test]
async fn another_filter_is_another_run() {
    let rig = rig_with_deleted_rows().await;
    rig.open_filtered(ALIVE).await.unwrap();
    rig.execute_sql("UPDATE bucket_brigade.feed_cursors SET fed = 1")
        .await;
    for other in ["deleted_at IS NULL", "-"] {
        let ended = rig.run_program("feeder", &[("ROW_FILTER", other)]).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        assert!(
            ended.log.contains(&format!("ROW_FILTER: '{ALIVE}' there")),
            "{}",
            ended.log
        );
    }
}

#[tokio::test]
async fn what_is_no_harmless_condition_is_refused_before_anything_is_made() {
    let rig = rig_with_deleted_rows().await;
    rig.execute_sql(
        "CREATE SEQUENCE tickets; CREATE TABLE log (id bigint);
         CREATE FUNCTION note_row() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO log VALUES (1); RETURN true; END $$",
    )
    .await;
    for (filter, problem) in [
        ("deleted_at IS NUL", "syntax error"),
        ("deleted IS NULL", "column \"deleted\" does not exist"),
        ("id", "must be type boolean"),
        ("id, true", "must be type boolean"),
        ("true; DROP TABLE images", "syntax error"),
        ("true; DROP TABLE images; SELECT true", "multiple commands"),
        ("true) OR (true", "syntax error"),
        (
            "true) FROM images t; DELETE FROM images; --",
            "syntax error",
        ),
        ("true /* ", "unterminated"),
        ("state = 'x", "unterminated"),
        ("true ORDER BY (id)", "syntax error"),
        ("true UNION SELECT true", "syntax error"),
        ("id = $1", "parameter"),
        ("EXISTS (SELECT 1 FROM log)", "subquery"),
        ("id IN (SELECT id FROM log)", "subquery"),
        (
            "(WITH x AS (DELETE FROM images RETURNING true) SELECT * FROM x)",
            "WITH",
        ),
        ("count(*) > 0", "aggregate"),
        ("generate_series(1, 2) = 1", "set"),
        ("nextval('tickets') > 0", "volatile"),
        ("random() < 0.5", "volatile"),
        ("note_row()", "volatile"),
        ("pg_sleep(1) IS NOT NULL", "volatile"),
    ] {
        let error = rig.open_filtered(filter).await.unwrap_err().to_string();
        assert!(
            error.contains("ROW_FILTER") && error.contains(problem),
            "{filter}: {error}"
        );
    }
    let bad = ("ROW_FILTER", "deleted_at IS NUL");
    let ended = rig.run_program("feeder", &[bad]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(
        ended
            .log
            .contains("ROW_FILTER: 'deleted_at IS NUL' cannot be used"),
        "{}",
        ended.log
    );
    assert_eq!(rig.query_number("SELECT count(*) FROM log").await, 0);
    assert_eq!(
        rig.query_number("SELECT last_value FROM tickets WHERE is_called")
            .await,
        -1
    );
    let ledger = "SELECT count(*) FROM pg_namespace WHERE nspname = 'bucket_brigade'";
    assert_eq!(rig.query_number(ledger).await, 0);
}

impl TestRig {
    /// Opens a run with this filter; whether it has rows to feed.
    async fn open_filtered(&self, filter: &str) -> anyhow::Result<bool> {
        use bucket_brigade_common::ledger::feed_source::{FeedSource as _, scan_pages};
        let mut spec = self.run_spec();
        spec.options.row_filter = Some(filter.to_owned());
        let pool = ledger::create_pool(self.application.database_url.parse()?, 2);
        let ledger = PostgresLedger::open(pool, &spec, "test", SecondRun::Refused).await?;
        let has_rows = async |cursor: Option<&RowId>| ledger.has_rows_left(cursor).await;
        Ok(scan_pages(has_rows).await?)
    }
}
