//! Settings, queues and buckets that cannot be used: reported by name, nothing touched.

use std::path::Path;

use bucket_brigade_common::ledger::RunOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_until};

const EMPTY_SETTINGS: [(&str, &str); 7] = [
    ("DATABASE_URL", "-"),
    ("IMAGES_TABLE", "-"),
    ("QUEUE_URL", "-"),
    ("SOURCE_BUCKET_NAME", "-"),
    ("DESTINATION_BUCKET_NAME", "-"),
    ("OLD_PREFIX", "-"),
    ("NEW_PREFIX", "-"),
];

/// Runs both programs with these settings changed and expects this exit code and these words.
async fn assert_refused(rig: &TestRig, more: &[(&str, &str)], code: i32, words: &[&str]) {
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, more).await;
        assert_eq!(ended.code, Some(code), "{program}: {}", ended.log);
        for word in words {
            assert!(
                ended.log.contains(word),
                "{program}: no '{word}' in:\n{}",
                ended.log
            );
        }
    }
    assert_eq!(
        rig.query_number("SELECT count(*) FROM pg_namespace WHERE nspname = 'bucket_brigade'")
            .await,
        0
    );
}

#[tokio::test]
async fn missing_settings_are_reported_together() {
    let rig = TestRig::new().await;
    // A run of which one setting is given must be given whole; without any the ledger has it.
    let mut partial = EMPTY_SETTINGS;
    partial[6].1 = "avatar/";
    let names: Vec<&str> = EMPTY_SETTINGS[..6].iter().map(|(name, _)| *name).collect();
    assert_refused(&rig, &partial, 64, &names).await;
    let ended = rig.run_program("feeder", &EMPTY_SETTINGS).await;
    assert!(
        ended.log.contains("NEW_PREFIX: is missing"),
        "{}",
        ended.log
    );
    let ended = rig.run_program("consumer", &EMPTY_SETTINGS).await;
    assert_eq!(ended.code, Some(64));
    assert!(!ended.log.contains("NEW_PREFIX"), "{}", ended.log);
}

#[tokio::test]
async fn malformed_settings_are_reported_together() {
    let rig = TestRig::new().await;
    let common = [
        ("DATABASE_URL", "mysql://app@db/app"),
        ("IMAGES_TABLE", "a.b.c"),
        ("QUEUE_URL", "images"),
        ("SOURCE_BUCKET_NAME", "s3://images-old"),
        ("S3_FORCE_PATH_STYLE", "perhaps"),
        ("LOG_FORMAT", "xml"),
        ("NEW_PREFIX", "image/v2/"),
    ];
    let names = [
        "DATABASE_URL",
        "IMAGES_TABLE",
        "QUEUE_URL",
        "SOURCE_BUCKET_NAME",
        "S3_FORCE_PATH_STYLE",
        "LOG_FORMAT",
        "still match the old prefix",
    ];
    assert_refused(&rig, &common, 64, &names).await;
    let feeder = rig
        .run_program("feeder", &[("PAGE_SIZE", "0"), ("MAX_BACKLOG", "lots")])
        .await;
    assert!(
        feeder.log.contains("PAGE_SIZE: '0'") && feeder.log.contains("MAX_BACKLOG: 'lots'"),
        "{}",
        feeder.log
    );
    let bad = [
        ("MAX_CONCURRENCY", "-1"),
        ("VISIBILITY_TIMEOUT", "13h"),
        ("SHUTDOWN_GRACE", "soon"),
        ("STORAGE_CLASS", "GLACIER"),
        ("CONDITIONAL_COPY", "maybe"),
    ];
    let consumer = rig.run_program("consumer", &bad).await;
    assert_eq!(consumer.code, Some(64));
    for (name, value) in bad {
        assert!(
            consumer.log.contains(&format!("{name}: '{value}'")),
            "{name}: {}",
            consumer.log
        );
    }
}

#[tokio::test]
async fn a_password_is_never_printed() {
    let rig = TestRig::new().await;
    let url = "postgres://app:s3cr3t-word@127.0.0.1:1/app";
    for program in ["feeder", "consumer"] {
        let ended = rig
            .run_program(program, &[("DATABASE_URL", url), ("RUST_LOG", "trace")])
            .await;
        assert_eq!(ended.code, Some(69), "{}", ended.log);
        assert!(
            ended.log.contains("cannot connect to the database"),
            "{}",
            ended.log
        );
        assert!(!ended.log.contains("s3cr3t-word"), "{}", ended.log);
    }
}

#[tokio::test]
async fn an_unknown_flag_is_a_wrong_setting() {
    let rig = TestRig::new().await;
    for program in ["feeder", "consumer"] {
        let mut process = rig.spawn(program, &[], &["--no-such-flag"]);
        assert_eq!(crate::rig::wait_for_exit(&mut process).await.code, Some(64));
    }
}

#[tokio::test]
async fn moving_onto_itself_is_refused() {
    let rig = TestRig::new().await;
    let same = [
        ("DESTINATION_BUCKET_NAME", "images-old"),
        ("SOURCE_KEY_PREFIX", "x/"),
        ("DESTINATION_KEY_PREFIX", "x/"),
    ];
    assert_refused(&rig, &same, 64, &["source and destination are identical"]).await;
}

#[tokio::test]
async fn a_fifo_queue_is_explained() {
    let fifo = CreateQueueOptions {
        fifo: true,
        max_receive_count: None,
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), fifo).await;
    assert_refused(&rig, &[], 64, &["QUEUE_URL", "standard queue is needed"]).await;
}

#[tokio::test]
async fn a_queue_that_is_not_there() {
    let rig = TestRig::new().await;
    let url = rig.queue.url.replace("images", "imagine");
    assert_refused(
        &rig,
        &[("QUEUE_URL", &url)],
        64,
        &["QUEUE_URL", "there is no queue", "imagine"],
    )
    .await;
}

#[tokio::test]
async fn a_queue_that_is_not_ours_to_use() {
    let rig = TestRig::new().await;
    let _fault = rig.cloud.inject_fault(Fault::new(
        "GetQueueAttributes",
        FaultEffect::error(403, "AccessDeniedException"),
    ));
    assert_refused(&rig, &[], 77, &["QUEUE_URL", "sqs:GetQueueAttributes"]).await;
}

#[tokio::test]
async fn a_queue_whose_messages_are_not_ours_to_delete() {
    let rig = TestRig::new().await;
    let denied = FaultEffect::error(403, "AccessDeniedException");
    let denied = Fault::new("DeleteMessage", denied);
    let _fault = rig.cloud.inject_fault(denied);
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(ended.log.contains("sqs:DeleteMessage"), "{}", ended.log);
}

#[tokio::test]
async fn buckets_that_are_not_there() {
    let rig = TestRig::new().await;
    for setting in ["SOURCE_BUCKET_NAME", "DESTINATION_BUCKET_NAME"] {
        assert_refused(
            &rig,
            &[(setting, "no-such-bucket")],
            64,
            &[setting, "there is no bucket 'no-such-bucket'"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_ours_to_use() {
    let rig = TestRig::new().await;
    let denied = Fault::new("HeadBucket", FaultEffect::error(403, "AccessDenied"));
    let _fault = rig.cloud.inject_fault(denied);
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(
        ended.log.contains("SOURCE_BUCKET_NAME") && ended.log.contains("s3:ListBucket"),
        "{}",
        ended.log
    );
    // A HEAD has no body that could say more.
    let code = "SignatureDoesNotMatch";
    let wrong = Fault::new("ListObjectsV2", FaultEffect::error(403, code));
    let _wrong = rig.cloud.inject_fault(wrong);
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(ended.log.contains(code), "{}", ended.log);
}

#[tokio::test]
async fn a_destination_that_cannot_be_written() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let _fault = rig.cloud.inject_fault(
        Fault::new("PutObject", FaultEffect::error(403, "AccessDenied")).caller("consumer"),
    );
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(
        ended.log.contains("cannot write to bucket 'images-new'"),
        "{}",
        ended.log
    );
}

#[tokio::test]
async fn buckets_that_nothing_can_be_copied_to() {
    let rig = TestRig::new().await;
    for setting in ["SOURCE_BUCKET_NAME", "DESTINATION_BUCKET_NAME"] {
        let settings = [(setting, "images--use1-az1--x-s3")];
        let ended = rig.run_program("consumer", &settings).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        let is_named = ended.log.contains(setting) && ended.log.contains("directory buckets");
        assert!(is_named, "{}", ended.log);
    }
}

#[tokio::test]
async fn a_storage_class_that_the_store_does_not_know() {
    let rig = TestRig::new().await;
    rig.open_run_with(RunOptions {
        storage_class: Some("STANDARD_IA".into()),
        ..RunOptions::default()
    })
    .await;
    let refusal = FaultEffect::error(400, "InvalidStorageClass");
    let _fault = rig.cloud.inject_fault(Fault::new("CopyObject", refusal));
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(ended.log.contains("STORAGE_CLASS"), "{}", ended.log);
}

#[tokio::test]
async fn a_queue_without_a_redrive_policy_is_warned_of() {
    let circling = CreateQueueOptions {
        max_receive_count: None,
        ..CreateQueueOptions::default()
    };
    let rig = TestRig::with_options(CloudOptions::default(), circling).await;
    let id = rig.add_row("image/missing.png").await;
    let consumer = rig.spawn_consumer(&[]);
    // It cannot move, and its message circles; the feeder ends all the same.
    let feeder = rig.run_program("feeder", &[]);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(80), feeder)
        .await
        .unwrap();
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert!(ended.log.contains("no redrive policy"), "{}", ended.log);
    wait_until("the failure", async || {
        rig.failure_code(&id).await.is_some()
    })
    .await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn missing_credentials_are_not_mistaken_for_missing_rights() {
    let rig = TestRig::new().await;
    let none = [
        ("AWS_ACCESS_KEY_ID", "-"),
        ("AWS_SECRET_ACCESS_KEY", "-"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
    ];
    assert_refused(
        &rig,
        &none,
        64,
        &["AWS_ACCESS_KEY_ID", "no request can be sent"],
    )
    .await;
}

/// Settings of a process whose credentials come from a command, which fails so many times first.
fn credentials_from_command(folder: &Path, failures: u32) -> Vec<(&'static str, String)> {
    let command = folder.join("credentials.sh");
    let script = format!(
        r#"echo >> {tries}; [ $(wc -l < {tries}) -gt {failures} ] || {{ echo "the token is refused" >&2; exit 1; }}
echo '{{"Version":1,"AccessKeyId":"consumer","SecretAccessKey":"test"}}'"#,
        tries = folder.join("tries").display()
    );
    std::fs::write(&command, script).unwrap();
    let config = folder.join("config");
    let profile = format!("[default]\ncredential_process = sh {}\n", command.display());
    std::fs::write(&config, profile).unwrap();
    vec![
        ("AWS_ACCESS_KEY_ID", "-".into()),
        ("AWS_SECRET_ACCESS_KEY", "-".into()),
        ("AWS_CONFIG_FILE", config.display().to_string()),
    ]
}

#[tokio::test]
async fn credentials_that_do_not_come_are_an_outage() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = credentials_from_command(folder.path(), u32::MAX);
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, &settings).await;
        assert_eq!(ended.code, Some(69), "{program}: {}", ended.log);
    }
    // A failure that is soon over is not even noticed.
    let folder = tempfile::tempdir().unwrap();
    let settings = credentials_from_command(folder.path(), 2);
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let id = rig.add_image("image/a.png").await;
    rig.feed_row(&id, "image/a.png").await;
    let consumer = rig.spawn_consumer(&settings);
    wait_until("the image", async || rig.count_rows("moves").await == 1).await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_missing_region_is_reported() {
    let rig = TestRig::new().await;
    let none = [
        ("AWS_REGION", "-"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
    ];
    assert_refused(&rig, &none, 64, &["AWS_REGION", "no request can be sent"]).await;
    let empty = [("AWS_REGION", "")];
    assert_refused(&rig, &empty, 64, &["AWS_REGION", "no request can be sent"]).await;
}
