//! `feeder plan`: what it prints, and that it changes nothing.

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use crate::rig::{ExitedProcess, TestRig, stop_consumer, wait_for_exit};
use crate::transcript::assert_runbook_output;

#[tokio::test]
async fn a_plan_changes_nothing_and_estimates_the_run() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    rig.add_row("avatar/moved.png").await;
    rig.add_row("elsewhere/x.png").await;
    rig.add_row("").await;
    let result = rig.run_feeder(&["plan"]).await;
    assert_eq!(result.code, 0, "{}\n{}", result.output, result.log);
    assert!(result.log.contains("one probe object of"), "{}", result.log);
    assert_runbook_output("plan", "feeder plan", &result.output);
    let plan = rig.feeder_json(&["plan", "--json"]).await;
    assert_eq!(plan["rows"]["in_scope"], 30);
    assert_eq!(plan["rows"]["moved_already"], 1);
    assert_eq!(plan["rows"]["outside"], 1);
    assert_eq!(plan["rows"]["without_path"], 1);
    assert_eq!(plan["samples"].as_array().unwrap().len(), 5);
    assert_eq!(plan["estimate"]["copy_requests"], 30);
    assert_eq!(
        rig.query_number("SELECT count(*) FROM pg_namespace WHERE nspname = 'bucket_brigade'")
            .await,
        0
    );
    assert_eq!(
        (
            rig.queued_messages().await,
            rig.cloud.count_objects("images-new")
        ),
        (0, 0)
    );
}

#[tokio::test]
async fn a_plan_names_what_would_fail_and_how_to_mend_it() {
    let queue = CreateQueueOptions {
        max_receive_count: None,
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), queue).await;
    rig.add_images(3).await;
    rig.add_row("image/missing.png").await;
    rig.execute_sql("CREATE INDEX images_path_idx ON images (path)")
        .await;
    let denied = FaultEffect::error(403, "AccessDenied");
    let _denied = rig.cloud.inject_fault(Fault::new("CopyObject", denied));
    let result = rig.run_feeder(&["plan"]).await;
    assert_eq!(result.code, 1, "{}\n{}", result.output, result.log);
    for (what, mend) in [
        ("FAIL  redrive", "give it a dead-letter queue"),
        ("FAIL  copy", "s3:PutObject and s3:PutObjectTagging"),
        ("WARN  sources", "NoSuchKey"),
        ("WARN  indexes", "images_path_idx"),
    ] {
        assert!(result.output.contains(what), "{what}: {}", result.output);
        assert!(result.output.contains(mend), "{mend}: {}", result.output);
    }
    let nowhere = rig.run_feeder(&["plan", "--images-table", "imags"]).await;
    assert_eq!(nowhere.code, 1);
    assert!(
        nowhere
            .output
            .contains("there is no table 'imags' (did you mean public.images?)"),
        "{}",
        nowhere.output
    );
}

#[tokio::test]
async fn a_plan_names_the_feeders_own_settings_that_it_would_refuse() {
    let rig = TestRig::new().await;
    rig.execute_sql(
        "CREATE TABLE pictures (id uuid PRIMARY KEY, path text);
         INSERT INTO pictures VALUES (gen_random_uuid(), 'image/0.png')",
    )
    .await;
    let refused = [
        ("IMAGES_TABLE", "pictures"),
        ("FEED_ORDER", "spread"),
        ("THROTTLE_QUERY", "SELECT busy FROM nowhere"),
    ];
    let ended = plan_with(&rig, &refused).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for finding in ["FEED_ORDER: spread divides", "THROTTLE_QUERY: the database"] {
        let finding = format!("FAIL  settings      {finding}");
        assert!(ended.log.contains(&finding), "{finding}: {}", ended.log);
    }
    let zone = ("FEED_WINDOW", "22:00-06:00 Europe/Nowhere");
    let ended = plan_with(&rig, &[zone]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(
        ended
            .log
            .contains("FAIL  settings      FEED_WINDOW: the database"),
        "{}",
        ended.log
    );
    let unreadable = [("MAX_BACKLOG", "many"), ("NOTIFY_URL", "nowhere")];
    let ended = plan_with(&rig, &unreadable).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    for (setting, _) in unreadable {
        assert!(ended.log.contains(setting), "{}", ended.log);
    }
}

async fn plan_with(rig: &TestRig, settings: &[(&str, &str)]) -> ExitedProcess {
    wait_for_exit(&mut rig.spawn("feeder", settings, &["plan"])).await
}

#[tokio::test]
async fn a_plan_looks_for_companions() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    for key in [
        "image/0@2x.png",
        "image/1@2x.png",
        "image/2@2x.png",
        "image/2.json",
    ] {
        rig.put_object("images-old", key, b"a companion").await;
    }
    let patterns = "!{stem}@2x.{ext}, !{stem}.json, {key}.webp";
    let ended = plan_with(&rig, &[("COMPANIONS", patterns)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    for finding in [
        "ok    companions    3 of 3 images have '{stem}@2x.{ext}'",
        "WARN  companions    1 of 3 images have '{stem}.json'",
        "WARN  companions    0 of 3 images have '{key}.webp'",
    ] {
        assert!(ended.log.contains(finding), "{finding}: {}", ended.log);
    }
    let ended = plan_with(&rig, &[("COMPANIONS", "!{key}.webp")]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    // What was not looked at is not missing.
    let ended = plan_with(&rig, &[("DESTINATION_BUCKET_NAME", "nowhere")]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(!ended.log.contains("no object"), "{}", ended.log);
}

/// What a run has left are no sample of what a first one would meet.
#[tokio::test]
async fn a_plan_of_a_run_that_has_failures_left_blames_no_setting() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.add_row("image/missing.png").await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    stop_consumer(consumer).await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    let expected = "all that are left have failed";
    assert!(plan.output.contains(expected), "{}", plan.output);
}
