//! Ids and paths of every supported type, under odd names and prefixes.

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::application::ApplicationIdType;
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use crate::rig::{TestRig, stop_consumer, wait_until};

async fn migrates(id_type: ApplicationIdType, name: &str) {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql("CREATE SCHEMA app; CREATE SCHEMA \"odd.\"\"schema\"")
        .await;
    rig.application.table.name = name.to_owned();
    rig.application.table.id_type = id_type;
    rig.application.create_table(&rig.pool).await.unwrap();
    let value = match id_type {
        ApplicationIdType::BigInt | ApplicationIdType::Int => "n - 15",
        ApplicationIdType::Uuid => "gen_random_uuid()",
        ApplicationIdType::Text => "'id ''' || n || '\"%'",
    };
    // Identity columns take explicit values only with this clause.
    let overriding = if matches!(id_type, ApplicationIdType::BigInt | ApplicationIdType::Int) {
        "OVERRIDING SYSTEM VALUE"
    } else {
        ""
    };
    rig.execute_sql(&format!(
        "INSERT INTO {name} (id, path) {overriding} SELECT {value}, 'image/' || n || '.png' FROM generate_series(1, 30) n"
    ))
    .await;
    move_thirty_images(&rig).await;
    assert_eq!(
        rig.query_number(&format!(
            "SELECT count(*) FROM {name} WHERE path LIKE 'avatar/%'"
        ))
        .await,
        30
    );
    assert_eq!(rig.count_rows("moves").await, 30);
}

async fn move_thirty_images(rig: &TestRig) {
    for number in 1..=30 {
        rig.put_object("images-old", &format!("image/{number}.png"), b"bytes")
            .await;
    }
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "7")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    // The cursor follows the id's own order, not that of its text: no row is fed twice.
    let fed = "SELECT fed FROM bucket_brigade.feed_cursors";
    assert_eq!(rig.query_number(fed).await, 30);
    stop_consumer(consumer).await;
}

/// Ids and paths of these types are moved, verified and moved back.
async fn goes_there_and_back(types: &str, id_type: &str, path_type: &str) {
    let rig = TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.execute_sql(&format!(
        "{types} CREATE TABLE images (id {id_type} PRIMARY KEY, path {path_type});
         INSERT INTO images SELECT 'k' || n, 'image/' || n || '.png' FROM generate_series(1, 30) n"
    ))
    .await;
    move_thirty_images(&rig).await;
    for (arguments, field, count) in [
        (&["verify", "--full", "--json"][..], "sound", 30),
        (
            &["rollback", "--ids", "k3", "--ids", "k4", "--yes", "--json"],
            "rolled_back",
            2,
        ),
        (&["rollback", "--all", "--yes", "--json"], "rolled_back", 28),
    ] {
        let output = rig.feeder_json(arguments).await;
        assert_eq!(output[field], count, "{arguments:?}: {output}");
    }
    let back = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!(rig.query_number(back).await, 30);
}

#[tokio::test]
async fn ids_of_a_fixed_length() {
    goes_there_and_back("", "char(26)", "text").await;
}

#[tokio::test]
async fn domains_over_domains() {
    let domains =
        "CREATE DOMAIN word AS varchar(40); CREATE DOMAIN key AS word CHECK (value <> '');";
    goes_there_and_back(domains, "key", "key").await;
}

#[tokio::test]
async fn bigint_ids_and_a_schema() {
    migrates(ApplicationIdType::BigInt, "app.images").await;
}

#[tokio::test]
async fn integer_ids() {
    migrates(ApplicationIdType::Int, "images").await;
}

/// Applications run out of them at any time.
#[tokio::test]
async fn integer_ids_that_become_wider_during_a_run() {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table.id_type = ApplicationIdType::Int;
    rig.application.create_table(&rig.pool).await.unwrap();
    let insert = async |id: i64| {
        let key = format!("image/{id}.png");
        rig.put_object("images-old", &key, b"bytes").await;
        rig.execute_sql(&format!(
            "INSERT INTO images (id, path) OVERRIDING SYSTEM VALUE VALUES ({id}, '{key}')"
        ))
        .await;
    };
    let consumer = rig.spawn_consumer(&[]);
    let watching = [("WATCH_INTERVAL", "100ms")];
    let _feeder = rig.spawn("feeder", &watching, &["--watch"]);
    insert(7).await;
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    rig.execute_sql("ALTER TABLE images ALTER id TYPE bigint")
        .await;
    insert(3_000_000_000).await;
    wait_until("the wide one", async || rig.count_rows("moves").await == 2).await;
    assert_eq!(rig.count_rows("poison").await, 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn uuid_ids() {
    migrates(ApplicationIdType::Uuid, "images").await;
}

#[tokio::test]
async fn text_ids_and_names_that_need_quotes() {
    migrates(ApplicationIdType::Text, r#""odd.""schema"."Ta.ble %""#).await;
}

#[tokio::test]
async fn whole_urls_map_to_bare_keys() {
    let rig = TestRig::new().await;
    rig.put_object("images-old", "u/1 ä.png", b"bytes").await;
    let id = rig.add_row("https://old.example/u/1 ä.png").await;
    let urls = [
        ("OLD_PREFIX", "https://old.example/"),
        ("NEW_PREFIX", "https://new.example/"),
        ("SOURCE_KEY_PREFIX", ""),
        ("DESTINATION_KEY_PREFIX", ""),
    ];
    let consumer = rig.spawn_consumer(&urls);
    let ended = rig.run_program("feeder", &urls).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(
        rig.path_of(&id).await.unwrap(),
        "https://new.example/u/1 ä.png"
    );
    assert!(rig.destination_sha256("u/1 ä.png").await.is_some());
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn an_id_column_named_path_is_an_id_all_the_same() {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table.id_column = "path".into();
    rig.application.table.path_column = "url".into();
    rig.execute_sql(
        "CREATE TABLE images (path bigint PRIMARY KEY, url text);
         INSERT INTO images SELECT n, 'image/' || (100 - n) || '.png' FROM generate_series(1, 30) n",
    )
    .await;
    for number in 70..100 {
        rig.put_object("images-old", &format!("image/{number}.png"), b"bytes")
            .await;
    }
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[("PAGE_SIZE", "7")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 30);
    assert_eq!(
        rig.query_number("SELECT fed FROM bucket_brigade.feed_cursors")
            .await,
        30
    );
    stop_consumer(consumer).await;
}
