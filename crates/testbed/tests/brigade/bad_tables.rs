//! Tables, columns, rights: wrong ones are reported by name before a row is touched.

use bucket_brigade_common::ledger::{
    self, ConnectionPurpose, LedgerRun, PostgresLedger, SecondRun,
};
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Cluster};

use crate::rig::{TestRig, wait_for_exit};

/// Runs the feeder on a table declared so, and expects these words.
async fn assert_refused(declaration: &str, words: &[&str]) {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(declaration).await;
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, &[]).await;
        assert_eq!(ended.code, Some(64), "{program}: {}", ended.log);
        for word in words {
            assert!(
                ended.log.contains(word),
                "{program}: no '{word}' in:\n{}",
                ended.log
            );
        }
    }
}

#[tokio::test]
async fn no_such_table() {
    assert_refused(
        r#"CREATE TABLE "Images" (id bigint PRIMARY KEY, path text)"#,
        &["IMAGES_TABLE", "no table 'images'", "public.Images"],
    )
    .await;
}

#[tokio::test]
async fn tables_are_found_by_the_names_that_settings_write() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        r#"CREATE TABLE "Photos" (id bigint PRIMARY KEY, path text); CREATE SCHEMA "a.b";
           CREATE TABLE "a.b"."c ""d" (id bigint PRIMARY KEY, path text)"#,
    )
    .await;
    for (name, found) in [
        ("Photos", Ok("public.Photos")),
        ("public.Photos", Ok("public.Photos")),
        (r#"public."Photos""#, Ok("public.Photos")),
        ("PUBLIC.IMAGES", Err("there is no table 'PUBLIC.IMAGES'")),
        (r#""a.b"."c ""d""#, Ok(r#"a.b.c "d"#)),
        ("images; DROP TABLE images", Err("there is no table")),
        (r#""images"#, Err("is not a table name")),
        (r#""a"."b"."c""#, Err("there is no table")),
        (r#"public."photos""#, Err("did you mean public.Photos?")),
    ] {
        let mut spec = rig.run_spec();
        spec.table.table = name.into();
        let pool = ledger::create_pool(rig.application.database_url.parse().unwrap(), 2);
        match (
            PostgresLedger::open(pool, &spec, "test", SecondRun::Allowed).await,
            found,
        ) {
            (Ok(ledger), Ok(found)) => {
                assert_eq!(ledger.table_name(), found);
                let purpose = ConnectionPurpose::Command("pause".into());
                let run = LedgerRun::find(ledger.database().clone(), &spec, &purpose).await;
                assert_eq!(run.unwrap().id, ledger.run_id(), "{name}");
            }
            (Err(error), Err(problem)) => {
                assert_eq!(error.exit_code(), 64);
                assert!(error.to_string().contains(problem), "{name}: {error}");
            }
            (opened, _) => panic!("{name}: {:?}", opened.map(drop)),
        }
    }
}

#[tokio::test]
async fn a_view() {
    assert_refused(
        "CREATE VIEW images AS SELECT 1::bigint AS id, 'x'::text AS path",
        &["IMAGES_TABLE", "is a view"],
    )
    .await;
}

#[tokio::test]
async fn a_table_whose_updates_are_rewritten() {
    assert_refused(
        "CREATE TABLE images (id bigint PRIMARY KEY, path text);
         CREATE RULE keep_paths AS ON UPDATE TO images DO INSTEAD NOTHING",
        &["IMAGES_TABLE", "rules ON UPDATE (keep_paths)"],
    )
    .await;
}

#[tokio::test]
async fn a_role_whose_updates_fire_no_triggers() {
    assert_refused(
        "CREATE TABLE images (id bigint PRIMARY KEY, path text);
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica',
                            current_database());
         END $$",
        &["DATABASE_URL", "session_replication_role"],
    )
    .await;
}

#[tokio::test]
async fn no_such_id_column() {
    assert_refused(
        "CREATE TABLE images (key bigint PRIMARY KEY, path text)",
        &["ID_COLUMN", "no column 'id'", "key, path"],
    )
    .await;
}

#[tokio::test]
async fn no_such_path_column() {
    assert_refused(
        "CREATE TABLE images (id bigint PRIMARY KEY, url text)",
        &["PATH_COLUMN", "no column 'path'"],
    )
    .await;
}

#[tokio::test]
async fn a_composite_key() {
    assert_refused(
        "CREATE TABLE images (id bigint, part int, path text, PRIMARY KEY (id, part))",
        &["ID_COLUMN", "composite"],
    )
    .await;
}

#[tokio::test]
async fn an_id_that_is_not_unique() {
    assert_refused(
        "CREATE TABLE images (id bigint NOT NULL, path text); CREATE INDEX ON images (id)",
        &["ID_COLUMN", "unique index"],
    )
    .await;
}

#[tokio::test]
async fn an_id_that_may_be_null() {
    assert_refused(
        "CREATE TABLE images (id bigint UNIQUE, path text)",
        &["ID_COLUMN", "NOT NULL"],
    )
    .await;
}

#[tokio::test]
async fn an_id_of_a_strange_type() {
    assert_refused(
        "CREATE TABLE images (id numeric PRIMARY KEY, path text)",
        &["ID_COLUMN", "numeric", "bigint, integer"],
    )
    .await;
}

#[tokio::test]
async fn a_path_of_a_strange_type() {
    assert_refused(
        "CREATE TABLE images (id bigint PRIMARY KEY, path jsonb)",
        &["PATH_COLUMN", "jsonb"],
    )
    .await;
    assert_refused(
        "CREATE TABLE images (id bigint PRIMARY KEY, path character(30))",
        &["PATH_COLUMN", "character(30)"],
    )
    .await;
}

#[tokio::test]
async fn a_generated_path() {
    assert_refused(
        "CREATE TABLE images (id bigint PRIMARY KEY, path text GENERATED ALWAYS AS ('image/' || id::text) STORED)",
        &["PATH_COLUMN"],
    )
    .await;
}

#[tokio::test]
async fn without_the_right_to_create_the_ledger_the_sql_is_printed_and_works() {
    let rig = TestRig::new().await;
    rig.add_image("image/a.png").await;
    let role = format!("poor_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT SELECT (id, path), UPDATE (path) ON images TO {role};
         DO $$ BEGIN EXECUTE format('REVOKE CREATE ON DATABASE %I FROM PUBLIC', current_database()); END $$"
    ))
    .await;
    let url = rig.url_as(&role);
    let ended = rig.run_program("feeder", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    let statements: Vec<&str> = ended
        .log
        .lines()
        .filter(|line| line.ends_with(';'))
        .collect();
    assert!(
        statements
            .iter()
            .any(|line| line.starts_with("CREATE SCHEMA")),
        "{}",
        ended.log
    );
    // What was printed is all it takes.
    rig.execute_sql(&statements.join("\n")).await;
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    let ended = rig.run_program("feeder", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    crate::rig::stop_consumer(consumer).await;
}

#[tokio::test]
async fn without_the_right_to_update_the_grant_is_printed() {
    let rig = TestRig::new().await;
    let role = format!("reader_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT SELECT ON images TO {role}"
    ))
    .await;
    let url = rig.url_as(&role);
    let ended = rig.run_program("consumer", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(
        ended
            .log
            .contains("GRANT SELECT (\"id\", \"path\"), UPDATE (\"path\")"),
        "{}",
        ended.log
    );
}

#[tokio::test]
async fn a_second_feeder_of_the_same_run_is_kept_out() {
    let rig = TestRig::new().await;
    let mut first = rig.spawn("feeder", &[], &["--watch"]);
    crate::rig::wait_until("the first feeder's lock", async || {
        rig.query_number(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 25186
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .await
            > 0
    })
    .await;
    let second = rig.run_program("feeder", &[]).await;
    assert_eq!(second.code, Some(75), "{}", second.log);
    assert!(
        second.log.contains("another feeder of this run"),
        "{}",
        second.log
    );
    first.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut first).await.code, Some(3));
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
}

#[tokio::test]
async fn a_database_that_does_not_answer() {
    let rig = TestRig::new().await;
    let url = Cluster::shared().await.url("no_such_database");
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, &[("DATABASE_URL", &url)]).await;
        assert_eq!(ended.code, Some(69), "{}", ended.log);
        assert!(ended.log.contains("no_such_database"), "{}", ended.log);
    }
}

/// As a standby is, and a database that was closed.
#[tokio::test]
async fn a_database_that_takes_no_writes_is_named() {
    let rig = TestRig::new().await;
    let role = format!("reader_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'poor';
         ALTER ROLE {role} SET default_transaction_read_only = on"
    ))
    .await;
    let url = rig.url_as(&role);
    let settings = [("DATABASE_URL", url.as_str())];
    let expect_named = async |program, arguments: &[&str]| {
        let ended = rig.run_program_with(program, &settings, arguments).await;
        assert_eq!(ended.code, Some(69), "{}", ended.log);
        let is_named = ended.log.contains("the database takes no writes");
        assert!(is_named, "{program} {arguments:?}: {}", ended.log);
    };
    expect_named("feeder", &[]).await;
    rig.open_run().await;
    expect_named("feeder", &[]).await;
    expect_named("feeder", &["verify"]).await;
    expect_named("consumer", &[]).await;
}

#[tokio::test]
async fn without_usage_on_the_schema_the_grant_is_printed() {
    let mut rig = TestRig::new().await;
    let role = format!("outsider_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE SCHEMA closed; ALTER TABLE images SET SCHEMA closed;
         CREATE ROLE {role} LOGIN PASSWORD 'poor'"
    ))
    .await;
    rig.application.table.name = "closed.images".into();
    let url = rig.url_as(&role);
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, &[("DATABASE_URL", &url)]).await;
        assert_eq!(ended.code, Some(77), "{}", ended.log);
        assert!(
            ended.log.contains("GRANT USAGE ON SCHEMA \"closed\""),
            "{}",
            ended.log
        );
    }
}

#[tokio::test]
async fn a_consumer_without_rights_to_the_ledger_prints_the_grant() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let role = format!("stranger_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor';
         GRANT SELECT (id, path), UPDATE (path) ON images TO {role}"
    ))
    .await;
    let url = rig.url_as(&role);
    let ended = rig.run_program("consumer", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    let statements: Vec<&str> = ended
        .log
        .lines()
        .filter(|line| line.starts_with("GRANT"))
        .collect();
    rig.execute_sql(&statements.join("\n")).await;
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    let id = rig.add_image("image/a.png").await;
    rig.feed_row(&id, "image/a.png").await;
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/a.png");
    crate::rig::stop_consumer(consumer).await;
}

#[tokio::test]
async fn ids_that_no_index_orders_or_that_children_repeat() {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(
        "CREATE TABLE images (id text COLLATE \"C\" NOT NULL, path text);
         CREATE UNIQUE INDEX ON images (id COLLATE \"en-x-icu\")",
    )
    .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(
        ended.log.contains("in the column's collation"),
        "{}",
        ended.log
    );
    rig.execute_sql(
        "DROP TABLE images; CREATE TABLE images (id bigint PRIMARY KEY, path text);
         CREATE TABLE images_2024 () INHERITS (images)",
    )
    .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(ended.log.contains("inheritance children"), "{}", ended.log);
}

#[tokio::test]
async fn settings_of_the_role_are_not_ours() {
    let rig = TestRig::new().await;
    let role = format!("strict_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'poor';
         ALTER ROLE {role} SET default_transaction_isolation = 'serializable';
         ALTER ROLE {role} SET idle_session_timeout = '1s';
         ALTER ROLE {role} SET standard_conforming_strings = off"
    ))
    .await;
    let options = rig.url_as(&role).parse();
    let pool = ledger::create_pool(options.unwrap(), 2);
    let ledger = PostgresLedger::open(pool, &rig.run_spec(), "strict", SecondRun::Refused)
        .await
        .unwrap();
    for (setting, ours) in [
        ("transaction_isolation", "read committed"),
        // It would end the session that holds the feeder's lock.
        ("idle_session_timeout", "0"),
        ("standard_conforming_strings", "on"),
    ] {
        let query = sqlx::query_scalar("SELECT current_setting($1)").bind(setting);
        let value: String = query.fetch_one(ledger.pool()).await.unwrap();
        assert_eq!(value, ours);
    }
}
