//! `feeder plan`: what it tells, and that it changes nothing.

use bucket_brigade_testbed::cloud::CreateQueue;
use bucket_brigade_testbed::{Effect, Fault, Options};

use crate::rig::Rig;
use crate::transcript::shown;

#[tokio::test]
async fn a_plan_changes_nothing_and_tells_what_it_takes() {
    let rig = Rig::new().await;
    rig.images(30).await;
    rig.row("avatar/moved.png").await;
    rig.row("elsewhere/x.png").await;
    let told = rig.feeder(&["plan"]).await;
    assert_eq!(told.code, 0, "{}\n{}", told.answer, told.log);
    assert!(told.log.contains("one probe object of"), "{}", told.log);
    shown("plan", "feeder plan", &told.answer);
    let plan = rig.told(&["plan", "--json"]).await;
    assert_eq!(plan["rows"]["in_scope"], 30);
    assert_eq!(plan["rows"]["moved_already"], 1);
    assert_eq!(plan["rows"]["outside"], 1);
    assert_eq!(plan["samples"].as_array().unwrap().len(), 5);
    assert_eq!(plan["estimate"]["copy_requests"], 30);
    assert_eq!(
        rig.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'bucket_brigade'")
            .await,
        0
    );
    assert_eq!(
        (rig.queued().await, rig.cloud.objects_in("images-new")),
        (0, 0)
    );
}

#[tokio::test]
async fn a_plan_names_what_would_fail_and_how_to_mend_it() {
    let queue = CreateQueue {
        max_receive_count: None,
        ..CreateQueue::default()
    };
    let rig = Rig::with(Options::default(), queue).await;
    rig.images(3).await;
    rig.row("image/missing.png").await;
    rig.sql("CREATE INDEX images_path_idx ON images (path)")
        .await;
    let denied = Effect::error(403, "AccessDenied");
    let _denied = rig.cloud.inject(Fault::new("CopyObject", denied));
    let told = rig.feeder(&["plan"]).await;
    assert_eq!(told.code, 1, "{}\n{}", told.answer, told.log);
    shown("plan-fails", "feeder plan", &told.answer);
    for (what, mend) in [
        ("FAIL  redrive", "give it a dead-letter queue"),
        ("FAIL  copy", "s3:PutObject and s3:PutObjectTagging"),
        ("WARN  sources", "NoSuchKey"),
        ("WARN  indexes", "images_path_idx"),
    ] {
        assert!(told.answer.contains(what), "{what}: {}", told.answer);
        assert!(told.answer.contains(mend), "{mend}: {}", told.answer);
    }
    let nowhere = rig.feeder(&["plan", "--images-table", "imags"]).await;
    assert_eq!(nowhere.code, 1);
    assert!(
        nowhere.answer.contains("there is no table 'imags'"),
        "{}",
        nowhere.answer
    );
}
