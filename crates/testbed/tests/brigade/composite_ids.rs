//! Ids of several columns: fed in the order of their index, one text in message and ledger, and back again.

use bucket_brigade_common::ledger::feed_source::PageReader as _;
use bucket_brigade_common::ledger::{self, PostgresLedger, SecondRun};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use sqlx::AssertSqlSafe;

use crate::rig::{TestRig, stop_consumer};

async fn rig_with(id_column: &str, declaration: &str) -> TestRig {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table.id_column = id_column.into();
    rig.execute_sql(declaration).await;
    for number in 1..=30 {
        rig.put_object("images-old", &format!("image/{number}.png"), b"bytes")
            .await;
    }
    rig
}

/// Thirty rows are moved, each fed once; verified; and set back.
async fn goes_there_and_back(rig: &TestRig, some_id: &str) {
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "7")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    let moved = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%'";
    assert_eq!(rig.query_number(moved).await, 30);
    for counted in ["feed_cursors.fed", "run.in_scope"] {
        let numbers =
            format!("SELECT {counted} FROM bucket_brigade.run, bucket_brigade.feed_cursors");
        assert_eq!(rig.query_number(&numbers).await, 30, "{counted}");
    }
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}{}", plan.output, plan.log);
    for (arguments, field, count) in [
        (&["verify", "--full", "--json"][..], "sound", 30),
        (
            &["rollback", "--ids", some_id, "--yes", "--json"],
            "rolled_back",
            1,
        ),
        (&["rollback", "--all", "--yes", "--json"], "rolled_back", 29),
    ] {
        let output = rig.feeder_json(arguments).await;
        assert_eq!(output[field], count, "{arguments:?}: {output}");
    }
    let back = "SELECT count(*) FROM images WHERE path::text LIKE 'image/%'";
    assert_eq!(rig.query_number(back).await, 30);
    let rehearsed = rig.run_feeder(&["plan"]).await;
    assert!(
        rehearsed.output.contains("30 rows were set and set back"),
        "{}",
        rehearsed.output
    );
}

#[tokio::test]
async fn a_tenant_and_a_number() {
    // As text, 10 comes before 9, and the tenant's blanks mean nothing.
    let rig = rig_with(
        "tenant_id,id",
        "CREATE TABLE images (id int, tenant_id char(8), path text, PRIMARY KEY (tenant_id, id));
         INSERT INTO images SELECT n - 15, CASE n % 3 WHEN 0 THEN 'a\"b' WHEN 1 THEN 'ä' ELSE '' END,
                'image/' || n || '.png' FROM generate_series(1, 30) n",
    )
    .await;
    goes_there_and_back(&rig, r#"["ä",-14]"#).await;
    assert_eq!(rig.failure_code("none").await, None);
}

/// One whose row names it again, one that a row may mean, and one of whose two moves one is not verified stay.
#[tokio::test]
async fn sources_of_a_tenant_and_a_number_go() {
    let rig = rig_with(
        "tenant_id,id",
        "CREATE TABLE images (tenant_id text, id int, path text, PRIMARY KEY (tenant_id, id));
         INSERT INTO images SELECT 't' || n % 3, n, 'image/' || n || '.png' FROM generate_series(1, 30) n;
         INSERT INTO images VALUES ('twin', 3, 'image/3.png')",
    )
    .await;
    rig.run_migration().await;
    assert_eq!(rig.run_json_command(&["verify", "--full"]).await.code, 0);
    rig.execute_sql(
        "UPDATE images SET path = 'image/1.png' WHERE path = 'avatar/1.png';
         INSERT INTO images VALUES ('odd', 2, 'image/2.png?v=1');
         UPDATE bucket_brigade.moves SET verified_at = NULL WHERE row_id LIKE '%twin%'",
    )
    .await;
    let cleaned = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let cleaned = rig.run_json_command(&cleaned).await;
    let counts = (
        cleaned.number_of("removed"),
        cleaned.number_of("left_alone"),
    );
    assert_eq!((cleaned.code, counts), (2, (27, 2)), "{}", cleaned.json);
    let keys = cleaned.sorted_fields("objects", "key");
    assert!(!keys.contains(&"image/3.png".to_owned()), "{keys:?}");
    let verified = rig.run_json_command(&["verify"]).await;
    assert_eq!((verified.code, verified.number_of("checked")), (0, 31));
    let back = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(
        (back.code, back.number_of("rolled_back")),
        (2, 3),
        "{}",
        back.json
    );
    let reasons = &back.json["left_alone_by_reason"];
    assert_eq!(
        (&reasons["source_removed"], &reasons["changed"]),
        (&27.into(), &1.into())
    );
    rig.assert_counts_agree().await;
}

#[tokio::test]
async fn times_whatever_the_session_shows_them_as() {
    let rig = rig_with(
        "at,id,day,local",
        "CREATE TABLE images (path text, id uuid, at timestamptz, local timestamp, day date,
                              PRIMARY KEY (day, at, id, local));
         INSERT INTO images SELECT 'image/' || n || '.png', md5(n::text)::uuid,
                '2024-03-31 00:30:00.123456 Europe/Berlin'::timestamptz + n * interval '10 minutes',
                CASE n WHEN 5 THEN '-infinity' WHEN 6 THEN '0044-03-15 12:00:00.5 BC' ELSE '12024-01-01'::timestamp END,
                CASE n WHEN 7 THEN 'infinity' ELSE '1999-12-31'::date END FROM generate_series(1, 30) n;
         DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET DateStyle = ''SQL, DMY''', current_database());
            EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kathmandu''', current_database());
         END $$",
    )
    .await;
    let some = r#"["2024-03-30T23:40:00.123456", "c4ca4238-a0b9-2382-0dcc-509a6f75849b", "1999-12-31", "12024-01-01T00:00:00"]"#;
    goes_there_and_back(&rig, some).await;
    let of_utc = "SELECT count(*) FROM bucket_brigade.orphans
        WHERE row_id LIKE '[\"2024-03-3_T__:_0:00.123456\", \"________-%\", \"%\"]'";
    assert_eq!(rig.query_number(of_utc).await, 30);
}

#[tokio::test]
async fn a_table_partitioned_by_time() {
    let rig = rig_with(
        "id,created_at",
        "CREATE TABLE images (id bigint, created_at timestamptz, path text, PRIMARY KEY (id, created_at))
            PARTITION BY RANGE (created_at);
         CREATE TABLE images_old PARTITION OF images FOR VALUES FROM (MINVALUE) TO ('2024-01-16');
         CREATE TABLE images_new PARTITION OF images FOR VALUES FROM ('2024-01-16') TO (MAXVALUE);
         INSERT INTO images SELECT n / 2, '2024-01-01'::timestamptz + n * interval '1 day',
                'image/' || n || '.png' FROM generate_series(1, 30) n",
    )
    .await;
    goes_there_and_back(&rig, r#"[0,"2024-01-02T00:00:00"]"#).await;
}

#[tokio::test]
async fn a_table_partitioned_by_hash_is_paged_without_a_sort() {
    let rig = rig_with(
        "id,tenant_id",
        "CREATE TABLE images (id bigint, tenant_id int, path text, PRIMARY KEY (tenant_id, id))
            PARTITION BY HASH (tenant_id);
         CREATE TABLE images_0 PARTITION OF images FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE images_1 PARTITION OF images FOR VALUES WITH (MODULUS 3, REMAINDER 1);
         CREATE TABLE images_2 PARTITION OF images FOR VALUES WITH (MODULUS 3, REMAINDER 2);
         INSERT INTO images SELECT n, n % 7, 'image/' || n || '.png' FROM generate_series(1, 30) n",
    )
    .await;
    goes_there_and_back(&rig, "[1, 1]").await;
    rig.execute_sql(
        "INSERT INTO images SELECT n, n % 7, 'other/' || n FROM generate_series(31, 50000) n; ANALYZE images",
    )
    .await;
    let mut spec = rig.run_spec();
    spec.table.id_column = "id,tenant_id".into();
    let pool = ledger::create_pool(rig.application.database_url.parse().unwrap(), 1);
    let ledger = PostgresLedger::open(pool, &spec, "test", SecondRun::Refused)
        .await
        .unwrap();
    let cursor = RowId::from_database("[40, 5]".into());
    assert!(
        ledger
            .read(Some(&cursor), 100)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    let plan = plan_of(&ledger, "lead", "1, 'image/%', 100, '[40, 5]'").await;
    assert!(
        plan.contains("Merge Append") && !plan.contains("Seq Scan"),
        "{plan}"
    );
    assert!(
        !plan.contains("Sort Key: t.") || plan.contains("Merge Append"),
        "{plan}"
    );
    assert!(!plan.contains("Incremental Sort"), "{plan}");
}

/// The plan of the statement with this word that the ledger has prepared on its only connection.
async fn plan_of(ledger: &PostgresLedger, word: &str, parameters: &str) -> String {
    let prepared = "SELECT name FROM pg_prepared_statements WHERE position($1 IN statement) > 0";
    let name: String = sqlx::query_scalar(prepared)
        .bind(word)
        .fetch_one(ledger.pool())
        .await
        .unwrap();
    let explain = format!("EXPLAIN (COSTS OFF) EXECUTE {name} ({parameters})");
    let explain = sqlx::query_scalar(AssertSqlSafe(explain)).persistent(false);
    let lines: Vec<String> = explain.fetch_all(ledger.pool()).await.unwrap();
    lines.join("\n")
}

#[tokio::test]
async fn columns_that_are_no_id_are_refused() {
    let rig = rig_with(
        "id",
        "CREATE TABLE images (id bigint PRIMARY KEY, part int NOT NULL, other int, amount numeric,
                              path text, UNIQUE (part, other), UNIQUE (part, amount))",
    )
    .await;
    for (id_column, words) in [
        ("id,nothing", "has no column 'nothing' (it has id, part"),
        ("part", "does not identify a row"),
        ("part,path", "'path' is PATH_COLUMN too"),
        ("part,other", "'other' of table 'public.images' may be null"),
        ("part,amount", "is of type numeric"),
        ("id,part,id", "'id' is named twice"),
        ("id,", "has no column ''"),
    ] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run_program(program, &[("ID_COLUMN", id_column)]).await;
            assert_eq!(ended.code, Some(64), "{id_column}: {}", ended.log);
            assert!(
                ended.log.contains("ID_COLUMN") && ended.log.contains(words),
                "{}",
                ended.log
            );
        }
    }
}

#[tokio::test]
async fn case_insensitive_paths_are_compared_byte_by_byte() {
    let rig = rig_with(
        "id",
        "CREATE EXTENSION IF NOT EXISTS citext;
         CREATE TABLE images (id bigint PRIMARY KEY, path citext);
         INSERT INTO images SELECT n, 'image/' || n || '.png' FROM generate_series(1, 30) n;
         INSERT INTO images VALUES (31, 'Image/1.png')",
    )
    .await;
    goes_there_and_back(&rig, "7").await;
    assert_eq!(rig.path_of("31").await.unwrap(), "Image/1.png");
}
