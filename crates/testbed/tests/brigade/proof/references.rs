//! clean: rows that mean an object in another way than this run's table names it.

use crate::rig::{TestRig, wait_for_exit};

const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

const SPELLINGS: [&str; 9] = [
    "http://old.example/image/0.png",
    "//old.example/image/1.png",
    "/image/2.png",
    "image/3.png?v=2",
    "image/4.png#top",
    "image/%35.png",
    "image//6.png",
    "HTTPS://OLD.EXAMPLE/IMAGE/7.PNG",
    "image%2F8.png",
];

#[tokio::test]
async fn what_a_row_may_mean_by_another_spelling_stays() {
    let rig = TestRig::new().await;
    rig.add_moved_images(10).await;
    for path in SPELLINGS {
        rig.add_row(path).await;
    }
    rig.execute_sql("INSERT INTO images (path) VALUES (''), ('default.png')")
        .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let seen = rig.run_command(&["clean", "--older-than", "0s"]).await.log;
    assert!(
        seen.contains("6 rows are outside the path rule ('http://old.example/image/0.png'"),
        "{seen}"
    );
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (result.code, result.number_of("removed")),
        (2, 1),
        "{}",
        result.json
    );
    for number in 0..9 {
        let key = format!("image/{number}.png");
        assert!(rig.object_exists("images-old", &key).await, "{key}");
    }
    assert!(!rig.object_exists("images-old", "image/9.png").await);
}

#[tokio::test]
async fn the_number_of_rows_outside_the_rule_lets_go_what_bears_their_names() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    let paths = [
        "https://elsewhere.example/0.png",
        "https://elsewhere.example/7.png",
    ];
    for path in [&paths[..], &["image/1.png?v=2"]].concat() {
        rig.add_row(path).await;
    }
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let of = async |rows| {
        let arguments = [&CLEAN[..], &["--rows-outside-the-rule", rows]].concat();
        rig.run_command(&arguments).await
    };
    let refused = of("1").await;
    assert_eq!(refused.code, Some(64), "{}", refused.log);
    assert!(
        refused.log.contains("2 rows are outside the path rule"),
        "{}",
        refused.log
    );
    // The application may have corrected one since they were counted.
    let ended = of("3").await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert!(!rig.object_exists("images-old", "image/0.png").await);
    assert!(rig.object_exists("images-old", "image/1.png").await);
}

/// The run's table is a partition, or has heirs: what is beside it names objects too.
#[tokio::test]
async fn the_other_partitions_of_the_table_are_asked_too() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE TABLE pictures (LIKE images) PARTITION BY RANGE (id);
         ALTER TABLE pictures ATTACH PARTITION images FOR VALUES FROM (0) TO (1000);
         CREATE TABLE images_2023 PARTITION OF pictures FOR VALUES FROM (1000) TO (2000)",
    )
    .await;
    rig.add_moved_images(3).await;
    rig.execute_sql(
        "INSERT INTO images_2023 (id, path, title) VALUES (1000, 'image/0.png', ''), (1001, '/image/1.png', '')",
    )
    .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (result.code, result.number_of("removed")),
        (2, 1),
        "{}",
        result.json
    );
    for name in ["0", "1"] {
        let key = format!("image/{name}.png");
        assert!(rig.object_exists("images-old", &key).await, "{key}");
    }
}

/// Neither a column beside the run's, nor one of a table of its own, is known to the ledger; of one there are statistics.
#[tokio::test]
async fn a_column_that_no_run_is_of_must_be_named_before_what_it_names_may_go() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    rig.execute_sql(
        "CREATE TABLE \"Old\" (urls jsonb); INSERT INTO \"Old\" VALUES ('[\"image/1.png\"]');
         UPDATE images SET title = 'image/0.png'; ANALYZE images",
    )
    .await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let refused = rig.run_command(&CLEAN).await;
    assert_eq!(refused.code, Some(64), "{}", refused.log);
    let names = "public.images.title,public.\"Old\".urls";
    assert!(
        refused.log.contains(&format!("--ignore-columns {names}")),
        "{}",
        refused.log
    );
    // As a shell gives it on.
    let names = names.replace('"', "");
    let ignoring = [&CLEAN[..], &["--ignore-columns", &names]].concat();
    let result = rig.run_json_command(&ignoring).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 3));
}

/// Their statistics are hidden, too.
#[tokio::test]
async fn columns_that_may_not_be_read_are_counted() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let role = format!("cleaner_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE TABLE posts (cover text);
         CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT SELECT (id, path) ON images TO {role};
         GRANT USAGE ON SCHEMA bucket_brigade TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA bucket_brigade TO {role}"
    ))
    .await;
    let url = rig.url_as(&role);
    let clean = rig.spawn("feeder", &[("DATABASE_URL", &url)], &CLEAN);
    let ended = wait_for_exit(&mut { clean }).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let expected = "2 columns of text of no run may not be read by this role, public.images.title";
    assert!(ended.log.contains(expected), "{}", ended.log);
}

/// The application composes and lowers a path before it asks for an object.
#[tokio::test]
async fn what_failed_rows_may_mean_by_other_letters_stays() {
    let rig = TestRig::new().await;
    for name in ["caf\u{e9}.png", "b.png", "c.png"] {
        rig.add_image(&format!("image/{name}")).await;
    }
    for name in ["cafe\u{301}.png", "B.PNG"] {
        rig.add_row(&format!("image/{name}")).await;
    }
    rig.run_migration().await;
    assert_eq!(rig.count_rows("failures").await, 2);
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let cleaned = rig.run_json_command(&CLEAN).await;
    let counts = ["removed", "left_alone"].map(|name| cleaned.number_of(name));
    assert_eq!((cleaned.code, counts), (2, [1, 2]), "{}", cleaned.json);
    assert!(!rig.object_exists("images-old", "image/c.png").await);
}
