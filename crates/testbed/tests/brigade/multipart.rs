//! Objects above the limit of one CopyObject: the store's own limit, made small.

use aws_sdk_s3::primitives::ByteStream;
use bucket_brigade_common::object_store::s3::{CopyLimits, S3Options, S3Store};
use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use crate::rig::{TestRig, image_properties, location, sha256};

/// S3's smallest part.
const PART: u64 = 5 << 20;

async fn large() -> (TestRig, S3Store, MoveRoute, Vec<u8>) {
    let options = CloudOptions {
        copy_limit_bytes: PART,
        ..CloudOptions::default()
    };
    let rig = TestRig::with_options(options, CreateQueueOptions::default()).await;
    let bytes: Vec<u8> = (0..PART * 2 + 12_345)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let at = location("images-old", "image/large +.png");
    rig.application
        .put_object(&at, bytes.clone(), &image_properties())
        .await
        .unwrap();
    let options = S3Options {
        limits: CopyLimits {
            single_bytes: PART,
            part_bytes: PART,
        },
        ..S3Options::default()
    };
    let store = rig.store(options).await;
    let rule = PathRule::new("image/", "avatar/", None, None).unwrap();
    let route = rule.route_for("image/large +.png").unwrap();
    (rig, store, route, bytes)
}

#[tokio::test]
async fn the_parts_make_the_same_object() {
    let (rig, store, route, bytes) = large().await;
    assert!(matches!(
        store.copy(&route).await,
        Err(StoreError::TooLarge)
    ));
    let copied = store.copy_multipart(&route).await.unwrap();
    assert_eq!(copied.size_bytes, Some(i64::try_from(bytes.len()).unwrap()));
    let at = location("images-new", "avatar/large +.png");
    let object = rig
        .application
        .get_tagged_object(&at)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(object.sha256, sha256(&bytes));
    assert_eq!(object.properties, image_properties());
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "UploadPartCopy"),
        3
    );
    // Its ETag is not the source's, and yet it is recognised by its bytes.
    assert!(matches!(
        store.compare_objects(&route).await.unwrap(),
        DestinationState::Same(_)
    ));
}

#[tokio::test]
async fn an_object_that_appears_meanwhile_is_not_overwritten() {
    let (rig, store, route, _) = large().await;
    rig.put_object("images-new", "avatar/large +.png", b"a stranger's")
        .await;
    assert!(matches!(
        store.copy_multipart(&route).await,
        Err(StoreError::DestinationExists)
    ));
    assert_eq!(
        rig.destination_sha256("avatar/large +.png").await.unwrap(),
        sha256(b"a stranger's")
    );
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "AbortMultipartUpload"),
        1
    );
}

#[tokio::test]
async fn a_refusal_by_condition_counts_only_where_something_stands() {
    let (rig, store, route, _) = large().await;
    let refusal = FaultEffect::error(412, "PreconditionFailed");
    let refusal = Fault::new("CompleteMultipartUpload", refusal);
    let _refusal = rig.cloud.inject_fault(refusal);
    let error = store.copy_multipart(&route).await.unwrap_err();
    assert_eq!(error.code(), "DestinationVanished", "{error}");
}

#[tokio::test]
async fn a_failed_part_leaves_nothing_behind() {
    let (rig, store, route, _) = large().await;
    let fault = rig.cloud.inject_fault(Fault::new(
        "UploadPartCopy",
        FaultEffect::error(500, "InternalError"),
    ));
    assert!(matches!(
        store.copy_multipart(&route).await,
        Err(StoreError::Transient { .. })
    ));
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "AbortMultipartUpload"),
        1
    );
    assert!(rig.destination_sha256("avatar/large +.png").await.is_none());
    fault.remove();
    store.copy_multipart(&route).await.unwrap();
}

#[tokio::test]
async fn a_part_that_fails_is_copied_again_and_the_others_are_kept() {
    let (rig, store, route, bytes) = large().await;
    let _faults = [(500, "InternalError"), (503, "SlowDown")].map(|(status, code)| {
        let effect = FaultEffect::error(status, code);
        rig.cloud
            .inject_fault(Fault::new("UploadPartCopy", effect).times(1))
    });
    store.copy_multipart(&route).await.unwrap();
    let counts = rig.cloud.request_counts();
    let count = |operation| counts.count_operation_by("consumer", operation);
    assert_eq!(
        (count("CreateMultipartUpload"), count("UploadPartCopy")),
        (1, 5)
    );
    let copy = rig.destination_sha256("avatar/large +.png").await;
    assert_eq!(copy.unwrap(), sha256(&bytes));
}

#[tokio::test]
async fn an_upload_in_parts_of_the_applications_own_is_copied_whole() {
    let (rig, store, _, bytes) = large().await;
    // A source that was itself uploaded in parts has an ETag that no copy shares.
    let s3 = &rig.application.s3;
    let small = PathRule::new("image/", "avatar/", None, None)
        .unwrap()
        .route_for("image/parts.png")
        .unwrap();
    let upload = s3
        .create_multipart_upload()
        .bucket("images-old")
        .key("image/parts.png")
        .send()
        .await
        .unwrap();
    let id = upload.upload_id().unwrap();
    let part = s3
        .upload_part()
        .bucket("images-old")
        .key("image/parts.png")
        .upload_id(id)
        .part_number(1);
    let part = part
        .body(ByteStream::from(bytes[..1000].to_vec()))
        .send()
        .await
        .unwrap();
    let part = aws_sdk_s3::types::CompletedPart::builder()
        .part_number(1)
        .e_tag(part.e_tag().unwrap())
        .build();
    let parts = aws_sdk_s3::types::CompletedMultipartUpload::builder()
        .parts(part)
        .build();
    let complete = s3
        .complete_multipart_upload()
        .bucket("images-old")
        .key("image/parts.png")
        .upload_id(id);
    complete.multipart_upload(parts).send().await.unwrap();
    store.copy(&small).await.unwrap();
    assert!(matches!(
        store.compare_objects(&small).await.unwrap(),
        DestinationState::Same(_)
    ));
}
