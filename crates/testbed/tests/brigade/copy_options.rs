//! The options of the copies: the feeder's settings are the run, and every copy of it follows them.

use std::time::Duration;

use aws_sdk_s3::types::{Grant, ObjectCannedAcl, StorageClass};
use bucket_brigade_common::ledger::RunOptions;
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};
use crate::stores::CLEAN;

/// None of the run's settings.
const FROM_LEDGER: [(&str, &str); 5] = [
    ("IMAGES_TABLE", "-"),
    ("SOURCE_BUCKET_NAME", "-"),
    ("DESTINATION_BUCKET_NAME", "-"),
    ("OLD_PREFIX", "-"),
    ("NEW_PREFIX", "-"),
];

async fn make_public(rig: &TestRig, key: &str) {
    let s3 = rig.cloud.s3_client();
    let request = s3.put_object_acl().bucket("images-old").key(key);
    let request = request.acl(ObjectCannedAcl::PublicRead);
    request.send().await.unwrap();
}

async fn is_public(rig: &TestRig, key: &str) -> bool {
    let s3 = rig.cloud.s3_client();
    let acl = s3.get_object_acl().bucket("images-new").key(key);
    let acl = acl.send().await.unwrap();
    let is_group = |grant: &Grant| grant.grantee().is_some_and(|to| to.uri().is_some());
    acl.grants().iter().any(is_group)
}

#[tokio::test]
async fn consumers_and_commands_follow_the_feeder_and_nothing_else() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    let consumer = rig.spawn_consumer(&[]);
    let settings = [
        ("COPY_ACL", "public-read"),
        ("STORAGE_CLASS", "STANDARD_IA"),
    ];
    let ended = rig.run_program("feeder", &settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(is_public(&rig, "avatar/1.png").await);
    stop_consumer(consumer).await;
    // Alone, beside the run's name, and beside all that names the run.
    let alone = [&FROM_LEDGER[..], &[("COPY_ACL", "private")]].concat();
    for settings in [&alone[..], &alone[5..]] {
        let ended = rig.run_program("consumer", settings).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        let difference = "COPY_ACL: 'public-read' there, 'private' here";
        assert!(ended.log.contains(difference), "{}", ended.log);
    }
    let verify = rig.run_feeder(&["verify", "--sse", "AES256"]).await;
    assert_eq!(verify.code, 64, "{}", verify.log);
    assert!(verify.log.contains("SSE: not set there"), "{}", verify.log);
    let feeder = rig.run_program("feeder", &[]).await;
    assert_eq!(feeder.code, Some(64), "{}", feeder.log);
    assert!(feeder.log.contains("STORAGE_CLASS"), "{}", feeder.log);
    // A newer copy is as open as the first.
    rig.put_object("images-old", "image/0.png", b"newer").await;
    let verify = rig.run_feeder(&["verify", "--recopy"]).await;
    assert_eq!(verify.code, 0, "{}{}", verify.output, verify.log);
    assert!(is_public(&rig, "avatar/0.png").await);
}

#[tokio::test]
async fn acl_and_class_of_each_source_are_kept() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    let s3 = rig.cloud.s3_client();
    let cold = s3.copy_object().bucket("images-old").key("image/0.png");
    let cold = cold.copy_source("images-old/image/0.png");
    let cold = cold.metadata_directive(aws_sdk_s3::types::MetadataDirective::Replace);
    let cold = cold.storage_class(StorageClass::StandardIa).send().await;
    cold.unwrap();
    make_public(&rig, "image/0.png").await;
    let consumer = rig.spawn_consumer(&[]);
    let settings = [("COPY_ACL", "source"), ("STORAGE_CLASS", "source")];
    let ended = rig.run_program("feeder", &settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert!(is_public(&rig, "avatar/0.png").await);
    assert!(!is_public(&rig, "avatar/1.png").await);
    let head = s3.head_object().bucket("images-new").key("avatar/0.png");
    let class = head.send().await.unwrap().storage_class;
    assert_eq!(class, Some(StorageClass::StandardIa));
}

#[tokio::test]
async fn an_acl_in_a_bucket_without_acls_is_refused_at_the_start() {
    for acl in ["public-read", "source"] {
        let rig = TestRig::new().await;
        rig.add_images(1).await;
        let refusal = FaultEffect::error(400, "AccessControlListNotSupported");
        let _refusals = ["CopyObject", "CreateMultipartUpload"].map(|operation| {
            let refusal = Fault::new(operation, refusal.clone());
            rig.cloud.inject_fault(refusal.with_header("x-amz-acl"))
        });
        let plan = rig.run_feeder(&["plan", "--copy-acl", acl]).await;
        assert!(plan.output.contains("ACLs disabled"), "{}", plan.output);
        let copy_acl = Some(acl.to_owned());
        rig.open_run_with(RunOptions {
            copy_acl,
            ..RunOptions::default()
        })
        .await;
        for conditional_copy in ["auto", "on"] {
            let settings = [("CONDITIONAL_COPY", conditional_copy)];
            let ended = rig.run_program("consumer", &settings).await;
            assert_eq!(ended.code, Some(64), "{}", ended.log);
            assert!(ended.log.contains("COPY_ACL: bucket"), "{}", ended.log);
        }
    }
}

/// As a bucket's policy has it.
#[tokio::test]
async fn a_bucket_that_takes_nothing_without_encryption_is_served() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let writes = ["PutObject", "CopyObject", "CreateMultipartUpload"];
    let _unencrypted = writes.map(|operation| {
        let denied = Fault::new(operation, FaultEffect::error(403, "AccessDenied"));
        let denied = denied.without_header("x-amz-server-side-encryption");
        rig.cloud.inject_fault(denied.key_contains("avatar/"))
    });
    let sse = [("SSE", "AES256")];
    let plan = rig.run_program_with("feeder", &sse, &["plan"]).await;
    assert_eq!(plan.code, Some(0), "{}", plan.log);
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &sse).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 3);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn an_image_comes_back_to_a_bucket_without_acls() {
    let rig = TestRig::new().await;
    let ids = rig.add_images(2).await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let settings = [("COPY_ACL", "public-read"), ("SSE", "AES256")];
    let ended = rig.run_program("feeder", &settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let refusal = FaultEffect::error(400, "AccessControlListNotSupported");
    let refusal = Fault::new("CopyObject", refusal).with_header("x-amz-acl");
    let refusal = rig.cloud.inject_fault(refusal.key_contains("image/"));
    let slow = Fault::new("DeleteObjects", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow);
    let mut clean = rig.spawn_json_command(&CLEAN);
    wait_until("the removal", async || slow.hits() > 0).await;
    rig.set_path(&ids[0], "image/0.png").await;
    let ended = wait_for_exit(&mut clean).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert!(ended.log.contains("brought back"), "{}", ended.log);
    assert!(refusal.hits() > 0 && rig.object_exists("images-old", "image/0.png").await);
    assert!(!rig.object_exists("images-old", "image/1.png").await);
}

#[tokio::test]
async fn every_request_names_the_owner_and_offers_to_pay() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let operations = [
        "CopyObject",
        "HeadBucket",
        "HeadObject",
        "GetObject",
        "PutObject",
        "DeleteObject",
        "DeleteObjects",
    ];
    let refuse = |header, caller: &'static str| {
        operations.map(|operation| {
            let fault = Fault::new(operation, FaultEffect::error(403, "AccessDenied"));
            rig.cloud
                .inject_fault(fault.without_header(header).caller(caller))
        })
    };
    let _consumer = refuse("x-amz-expected-bucket-owner", "consumer");
    let _operator = refuse("x-amz-request-payer", "operator");
    let consumer = rig.spawn_consumer(&FROM_LEDGER);
    let settings = [
        ("EXPECTED_SOURCE_OWNER", "123456789012"),
        ("EXPECTED_DESTINATION_OWNER", "123456789012"),
        ("REQUEST_PAYER", "requester"),
    ];
    let ended = rig.run_program("feeder", &settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    let verify = rig.run_feeder(&["verify"]).await;
    assert_eq!(verify.code, 0, "{}{}", verify.output, verify.log);
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let clean = rig.run_feeder(&clean).await;
    assert_eq!(clean.code, 0, "{}{}", clean.output, clean.log);
}

#[tokio::test]
async fn options_that_cannot_be_are_refused() {
    let rig = TestRig::new().await;
    for (setting, value, word) in [
        ("COPY_METHOD", "carrier-pigeon", "must be one of"),
        ("REQUEST_PAYER", "owner", "must be requester"),
        ("EXPECTED_SOURCE_OWNER", "me", "12 digits"),
        ("STORAGE_CLASS", "DEEP_ARCHIVE", "archive"),
        ("SOURCE_ENDPOINT", "s3.example", "is not the URL"),
        ("ACCEPT_UNCONDITIONAL", "perhaps", "neither true nor false"),
    ] {
        let ended = rig.run_program("feeder", &[(setting, value)]).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        let names_it = ended.log.contains(setting) && ended.log.contains(word);
        assert!(names_it, "{setting}: {}", ended.log);
    }
}
