//! `feeder plan`: what it prints, and that it changes nothing.

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use crate::rig::TestRig;
use crate::transcript::assert_runbook_output;

#[tokio::test]
async fn a_plan_changes_nothing_and_estimates_the_run() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    rig.add_row("avatar/moved.png").await;
    rig.add_row("elsewhere/x.png").await;
    let result = rig.run_feeder(&["plan"]).await;
    assert_eq!(result.code, 0, "{}\n{}", result.output, result.log);
    assert!(result.log.contains("one probe object of"), "{}", result.log);
    assert_runbook_output("plan", "feeder plan", &result.output);
    let plan = rig.feeder_json(&["plan", "--json"]).await;
    assert_eq!(plan["rows"]["in_scope"], 30);
    assert_eq!(plan["rows"]["moved_already"], 1);
    assert_eq!(plan["rows"]["outside"], 1);
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
    assert_runbook_output("plan-fails", "feeder plan", &result.output);
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
