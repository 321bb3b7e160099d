//! A feeder that finds no row in scope says what the column's paths start with.

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

#[tokio::test]
async fn a_prefix_that_no_path_has_is_told_from_a_finished_migration() {
    let rig = TestRig::new().await;
    rig.add_images(20).await;
    rig.add_row("avatar/new.png").await;
    rig.add_row("").await;
    for (prefix, slip) in [
        ("\"image/\"", "quotes around it"),
        ("/image/", "a slash too many at its start"),
        ("Image/", "other letters in upper case"),
        ("image//", "a doubled slash at its end"),
        ("photos/", "20 start with 'image/'"),
    ] {
        let prefix = [("OLD_PREFIX", prefix)];
        let ended = rig.run_program("feeder", &prefix).await;
        assert_eq!(ended.code, Some(66), "{}", ended.log);
        assert!(
            ended.log.contains("20 start with 'image/'"),
            "{}",
            ended.log
        );
        assert!(ended.log.contains(slip), "{}", ended.log);
        let mut canary = rig.spawn("feeder", &prefix, &["--limit", "5"]);
        assert_eq!(wait_for_exit(&mut canary).await.code, Some(66));
        let mut plan = rig.spawn("feeder", &prefix, &["plan"]);
        let planned = wait_for_exit(&mut plan).await;
        assert_eq!(planned.code, Some(1), "{}", planned.log);
        assert!(planned.log.contains(slip), "{}", planned.log);
    }
    let consumer = rig.spawn_consumer(&[]);
    for _ in 0..2 {
        let ended = rig.run_program("feeder", &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    let planned = rig.run_feeder(&["plan"]).await;
    assert_eq!(planned.code, 0, "{}", planned.output);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_table_without_paths_is_done() {
    let rig = TestRig::new().await;
    rig.execute_sql("ALTER TABLE images ALTER COLUMN path DROP NOT NULL")
        .await;
    for (rows, result) in [
        ("", "the table has no rows"),
        ("(NULL), ('')", "no row has a path"),
        ("('avatar/1')", "every path starts with NEW_PREFIX"),
    ] {
        if !rows.is_empty() {
            rig.execute_sql(&format!("INSERT INTO images (path) VALUES {rows}"))
                .await;
        }
        let ended = rig.run_program("feeder", &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert!(ended.log.contains(result), "{}", ended.log);
        let planned = rig.run_feeder(&["plan"]).await;
        assert_eq!(planned.code, 0, "{}", planned.output);
        assert!(planned.output.contains(result), "{}", planned.output);
    }
}

#[tokio::test]
async fn a_small_sample_that_finds_nothing_says_nothing_of_the_prefix() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let mut canary = rig.spawn("feeder", &[], &["--sample", "0.000001"]);
    assert_eq!(wait_for_exit(&mut canary).await.code, Some(0));
}

#[tokio::test]
async fn a_feeder_that_watches_warns_and_goes_on() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let settings = [("OLD_PREFIX", "/image/"), ("WATCH_INTERVAL", "100ms")];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    wait_until("the warning", async || {
        feeder.log_tail(100).contains("Did you mean 'image/'?")
    })
    .await;
    feeder.terminate().unwrap();
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(3));
    assert_eq!(
        ended.log.matches("Did you mean").count(),
        1,
        "{}",
        ended.log
    );
}

#[tokio::test]
async fn prefixes_that_do_not_fit_each_other_are_told_before_a_row_moves() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    let plan = async |old, new| {
        let settings = [("OLD_PREFIX", old), ("NEW_PREFIX", new)];
        let mut plan = rig.spawn("feeder", &settings, &["plan"]);
        let ended = wait_for_exit(&mut plan).await;
        (ended.code, ended.log)
    };
    let (code, result) = plan("image", "avatar/").await;
    assert_eq!(code, Some(1), "{result}");
    assert!(result.contains("would become 'avatar//"), "{result}");
    let (code, result) = plan("image/", "avatar").await;
    assert_eq!(code, Some(0), "{result}");
    assert!(result.contains("WARN  prefixes"), "{result}");
    assert_eq!(plan("image", "avatar").await.0, Some(0));
    let quoted = [("NEW_PREFIX", "\"avatar/\"")];
    for program in ["feeder", "consumer"] {
        let refused = rig.run_program(program, &quoted).await;
        assert_eq!(refused.code, Some(64), "{}", refused.log);
        assert!(refused.log.contains("NEW_PREFIX: \"avatar/\" is in quotes"));
    }
}

/// They were counted at the start, and were never to move.
#[tokio::test]
async fn rows_that_the_application_changed_unfed_are_not_left_after_a_retry() {
    let rig = TestRig::new().await;
    rig.add_images(4).await;
    rig.add_row("image/missing.png").await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let canary = wait_for_exit(&mut rig.spawn("feeder", &[], &["--limit", "1"])).await;
    assert_eq!(canary.code, Some(0), "{}", canary.log);
    rig.execute_sql("UPDATE bucket_brigade.run SET in_scope = 5; UPDATE images SET path = 'other' WHERE path = 'image/3.png'")
        .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.run_json_command(&["retry", "--yes"]).await.code, 0);
    let status = rig.run_feeder(&["status"]).await.output;
    assert!(status.contains("3 moved of 4"), "{status}");
    stop_consumer(consumer).await;
}
