//! Local S3: conditional and limited copies, multipart copies, counts.

use anyhow::Result;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bucket_brigade_testbed::cloud::{Cloud, CloudOptions};

const MIB: usize = 1 << 20;

async fn with_source(options: CloudOptions, bytes: usize) -> Result<(Cloud, Client)> {
    let cloud = Cloud::start(options)?;
    cloud.create_bucket("old").await?;
    cloud.create_bucket("new").await?;
    let s3 = cloud.s3_client();
    put_object(&s3, "old", "a", &vec![7; bytes]).await?;
    Ok((cloud, s3))
}

async fn put_object(s3: &Client, bucket: &str, key: &str, bytes: &[u8]) -> Result<()> {
    s3.put_object()
        .bucket(bucket)
        .key(key)
        .body(ByteStream::from(bytes.to_vec()))
        .send()
        .await?;
    Ok(())
}

async fn get_object(s3: &Client, key: &str) -> Result<Vec<u8>> {
    let got = s3.get_object().bucket("new").key(key).send().await?;
    Ok(got.body.collect().await?.to_vec())
}

/// Copies only if nothing is there; the error's code otherwise.
async fn copy_object(s3: &Client, key: &str) -> Result<(), String> {
    let copy = s3
        .copy_object()
        .copy_source("old/a")
        .bucket("new")
        .key(key)
        .if_none_match("*");
    match copy.send().await {
        Ok(copied) => copied
            .copy_object_result
            .map(|_| ())
            .ok_or("no result".to_owned()),
        Err(error) => Err(error.code().unwrap_or("no code").to_owned()),
    }
}

#[tokio::test]
async fn a_conditional_copy_leaves_what_is_there() -> Result<()> {
    let (_cloud, s3) = with_source(CloudOptions::default(), 10).await?;
    assert_eq!(copy_object(&s3, "b").await, Ok(()));
    assert_eq!(
        copy_object(&s3, "b").await,
        Err("PreconditionFailed".to_owned())
    );
    put_object(&s3, "new", "c", b"mine").await?;
    assert_eq!(
        copy_object(&s3, "c").await,
        Err("PreconditionFailed".to_owned())
    );
    assert_eq!(get_object(&s3, "c").await?, b"mine");
    Ok(())
}

#[tokio::test]
async fn of_many_conditional_copies_at_once_one_succeeds() -> Result<()> {
    let (_cloud, s3) = with_source(CloudOptions::default(), 10).await?;
    let outcomes = futures::future::join_all((0..20).map(|_| copy_object(&s3, "b"))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    Ok(())
}

#[tokio::test]
async fn an_older_store_ignores_the_condition() -> Result<()> {
    let (_cloud, s3) = with_source(
        CloudOptions {
            conditional_copy: false,
            ..CloudOptions::default()
        },
        10,
    )
    .await?;
    put_object(&s3, "new", "c", b"mine").await?;
    assert_eq!(copy_object(&s3, "c").await, Ok(()));
    assert_eq!(get_object(&s3, "c").await?, [7; 10]);
    Ok(())
}

#[tokio::test]
async fn a_source_above_the_limit_is_not_copied() -> Result<()> {
    let (_cloud, s3) = with_source(
        CloudOptions {
            copy_limit_bytes: 9,
            ..CloudOptions::default()
        },
        10,
    )
    .await?;
    assert_eq!(
        copy_object(&s3, "b").await,
        Err("InvalidRequest".to_owned())
    );
    Ok(())
}

#[tokio::test]
async fn a_multipart_copy_carries_the_given_properties() -> Result<()> {
    let (cloud, s3) = with_source(
        CloudOptions {
            copy_limit_bytes: 9,
            ..CloudOptions::default()
        },
        11 * MIB,
    )
    .await?;
    let upload = s3
        .create_multipart_upload()
        .bucket("new")
        .key("b")
        .content_type("image/png");
    let upload = upload
        .metadata("user", "7")
        .tagging("a=b")
        .send()
        .await?
        .upload_id
        .unwrap();
    let mut parts = Vec::new();
    for (number, range) in (1..).zip([
        "bytes=0-5242879",
        "bytes=5242880-10485759",
        "bytes=10485760-11534335",
    ]) {
        let part = s3
            .upload_part_copy()
            .bucket("new")
            .key("b")
            .upload_id(&upload)
            .part_number(number);
        let part = part
            .copy_source("old/a")
            .copy_source_range(range)
            .send()
            .await?;
        let e_tag = part.copy_part_result.unwrap().e_tag.unwrap();
        parts.push(
            CompletedPart::builder()
                .part_number(number)
                .e_tag(e_tag)
                .build(),
        );
    }
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(parts))
        .build();
    let complete = s3
        .complete_multipart_upload()
        .bucket("new")
        .key("b")
        .upload_id(&upload);
    complete
        .multipart_upload(parts)
        .if_none_match("*")
        .send()
        .await?;

    let head = s3.head_object().bucket("new").key("b").send().await?;
    assert_eq!(
        (head.content_length, head.content_type.as_deref()),
        (Some(11_534_336), Some("image/png"))
    );
    assert_eq!(head.metadata.unwrap()["user"], "7");
    let tags = s3
        .get_object_tagging()
        .bucket("new")
        .key("b")
        .send()
        .await?
        .tag_set;
    assert_eq!((tags[0].key.as_str(), tags[0].value.as_str()), ("a", "b"));
    assert_eq!(cloud.request_counts().count_operation("UploadPartCopy"), 3);
    Ok(())
}

#[tokio::test]
async fn a_multipart_upload_is_completed_only_if_nothing_is_there() -> Result<()> {
    let (_cloud, s3) = with_source(CloudOptions::default(), 10).await?;
    put_object(&s3, "new", "b", b"mine").await?;
    let upload = s3
        .create_multipart_upload()
        .bucket("new")
        .key("b")
        .send()
        .await?
        .upload_id
        .unwrap();
    let part = s3
        .upload_part_copy()
        .bucket("new")
        .key("b")
        .upload_id(&upload)
        .part_number(1);
    let part = part.copy_source("old/a").send().await?;
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(part.copy_part_result.unwrap().e_tag)
        .build();
    let complete = s3
        .complete_multipart_upload()
        .bucket("new")
        .key("b")
        .upload_id(&upload)
        .if_none_match("*");
    let complete =
        complete.multipart_upload(CompletedMultipartUpload::builder().parts(part).build());
    let error = complete.send().await.unwrap_err();
    assert_eq!(error.code(), Some("PreconditionFailed"));
    s3.abort_multipart_upload()
        .bucket("new")
        .key("b")
        .upload_id(&upload)
        .send()
        .await?;
    assert_eq!(get_object(&s3, "b").await?, b"mine");
    Ok(())
}

#[tokio::test]
async fn requests_are_counted_by_caller_and_operation() -> Result<()> {
    let (cloud, s3) = with_source(CloudOptions::default(), 10).await?;
    let consumer = cloud.s3_client_for("consumer");
    copy_object(&consumer, "b").await.unwrap();
    consumer.head_object().bucket("new").key("b").send().await?;
    consumer.head_bucket().bucket("new").send().await?;
    s3.list_objects_v2().bucket("new").send().await?;
    s3.delete_object().bucket("new").key("b").send().await?;
    cloud.sqs_client().list_queues().send().await?;
    let requests = cloud.request_counts();
    assert_eq!(requests.count_operation_by("consumer", "CopyObject"), 1);
    assert_eq!(requests.count_operation_by("test", "CopyObject"), 0);
    assert_eq!(
        (requests.total_sqs(), requests.total_sqs_by(&["consumer"])),
        (1, 0)
    );
    let counts: Vec<(String, u64)> = requests.snapshot().into_iter().collect();
    let expected = [
        ("CopyObject", 1),
        ("CreateBucket", 2),
        ("DeleteObject", 1),
        ("HeadBucket", 1),
        ("HeadObject", 1),
        ("ListObjectsV2", 1),
        ("ListQueues", 1),
        ("PutObject", 1),
    ];
    assert_eq!(
        counts,
        expected.map(|(name, count)| (name.to_owned(), count))
    );
    Ok(())
}
