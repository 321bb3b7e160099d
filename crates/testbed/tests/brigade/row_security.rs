//! Row level security: no decision may rest on rows that a role does not see.

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use crate::rig::{ExitedProcess, TestRig, stop_consumer, wait_until};

/// A database whose owner of the ledger sees one of two rows of `table`, and the URL that logs it in.
async fn hide_rows(rig: &TestRig, table: &str) -> String {
    let role = format!("tenant_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor';
         GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {role};
         CREATE SCHEMA IF NOT EXISTS bucket_brigade;
         GRANT ALL ON SCHEMA bucket_brigade TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA bucket_brigade TO {role};
         ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
         CREATE POLICY tenant ON {table} USING (id % 2 = 1)"
    ))
    .await;
    rig.url_as(&role)
}

fn expect_refusal(ended: &ExitedProcess) {
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(ended.log.contains("row level security"), "{}", ended.log);
    assert!(ended.log.contains("BYPASSRLS;"), "{}", ended.log);
}

#[tokio::test]
async fn hidden_rows_are_refused_by_every_program_that_reads_rows() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    rig.open_run().await;
    let url = hide_rows(&rig, "images").await;
    for program in ["feeder", "consumer"] {
        expect_refusal(&rig.run_program(program, &[("DATABASE_URL", &url)]).await);
    }
    let commands: [&[&str]; 3] = [
        &["verify"],
        &["rollback", "--all"],
        &["clean", "--older-than", "0s"],
    ];
    for arguments in commands {
        let mut process = rig.spawn("feeder", &[("DATABASE_URL", &url)], arguments);
        expect_refusal(&crate::rig::wait_for_exit(&mut process).await);
    }
    // What the ledger knows is told all the same.
    let mut status = rig.spawn("feeder", &[("DATABASE_URL", &url)], &["status"]);
    let ended = crate::rig::wait_for_exit(&mut status).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

/// As where an event trigger enables it for each new table.
#[tokio::test]
async fn a_ledger_whose_rows_are_hidden_is_refused() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let role = format!("mover_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor';
         GRANT ALL ON SCHEMA bucket_brigade TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA public, bucket_brigade TO {role};
         ALTER TABLE bucket_brigade.run ENABLE ROW LEVEL SECURITY"
    ))
    .await;
    let url = rig.url_as(&role);
    for (program, arguments) in [
        ("feeder", &[][..]),
        ("consumer", &[]),
        ("feeder", &["status"]),
    ] {
        let mut process = rig.spawn(program, &[("DATABASE_URL", &url)], arguments);
        let ended = crate::rig::wait_for_exit(&mut process).await;
        assert_eq!(ended.code, Some(77), "{program}: {}", ended.log);
        let mend = "ALTER TABLE bucket_brigade.run DISABLE ROW LEVEL SECURITY;";
        assert!(ended.log.contains(mend), "{program}: {}", ended.log);
    }
}

#[tokio::test]
async fn a_policy_that_comes_later_makes_no_row_seem_deleted() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.open_run().await;
    let url = hide_rows(&rig, "images").await;
    rig.execute_sql("ALTER TABLE images DISABLE ROW LEVEL SECURITY")
        .await;
    let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
    let settings = [("DATABASE_URL", url.as_str()), ("WATCH_INTERVAL", "1s")];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    wait_until("three moves", async || rig.count_rows("moves").await == 3).await;
    rig.execute_sql("ALTER TABLE images ENABLE ROW LEVEL SECURITY")
        .await;
    let hidden = rig.add_image("image/hidden.png").await;
    rig.feed_row(&hidden, "image/hidden.png").await;
    for process in [&consumer, &feeder] {
        wait_until("it to say so", async || {
            process.log_tail(50).contains("level security")
        })
        .await;
    }
    assert_eq!(rig.count_rows("changes").await, 0);
    rig.execute_sql("ALTER TABLE images DISABLE ROW LEVEL SECURITY")
        .await;
    wait_until("the hidden row", async || {
        rig.path_of(&hidden).await.as_deref() == Some("avatar/hidden.png")
    })
    .await;
    feeder.terminate().unwrap();
    assert_eq!(crate::rig::wait_for_exit(&mut feeder).await.code, Some(3));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_policy_that_comes_during_a_rollback_makes_no_row_seem_deleted() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    let url = hide_rows(&rig, "images").await;
    rig.execute_sql("ALTER TABLE images DISABLE ROW LEVEL SECURITY")
        .await;
    let mut administrator = rig.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE images IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *administrator)
        .await
        .unwrap();
    let settings = [("DATABASE_URL", url.as_str())];
    let mut rollback = rig.spawn("feeder", &settings, &["rollback", "--all", "--yes"]);
    wait_until("it to wait for the lock", async || {
        rollback.log_tail(50).contains("retrying")
    })
    .await;
    sqlx::query("ALTER TABLE images ENABLE ROW LEVEL SECURITY")
        .execute(&mut *administrator)
        .await
        .unwrap();
    administrator.commit().await.unwrap();
    expect_refusal(&crate::rig::wait_for_exit(&mut rollback).await);
}

/// Policies of the table that a statement names apply to all its partitions.
#[tokio::test]
async fn rows_that_the_root_of_partitions_hides_are_refused_and_those_of_a_partition_are_seen() {
    for (table, is_refused) in [("images", true), ("images_0", false)] {
        let rig =
            TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
        rig.execute_sql(
            "CREATE TABLE images (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, path text)
                PARTITION BY RANGE (id);
             CREATE TABLE images_0 PARTITION OF images DEFAULT",
        )
        .await;
        rig.add_images(2).await;
        let url = hide_rows(&rig, table).await;
        let settings = [("DATABASE_URL", url.as_str())];
        if is_refused {
            for program in ["feeder", "consumer"] {
                expect_refusal(&rig.run_program(program, &settings).await);
            }
            continue;
        }
        let consumer = rig.spawn_consumer(&settings);
        let ended = rig.run_program("feeder", &settings).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert_eq!(rig.count_rows("moves").await, 2);
        stop_consumer(consumer).await;
    }
}

#[tokio::test]
async fn hidden_rows_of_another_runs_table_keep_objects() {
    let rig = TestRig::new().await;
    rig.execute_sql("CREATE TABLE avatars (id bigint PRIMARY KEY, path text)")
        .await;
    rig.add_moved_images(1).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.execute_sql(
        "INSERT INTO bucket_brigade.run (images_table, id_column, path_column, old_prefix, new_prefix,
            source_bucket, source_key_prefix, destination_bucket, destination_key_prefix, name)
         SELECT '\"public\".\"avatars\"', id_column, path_column, old_prefix, new_prefix, source_bucket,
            source_key_prefix, destination_bucket, destination_key_prefix, 'avatars.path' FROM bucket_brigade.run",
    )
    .await;
    let url = hide_rows(&rig, "avatars").await;
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let mut process = rig.spawn("feeder", &[("DATABASE_URL", &url)], &clean);
    expect_refusal(&crate::rig::wait_for_exit(&mut process).await);
    assert!(rig.object_exists("images-old", "image/0.png").await);
}
