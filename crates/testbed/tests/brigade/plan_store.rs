//! What a plan says of stores and buckets that are not like S3's usual ones.

use aws_sdk_s3::types::{ObjectOwnership, OwnershipControls, OwnershipControlsRule};
use bucket_brigade_testbed::{Fault, FaultEffect, FaultHandle};

use crate::rig::TestRig;

impl TestRig {
    /// Answers as S3 does for objects that were stored with a key of the customer's.
    pub(crate) fn hide_behind_customer_key(&self, key: &str) -> [FaultHandle; 2] {
        let needs_key = FaultEffect::Error {
            status: 400,
            code: "InvalidRequest".into(),
            message: "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.".into(),
        };
        let wordless = FaultEffect::error(400, "BadRequest");
        [("HeadObject", wordless), ("GetObject", needs_key)].map(|(operation, effect)| {
            let fault = Fault::new(operation, effect).key_contains(key);
            self.cloud.inject_fault(fault)
        })
    }
}

#[tokio::test]
async fn a_store_without_tags_and_conditions_can_be_used() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let not_there = || FaultEffect::error(501, "NotImplemented");
    let _tags = rig
        .cloud
        .inject_fault(Fault::new("GetObjectTagging", not_there()));
    let _conditions = rig
        .cloud
        .inject_fault(Fault::new("CopyObject", not_there()).with_header("if-none-match"));
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    for result in [
        "ok    tags          the store knows none",
        "ok    copy",
        "WARN  condition     the store ignores If-None-Match",
    ] {
        assert!(
            plan.output.contains(result),
            "no '{result}': {}",
            plan.output
        );
    }
    assert!(!plan.output.contains("policies"), "{}", plan.output);
}

#[tokio::test]
async fn objects_with_a_key_of_the_customers_are_named() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let id = rig.add_image("image/secret.png").await;
    let _faults = rig.hide_behind_customer_key("secret");
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    let result = format!("a key of the customer's, SSE-C (ids: {id})");
    assert!(plan.output.contains(&result), "{}", plan.output);
    assert!(!plan.output.contains("kms:Decrypt"), "{}", plan.output);
}

#[tokio::test]
async fn a_bucket_whose_requester_pays_is_no_matter_of_policies() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let _faults: Vec<_> = ["HeadBucket", "ListObjectsV2", "HeadObject"]
        .map(|operation| {
            let denied = FaultEffect::error(403, "AccessDenied");
            let fault = Fault::new(operation, denied).without_header("x-amz-request-payer");
            rig.cloud.inject_fault(fault)
        })
        .into();
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 1, "{}", plan.output);
    assert!(
        plan.output
            .contains("the requester pays for bucket 'images-old'"),
        "{}",
        plan.output
    );
    assert!(!plan.output.contains("s3:ListBucket"), "{}", plan.output);
}

/// Of the application, whose requests are signed with its own key.
#[tokio::test]
async fn a_copy_is_read_back_with_the_application_s_eyes() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let files = tempfile::TempDir::new().unwrap();
    let credentials = files.path().join("credentials");
    let profile = "[web]\naws_access_key_id = application\naws_secret_access_key = secret\n";
    std::fs::write(&credentials, profile).unwrap();
    let files = [("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap())];
    let plan = async |profile: &str| {
        let arguments = ["plan", "--application-profile", profile];
        rig.run_program_with("feeder", &files, &arguments).await
    };
    let readable = plan("web").await;
    assert_eq!(readable.code, Some(0), "{}", readable.log);
    let line = "ok    application   it can read a copy";
    assert!(readable.log.contains(line), "{}", readable.log);
    let denied = FaultEffect::error(403, "AccessDenied");
    let denied = Fault::new("GetObject", denied).caller("application");
    let denied = rig.cloud.inject_fault(denied);
    let unreadable = plan("web").await;
    assert_eq!(unreadable.code, Some(1), "{}", unreadable.log);
    assert_eq!(denied.hits(), 1);
    for words in [
        "FAIL  application   it cannot read a copy (APPLICATION_PROFILE): AccessDenied",
        "s3:GetObject on arn:aws:s3:::images-new/avatar/.bucket-brigade-probe-*",
        "COPY_ACL=bucket-owner-full-control",
    ] {
        assert!(
            unreadable.log.contains(words),
            "{words}: {}",
            unreadable.log
        );
    }
    assert_eq!(rig.cloud.count_objects("images-new"), 0);
    let before = rig.cloud.request_counts().snapshot_by("feeder");
    let bad = plan("nobody").await;
    assert_eq!(bad.code, Some(64), "{}", bad.log);
    let words = "APPLICATION_PROFILE: there is no profile 'nobody', or it has no credentials";
    assert!(bad.log.contains(words), "{}", bad.log);
    let after = rig.cloud.request_counts().snapshot_by("feeder");
    assert_eq!(after, before, "nothing is touched");
}

#[tokio::test]
async fn a_plan_says_to_whom_the_copies_will_belong() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let s3 = rig.cloud.s3_client();
    let owner_of = async |arguments: &[&str]| {
        let plan = rig.run_feeder(&[&["plan"][..], arguments].concat()).await;
        let line = plan.output.lines().find(|line| line.contains("ownership"));
        line.unwrap_or_default().trim().to_owned()
    };
    let owner = owner_of(&[]).await;
    assert!(
        owner.contains("the account that copies (ObjectWriter)"),
        "{owner}"
    );
    for (rule, acl, expected) in [
        (
            ObjectOwnership::BucketOwnerEnforced,
            "",
            "the bucket's owner, and only",
        ),
        (
            ObjectOwnership::BucketOwnerPreferred,
            "",
            "the account that copies",
        ),
        (
            ObjectOwnership::BucketOwnerPreferred,
            "bucket-owner-full-control",
            "the bucket's owner (BucketOwnerPreferred",
        ),
    ] {
        let rule = OwnershipControlsRule::builder().object_ownership(rule);
        let controls = OwnershipControls::builder().rules(rule.build().unwrap());
        let put = s3.put_bucket_ownership_controls().bucket("images-new");
        let put = put.ownership_controls(controls.build().unwrap());
        put.send().await.unwrap();
        let owner = owner_of(&["--copy-acl", acl]).await;
        let expected = format!("ok    ownership     copies will belong to {expected}");
        assert!(owner.starts_with(&expected), "{owner}");
    }
    // As stores that are not S3 answer.
    let unknown = FaultEffect::error(501, "NotImplemented");
    let unknown = Fault::new("GetBucketOwnershipControls", unknown);
    let _unknown = rig.cloud.inject_fault(unknown);
    let owner = owner_of(&[]).await;
    assert!(owner.contains("copies will belong to '"), "{owner}");
}

#[tokio::test]
async fn each_request_of_a_copy_is_counted() {
    let rig = TestRig::new().await;
    rig.add_images(2).await;
    for (settings, requests) in [
        (
            &[("STORAGE_CLASS", "source")][..],
            "4 HeadObject and CopyObject",
        ),
        (&[("COPY_METHOD", "stream")], "4 GetObject and PutObject"),
    ] {
        let plan = rig.run_program_with("feeder", settings, &["plan"]).await;
        assert!(
            plan.log.contains(&format!("requests  {requests}, ")),
            "{}",
            plan.log
        );
    }
    rig.execute_sql("UPDATE images SET path = path || '.gone'")
        .await;
    let stream = [("COPY_METHOD", "stream")];
    let plan = rig.run_program_with("feeder", &stream, &["plan"]).await;
    let requests = "requests  6 GetObjectTagging and GetObject and PutObject";
    assert!(
        plan.log.contains(requests),
        "without an object to copy: {}",
        plan.log
    );
}
