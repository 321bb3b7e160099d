//! What a plan says of stores and buckets that are not like S3's usual ones.

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
