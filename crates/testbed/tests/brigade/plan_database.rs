//! What a plan foresees of the database, by trying: each of these was "It can be done" once.

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::process::Signal;

use crate::feed_index::settled_buffers;
use crate::rig::{FeederOutput, TestRig, wait_for_exit, wait_until};

fn assert_fails(plan: &FeederOutput, words: &[&str]) {
    assert_eq!(plan.code, 1, "{}\n{}", plan.output, plan.log);
    for word in words {
        assert!(plan.output.contains(word), "no '{word}': {}", plan.output);
    }
}

/// A table of this declaration with 30 rows in scope, and what a plan says of it.
async fn plan_table(declarations: &str) -> (TestRig, FeederOutput) {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(declarations).await;
    rig.put_object("images-old", "image/1.png", b"bytes").await;
    let plan = rig.run_feeder(&["plan"]).await;
    let set = rig
        .query_number("SELECT count(*) FROM images WHERE path NOT LIKE 'image/%'")
        .await;
    assert_eq!(set, 0);
    (rig, plan)
}

const ROWS: &str =
    "INSERT INTO images SELECT n, 'image/' || n || '.png' FROM generate_series(1, 30) n;";
const TABLE: &str = "CREATE TABLE images (id bigint PRIMARY KEY, path text);";

#[tokio::test]
async fn new_paths_that_are_too_long_are_named() {
    let declared = "CREATE TABLE images (id bigint PRIMARY KEY, path varchar(12));
        INSERT INTO images SELECT n, 'image/' || n FROM generate_series(1, 3000) n;
        INSERT INTO images VALUES (4711, 'image/123456');";
    let (_rig, plan) = plan_table(declared).await;
    assert_fails(
        &plan,
        &[
            "FAIL  lengths",
            "the column's 12 characters",
            "4711",
            "TYPE text;",
        ],
    );
    let domain = "CREATE DOMAIN short AS varchar(12);
        CREATE TABLE images (id bigint PRIMARY KEY, path short);
        INSERT INTO images VALUES (7, 'image/1.png'), (8, 'image/12.png');";
    let (_rig, plan) = plan_table(domain).await;
    assert_fails(&plan, &["FAIL  lengths", "ids: 8", "22001"]);
}

#[tokio::test]
async fn rows_that_postgres_refuses_are_named() {
    let check = format!(
        "{TABLE}{ROWS} ALTER TABLE images ADD CHECK (id NOT IN (7, 19) OR path LIKE 'image/%');"
    );
    let (_rig, plan) = plan_table(&check).await;
    assert_fails(
        &plan,
        &[
            "2 of 30 rows",
            "23514",
            "images_check",
            "28 rows were set and set back",
        ],
    );
    assert!(plan.output.contains("(ids: 19, 7)") || plan.output.contains("(ids: 7, 19)"));
    let taken =
        format!("{TABLE}{ROWS} ALTER TABLE images ADD UNIQUE (path) DEFERRABLE INITIALLY DEFERRED");
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(&taken).await;
    rig.execute_sql("INSERT INTO images VALUES (99, 'avatar/5.png')")
        .await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert_fails(
        &plan,
        &["1 of 30 rows", "(ids: 5)", "23505", "(path)=(avatar/5.png)"],
    );
}

#[tokio::test]
async fn triggers_that_refuse_rewrite_or_keep_rows_are_foreseen() {
    let trigger = |body: &str| {
        format!(
            "{TABLE}{ROWS} CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.id = 11 THEN {body} END IF; RETURN NEW; END $$;
             CREATE TRIGGER meddle BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION meddle();"
        )
    };
    for (body, result) in [
        (
            "RAISE EXCEPTION 'not this one' USING ERRCODE = '55000';",
            "55000: not this one",
        ),
        ("NEW.path := upper(NEW.path);", "PathRewritten"),
        (
            "RETURN NULL;",
            "a trigger keeps rows from being set (ids: 11)",
        ),
        ("PERFORM pg_sleep(60);", "57014"),
    ] {
        let (_rig, plan) = plan_table(&trigger(body)).await;
        assert_fails(&plan, &["FAIL  update", result]);
        assert!(
            result == "57014" || plan.output.contains("ids: 11"),
            "{}",
            plan.output
        );
    }
}

#[tokio::test]
async fn a_trigger_that_keeps_old_paths_in_the_table_is_foreseen_and_named_in_the_run() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    rig.execute_sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO images (path, title) VALUES (OLD.path, 'before'); RETURN NULL; END $$;
         CREATE TRIGGER keep AFTER UPDATE OF path ON images FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await;
    let plan = rig.run_feeder(&["plan"]).await;
    let foreseen = "added 2 rows to the table itself when 2 were set";
    assert!(plan.output.contains(foreseen), "{}", plan.output);
    let _consumer = rig.spawn_consumer(&[]);
    let feeder = rig.spawn("feeder", &[], &[]);
    wait_until("the feeder to notice", async || {
        feeder
            .log_tail(50)
            .contains("found no fewer rows than the one before")
    })
    .await;
}

/// A role of its own in this database, which the plan's role may become.
async fn add_role(rig: &TestRig) -> String {
    let role = format!("consumer_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role}; GRANT SELECT (id, path), UPDATE (path) ON images TO {role};"
    ))
    .await;
    role
}

#[tokio::test]
async fn an_audit_table_that_the_consumers_may_not_write_is_foreseen_with_the_grant() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.execute_sql(
        "CREATE TABLE audit (id bigserial, path text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO audit (path) VALUES (NEW.path); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER UPDATE ON images FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .await;
    let role = add_role(&rig).await;
    let as_role = ["plan", "--as-role", &role];
    // What is printed is all it takes: first the table's right, then the sequence's.
    for kind in ["INSERT ON audit", "USAGE ON SEQUENCE audit_id_seq"] {
        let plan = rig.run_feeder(&as_role).await;
        let grant = format!("GRANT {kind} TO \"{role}\";");
        assert_fails(&plan, &["FAIL  update", "42501: permission denied", &grant]);
        rig.execute_sql(&grant).await;
    }
    let plan = rig.run_feeder(&as_role).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    assert_eq!(rig.query_number("SELECT count(*) FROM audit").await, 0);
    assert_eq!(rig.run_feeder(&["plan"]).await.code, 0);
}

#[tokio::test]
async fn the_consumers_role_is_tried() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let role = add_role(&rig).await;
    let as_role = ["plan", "--as-role", &role];
    let plan = rig.run_feeder(&as_role).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    assert!(
        plan.output
            .contains(&format!("in a transaction, as '{role}'"))
    );
    rig.execute_sql(
        "ALTER TABLE images ENABLE ROW LEVEL SECURITY; CREATE POLICY odd ON images USING (id % 2 = 1)",
    )
    .await;
    let plan = rig.run_feeder(&as_role).await;
    assert_fails(&plan, &["row level security", "BYPASSRLS;"]);
    rig.execute_sql(&format!(
        "ALTER TABLE images DISABLE ROW LEVEL SECURITY; REVOKE UPDATE (path) ON images FROM {role}"
    ))
    .await;
    let plan = rig.run_feeder(&as_role).await;
    assert_fails(
        &plan,
        &["42501: permission denied", &format!("TO \"{role}\";")],
    );
    assert_fails(
        &rig.run_feeder(&["plan", "--as-role", "no one"]).await,
        &["\"no one\""],
    );
}

#[tokio::test]
async fn a_published_table_without_a_replica_identity_is_foreseen_with_the_mend() {
    let declared = "CREATE TABLE images (id bigint NOT NULL, path text);
        CREATE UNIQUE INDEX \"by id\" ON images (id); CREATE PUBLICATION everything FOR ALL TABLES;";
    let (rig, plan) = plan_table(&format!("{declared}{ROWS}")).await;
    let mend = "ALTER TABLE images REPLICA IDENTITY USING INDEX \"by id\";";
    assert_fails(&plan, &["FAIL  publication", mend]);
    rig.execute_sql(mend).await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output.contains("30 rows were set and set back"),
        "{}",
        plan.output
    );
}

#[tokio::test]
async fn published_tables_of_a_closed_schema_are_no_hindrance() {
    let (rig, _plan) = plan_table(&format!(
        "{TABLE}{ROWS} CREATE SCHEMA closed; CREATE TABLE closed.other (id bigint);
         CREATE PUBLICATION everything FOR ALL TABLES;"
    ))
    .await;
    let role = add_role(&rig).await;
    rig.execute_sql(&format!("ALTER ROLE {role} LOGIN PASSWORD 'poor'"))
        .await;
    let url = rig.url_as(&role);
    let mut plan = rig.spawn("feeder", &[("DATABASE_URL", &url)], &["plan"]);
    let ended = wait_for_exit(&mut plan).await;
    let result = "30 rows were set and set back";
    assert!(ended.log.contains(result), "{}", ended.log);
}

#[tokio::test]
async fn rows_that_the_application_has_locked_are_passed_over() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    let mut application = rig.pool.begin().await.unwrap();
    sqlx::query("UPDATE images SET path = path WHERE id = 3")
        .execute(&mut *application)
        .await
        .unwrap();
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    assert!(
        plan.output.contains("1 of 30 rows were not tried"),
        "{}",
        plan.output
    );
    sqlx::query("LOCK TABLE images IN SHARE MODE")
        .execute(&mut *application)
        .await
        .unwrap();
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    assert!(
        plan.output.contains("WARN  update        not tried"),
        "{}",
        plan.output
    );
    application.commit().await.unwrap();
}

#[tokio::test]
async fn a_large_table_without_statistics_is_sampled() {
    // Mostly empty pages make a few rows large.
    let (rig, plan) = plan_table(
        "CREATE TABLE images (id bigint PRIMARY KEY, path text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF images FOR VALUES FROM (0) TO (150000)
            WITH (fillfactor = 10, autovacuum_enabled = off);
         CREATE TABLE high PARTITION OF images FOR VALUES FROM (150000) TO (9999999)
            WITH (fillfactor = 10, autovacuum_enabled = off);
         INSERT INTO images SELECT n, 'image/' || n || '.png' FROM generate_series(1, 300000) n;",
    )
    .await;
    assert!(
        plan.output.contains("about: from"),
        "{}\n{}",
        plan.output,
        plan.log
    );
    let without = "WARN  statistics    the server has none of 2 tables or partitions";
    for words in [without, "ANALYZE \"public\".\"images\";"] {
        assert!(plan.output.contains(words), "{words}: {}", plan.output);
    }
    let plan = rig.feeder_json(&["plan", "--json"]).await;
    let rows = plan["rows"]["in_scope"].as_u64().unwrap();
    assert!((150_000..600_000).contains(&rows), "{rows}");
    assert_eq!(plan["samples"].as_array().unwrap().len(), 5);
    // The last few, wherever they are.
    rig.execute_sql("UPDATE images SET path = 'avatar/' || id WHERE id < 299990; ")
        .await;
    let plan = rig.feeder_json(&["plan", "--json"]).await;
    assert!(!plan["samples"].as_array().unwrap().is_empty(), "{plan}");
    // With nothing left it answers at once, and says how that is known.
    rig.execute_sql("UPDATE images SET path = 'avatar/' || id; ANALYZE images")
        .await;
    rig.open_run().await;
    rig.execute_sql(
        "UPDATE bucket_brigade.run SET in_scope = 300000, finished_at = now();
         UPDATE bucket_brigade.feed_cursors SET fed = 300000",
    )
    .await;
    let before = settled_buffers(&rig).await;
    let plan = rig.run_feeder(&["plan"]).await;
    let words = "no row is in scope any more: a sweep found none at 2";
    assert!(plan.output.contains(words), "{}", plan.output);
    assert!(!plan.output.contains("statistics"), "{}", plan.output);
    let read = settled_buffers(&rig).await - before;
    let pages = "SELECT sum(pg_relation_size(relid) / 8192)::bigint FROM pg_partition_tree('images') WHERE isleaf";
    let pages = rig.query_number(pages).await;
    assert!(
        read < pages / 2,
        "{read} buffers, the table has {pages} pages"
    );
}

#[tokio::test]
async fn an_interrupted_plan_ends_at_once_and_its_statement_with_it() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.execute_sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(4); RETURN NEW; END $$;
         CREATE TRIGGER dawdle BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    .await;
    let at_work = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'bucket-brigade plan' AND state = 'active' AND query LIKE '%UPDATE%'";
    let mut plan = rig.spawn("feeder", &[], &["plan"]);
    wait_until("the update", async || rig.query_number(at_work).await == 1).await;
    plan.send_signal(Signal::INT).unwrap();
    let ended = wait_for_exit(&mut plan).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    wait_until("its end in the server", async || {
        rig.query_number(at_work).await == 0
    })
    .await;
}

#[tokio::test]
async fn what_is_there_of_a_ledger_is_told() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let plan_with = async |code: i32, arguments: &[&str], what: &str| {
        let plan = rig.run_feeder(arguments).await;
        assert_eq!(plan.code, code, "{}", plan.output);
        assert!(plan.output.contains(what), "no '{what}': {}", plan.output);
    };
    let result = async |what: &str| plan_with(0, &["plan"], what).await;
    result("the feeder will create it in schema bucket_brigade").await;
    rig.execute_sql("CREATE SCHEMA bucket_brigade").await;
    result("schema bucket_brigade is there without a ledger").await;
    rig.open_run().await;
    result("run 1 is on record: 0 moved").await;
    rig.execute_sql("UPDATE bucket_brigade.run SET old_prefix = 'img/'")
        .await;
    result(
        "it exists, without a run of this migration; there are these: images.path (run 1): \"public\".\"images\", img/",
    )
    .await;
    rig.execute_sql("UPDATE bucket_brigade.feed_cursors SET fed = 1")
        .await;
    let other = "OLD_PREFIX: 'img/' there, 'image/' here";
    plan_with(1, &["plan"], other).await;
    plan_with(1, &["plan"], "start the feeder once, with --new-run").await;
    plan_with(0, &["plan", "--new-run"], "it exists, without a run").await;
    rig.execute_sql("UPDATE bucket_brigade.run SET old_prefix = 'imag'")
        .await;
    plan_with(0, &["plan", "--new-run"], "the feeder will pause it").await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.removals (run_id, is_orphan, path, object_key, etag, operator, bucket, removing_at)
         VALUES (1, false, 'avatar/0.png', 'avatar/0.png', '', '', 'images-new', now())",
    )
    .await;
    plan_with(1, &["plan", "--new-run"], "may still remove objects").await;
    let mut named = rig.spawn("feeder", &[("RUN_NAME", "images.path")], &["plan"]);
    let ended = wait_for_exit(&mut named).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
}

#[tokio::test]
async fn a_lag_that_the_role_may_not_see_is_foreseen() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let role = add_role(&rig).await;
    rig.execute_sql(&format!("ALTER ROLE {role} LOGIN PASSWORD 'poor'"))
        .await;
    let url = rig.url_as(&role);
    let settings = [("DATABASE_URL", &*url), ("MAX_REPLICA_LAG", "10s")];
    let ended = wait_for_exit(&mut rig.spawn("feeder", &settings, &["plan"])).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    let finding = format!("FAIL  settings      the database user '{role}' may not see");
    assert!(ended.log.contains(&finding), "{}", ended.log);
}
