//! Messages, rows and settings chosen by an attacker move nothing outside the rule.

use std::collections::BTreeMap;

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::application::{ApplicationIdType, ImagesTable};
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::rig::{TestRig, sha256, stop_consumer, wait_until};

/// Keys and bytes' hashes of both buckets.
async fn objects(rig: &TestRig) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for bucket in ["images-old", "images-new"] {
        let listed = rig
            .cloud
            .s3_client()
            .list_objects_v2()
            .bucket(bucket)
            .send()
            .await;
        for object in listed.unwrap().contents() {
            let key = object.key().unwrap();
            found.insert(
                format!("{bucket}/{key}"),
                object.e_tag().unwrap().to_owned(),
            );
        }
    }
    found
}

/// The whole table, as text.
async fn rows(rig: &TestRig) -> Vec<String> {
    let sql = format!(
        "SELECT t::text FROM {} t ORDER BY 1",
        rig.application.table.name
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&rig.pool)
        .await
        .unwrap()
}

/// Bodies that are not the feeder's, whatever the id's type.
fn not_messages() -> Vec<String> {
    let mut bodies: Vec<String> = [
        "",
        "null",
        "true",
        "42",
        "\"image/secret.png\"",
        "[]",
        "{}",
        "{",
        "[[[[[[[[[[",
        "<xml/>",
        r#"{"id":"1"}"#,
        r#"{"path":"image/secret.png"}"#,
        r#"{"id":null,"path":"image/secret.png"}"#,
        r#"{"id":["1"],"path":"image/secret.png"}"#,
        r#"{"id":{"$ne":null},"path":"image/secret.png"}"#,
        r#"{"id":"1","path":["image/secret.png"]}"#,
        r#"{"id":"1","path":"image/secret.png","run":"2"}"#,
        r#"{"id":"1","id":"2","path":"image/secret.png"}"#,
        r#"{"__proto__":{},"id":"1","path":"image/x"}"#,
        r#"{"\u0000":"1"}"#,
        r#"{"a\nb":"forged line"}"#,
        r#"{"id":"1","path":"image/\ud800"}"#,
    ]
    .map(str::to_owned)
    .into();
    bodies.retain(|body| !body.is_empty()); // SQS takes no empty body.
    bodies.push("[".repeat(10_000));
    bodies.push(json!({ "id": "1", "path": format!("image/{}", "x".repeat(40_000)) }).to_string());
    bodies
}

/// Paths outside the rule, or that no key can be made of.
fn outside() -> Vec<String> {
    let mut paths: Vec<String> = [
        "",
        "secret.png",
        "/image/secret.png",
        "../image/secret.png",
        "./image/secret.png",
        "Image/secret.png",
        "image",
        "image%2Fsecret.png",
        "%69mage/secret.png",
        "avatar/secret.png",
        "\u{feff}image/secret.png",
        "s3://images-old/image/secret.png",
        "image\\secret.png",
        "image/\0",
        "image/a\0b.png",
    ]
    .map(str::to_owned)
    .into();
    paths.push(format!("image/{}", "x".repeat(1025)));
    paths
}

/// Paths under the old prefix that mean something else to a file system, a URL or SQL.
const CLIMBING: [&str; 12] = [
    "image/../secret.png",
    "image/../../images-old/secret.png",
    "image/..",
    "image/./secret.png",
    "image//secret.png",
    "image//../secret.png",
    "image/%2e%2e/secret.png",
    "image/%2E%2E%2Fsecret.png",
    "image/..%5csecret.png",
    "image/secret.png?versionId=1",
    "image/'; UPDATE images SET path = 'avatar/x'; --",
    "image/\u{ffff}\u{202e}\u{1}.png",
];

/// Ids that are SQL, or of another type.
const IDS: [&str; 12] = [
    "1'; DROP TABLE images; --",
    "1 OR 1=1",
    "1) OR (1=1",
    "1::int",
    "NULL",
    "{1,2}",
    "1,2",
    "1e0",
    " 1",
    "0x1",
    "9223372036854775808",
    "'1'",
];

#[tokio::test]
async fn messages_move_nothing_but_what_their_rows_name() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.put_object("images-old", "secret.png", b"secret").await;
    let kept = rig.add_image("image/kept.png").await;
    let (before, table) = (objects(&rig).await, rows(&rig).await);
    let mut poison = not_messages();
    poison.extend(
        outside()
            .iter()
            .map(|path| json!({ "id": kept, "path": path }).to_string()),
    );
    poison.extend(
        IDS.iter()
            .map(|id| json!({ "id": id, "path": "image/kept.png" }).to_string()),
    );
    for body in &poison {
        rig.send_message(body).await;
    }
    // These are messages of ours by their form, but no row has such a path.
    for path in CLIMBING {
        rig.feed_row(&kept, path).await;
        rig.feed_row("424242", path).await;
    }
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let expected = i64::try_from(poison.len()).unwrap();
    wait_until("the poison", async || {
        rig.count_rows("poison").await == expected
    })
    .await;
    wait_until("the dead letters", async || {
        rig.dead_letters().await == poison.len() as u64
    })
    .await;
    rig.wait_until_drained().await;
    assert_eq!((objects(&rig).await, rows(&rig).await), (before, table));
    let asked = rig.cloud.request_counts().snapshot_by("consumer");
    // A copy that has lost its row is looked for, by its own key.
    let is_about_objects = |name: &&String| name.contains("Object") && *name != "HeadObject";
    let s3: Vec<_> = asked.keys().filter(is_about_objects).collect();
    assert!(s3.is_empty(), "requests about objects: {s3:?}");
    assert_eq!(
        rig.count_rows("moves").await + rig.count_rows("failures").await,
        0
    );
    // And the consumer is as well as ever.
    let good = rig.add_image("image/good.png").await;
    rig.feed_row(&good, "image/good.png").await;
    rig.feed_row(&kept, "image/kept.png").await;
    wait_until("the good ones", async || rig.count_rows("moves").await == 2).await;
    let log = stop_consumer(consumer).await;
    assert!(
        !log.lines().any(|line| line.starts_with("b`")),
        "a forged line:\n{log}"
    );
}

#[tokio::test]
async fn paths_that_climb_are_taken_literally() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    // What each path would name if it were resolved on the way.
    rig.put_object("images-old", "secret.png", b"secret").await;
    rig.put_object("images-old", "image/secret.png", b"secret")
        .await;
    rig.put_object("images-new", "secret.png", b"the application's")
        .await;
    let before = objects(&rig).await;
    let mut ids = Vec::new();
    for path in CLIMBING {
        let id = rig.add_row(path).await;
        rig.feed_row(&id, path).await;
        ids.push(id);
    }
    let consumer = rig.spawn_consumer(&[]);
    let all = i64::try_from(CLIMBING.len()).unwrap();
    wait_until("their failures", async || {
        rig.count_rows("failures").await == all
    })
    .await;
    for id in &ids {
        assert_eq!(rig.failure_code(id).await.unwrap(), "NoSuchKey");
    }
    assert_eq!(objects(&rig).await, before);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn objects_with_such_names_move_under_such_names() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.put_object("images-old", "secret.png", b"secret").await;
    rig.put_object("images-new", "secret.png", b"the application's")
        .await;
    for path in CLIMBING {
        let id = rig.add_image(path).await;
        rig.feed_row(&id, path).await;
    }
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    assert_eq!(
        rig.count_rows("moves").await,
        i64::try_from(CLIMBING.len()).unwrap()
    );
    for path in CLIMBING {
        let key = path.replacen("image/", "avatar/", 1);
        assert_eq!(
            rig.destination_sha256(&key).await,
            Some(sha256(path.as_bytes())),
            "{key}"
        );
    }
    assert_eq!(
        rig.destination_sha256("secret.png").await,
        Some(sha256(b"the application's"))
    );
    stop_consumer(consumer).await;
}

/// A rig whose table has ids of this type, and one row.
async fn with_ids(id_type: ApplicationIdType, id: &str) -> TestRig {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table = ImagesTable {
        id_type,
        ..ImagesTable::default()
    };
    rig.application.create_table(&rig.pool).await.unwrap();
    let insert = format!("INSERT INTO images (id, path) VALUES ('{id}', 'image/a.png')");
    rig.execute_sql(&insert).await;
    rig.put_object("images-old", "image/a.png", b"a").await;
    rig
}

#[tokio::test]
async fn ids_of_the_wrong_type_are_poison() {
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    for (id_type, id, wrong) in [
        (
            ApplicationIdType::Int,
            "7",
            vec!["9223372036854775808", uuid, "7.0", "", "seven"],
        ),
        (
            ApplicationIdType::BigInt,
            "7",
            vec!["9223372036854775808", uuid, "-", "7 "],
        ),
        (
            ApplicationIdType::Uuid,
            uuid,
            vec![
                "7",
                "a0eebc999c0b4ef8bb6d6bb9bd380a11",
                "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
                "",
            ],
        ),
        (ApplicationIdType::Text, "7", vec!["\0", "7\0"]),
    ] {
        let rig = with_ids(id_type, id).await;
        rig.open_run().await;
        for wrong in &wrong {
            rig.feed_row(wrong, "image/a.png").await;
        }
        // Of type text, anything else is an id: of no row.
        rig.feed_row(id, "image/a.png").await;
        let consumer = rig.spawn_consumer(&[]);
        wait_until("the move", async || rig.count_rows("moves").await == 1).await;
        let expected = i64::try_from(wrong.len()).unwrap();
        wait_until("the poison", async || {
            rig.count_rows("poison").await == expected
        })
        .await;
        assert_eq!(rig.path_of(id).await.unwrap(), "avatar/a.png");
        stop_consumer(consumer).await;
    }
}

#[tokio::test]
async fn sql_as_an_id_of_type_text_is_only_text() {
    let rig = with_ids(ApplicationIdType::Text, "7").await;
    rig.open_run().await;
    let table = rows(&rig).await;
    for id in IDS {
        rig.feed_row(id, "image/a.png").await;
    }
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    assert_eq!(rows(&rig).await, table);
    assert_eq!(
        rig.count_rows("changes").await,
        i64::try_from(IDS.len()).unwrap()
    );
    assert_eq!(rig.count_rows("moves").await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn names_and_prefixes_that_are_sql_are_only_names() {
    let rig = TestRig::new().await;
    rig.add_image("image/a.png").await;
    let before = rows(&rig).await;
    for (name, value) in [
        ("IMAGES_TABLE", "images; DROP TABLE images"),
        ("IMAGES_TABLE", "\"images\"; DROP TABLE images"),
        ("IMAGES_TABLE", "images\" SET path = 'x'; --"),
        ("IMAGES_TABLE", "(SELECT 1)"),
        ("PATH_COLUMN", "path\" = 'x' WHERE true; --"),
        ("PATH_COLUMN", "path, title"),
        ("ID_COLUMN", "id\" = \"id"),
        ("ID_COLUMN", "id) OR (true"),
    ] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run_program(program, &[(name, value)]).await;
            assert_eq!(
                ended.code,
                Some(64),
                "{program} {name}={value}: {}",
                ended.log
            );
            assert!(ended.log.contains(name), "{}", ended.log);
        }
    }
    assert_eq!(rows(&rig).await, before);
}

#[tokio::test]
async fn a_table_and_columns_with_such_names_can_be_moved() {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table = ImagesTable {
        name: r#""im""ages; DROP TABLE x; --""#.into(),
        id_column: r#""id"" = 1 OR true --""#.into(),
        path_column: r#""path') --""#.into(),
        id_type: ApplicationIdType::BigInt,
    };
    rig.application.create_table(&rig.pool).await.unwrap();
    let table = rig.application.table.clone();
    let insert = format!(
        "INSERT INTO {} ({}) VALUES ('image/a.png')",
        table.name, table.path_column
    );
    rig.execute_sql(&insert).await;
    rig.put_object("images-old", "image/a.png", b"a").await;
    // Columns are taken as written, without quotes.
    let more = [
        ("ID_COLUMN", r#"id" = 1 OR true --"#),
        ("PATH_COLUMN", "path') --"),
    ];
    let consumer = rig.spawn_consumer(&more);
    let ended = rig.run_program("feeder", &more).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.path_of("1").await.unwrap(), "avatar/a.png");
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn wildcards_and_quotes_in_a_prefix_are_literal() {
    for prefix in [r"im_g%\/", "im'age/", r"im\age/", "image\"/", "%", "_mage/"] {
        let mut rig = TestRig::new().await;
        let mine = format!("{prefix}a.png");
        rig.application.old_prefix = prefix.to_owned();
        let id = rig.add_image(&mine).await;
        let other = rig.add_image("image/b.png").await;
        let consumer = rig.spawn_consumer(&[]);
        let ended = rig.run_program("feeder", &[]).await;
        assert_eq!(ended.code, Some(0), "{prefix}: {}", ended.log);
        assert_eq!(rig.path_of(&id).await.unwrap(), "avatar/a.png", "{prefix}");
        assert_eq!(
            rig.path_of(&other).await.unwrap(),
            "image/b.png",
            "{prefix}"
        );
        assert_eq!(rig.count_rows("moves").await, 1, "{prefix}");
        stop_consumer(consumer).await;
    }
}
