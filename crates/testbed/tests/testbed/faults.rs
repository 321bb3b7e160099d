//! Every fault, seen by a client that does not retry.

use std::time::{Duration, Instant};

use anyhow::Result;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::copy_object::CopyObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use bucket_brigade_testbed::cloud::{Cloud, CloudOptions, CreateQueueOptions, Fault, FaultEffect};

struct FaultFixture {
    cloud: Cloud,
    s3: aws_sdk_s3::Client,
    sqs: aws_sdk_sqs::Client,
}

impl FaultFixture {
    async fn new() -> Result<Self> {
        let cloud = Cloud::start(CloudOptions::default())?;
        cloud.create_bucket("box").await?;
        let once = aws_sdk_s3::config::retry::RetryConfig::disabled();
        let s3 = cloud
            .s3_client()
            .config()
            .to_builder()
            .retry_config(once.clone())
            .build();
        let sqs = cloud
            .sqs_client()
            .config()
            .to_builder()
            .retry_config(once)
            .build();
        let (s3, sqs) = (
            aws_sdk_s3::Client::from_conf(s3),
            aws_sdk_sqs::Client::from_conf(sqs),
        );
        s3.put_object()
            .bucket("box")
            .key("a")
            .body(ByteStream::from_static(b"bytes"))
            .send()
            .await?;
        Ok(Self { cloud, s3, sqs })
    }

    /// Copies `a` to `key` under the fault: the answer, or the error's code, which is empty when
    /// there was no whole answer.
    async fn copy(&self, key: &str, effect: FaultEffect) -> Result<CopyObjectOutput, String> {
        let fault = self.cloud.inject_fault(Fault::new("CopyObject", effect));
        let outcome = self
            .s3
            .copy_object()
            .copy_source("box/a")
            .bucket("box")
            .key(key)
            .send()
            .await;
        assert_eq!(fault.hits(), 1);
        outcome.map_err(|error| error.code().unwrap_or_default().to_owned())
    }

    async fn exists(&self, key: &str) -> bool {
        self.s3
            .head_object()
            .bucket("box")
            .key(key)
            .send()
            .await
            .is_ok()
    }
}

#[tokio::test]
async fn errors_before_and_after_the_effect() -> Result<()> {
    let bench = FaultFixture::new().await?;
    assert_eq!(
        bench
            .copy("x", FaultEffect::error(503, "SlowDown"))
            .await
            .unwrap_err(),
        "SlowDown"
    );
    assert!(!bench.exists("x").await);
    let after = FaultEffect::ErrorAfterEffect {
        status: 500,
        code: "InternalError".into(),
        message: "oh".into(),
    };
    assert_eq!(bench.copy("y", after).await.unwrap_err(), "InternalError");
    assert!(bench.exists("y").await);
    Ok(())
}

#[tokio::test]
async fn successes_that_are_none() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let ok_with_error = FaultEffect::OkWithError {
        code: "InternalError".into(),
    };
    assert_eq!(
        bench.copy("x", ok_with_error).await.unwrap_err(),
        "InternalError"
    );
    let empty = bench
        .copy("y", FaultEffect::EmptyOk)
        .await
        .expect("a success without a result");
    assert_eq!(empty.copy_object_result, None);
    assert!(!bench.exists("x").await && !bench.exists("y").await);
    Ok(())
}

#[tokio::test]
async fn connections_that_end_early() -> Result<()> {
    let bench = FaultFixture::new().await?;
    assert_eq!(bench.copy("x", FaultEffect::Reset).await.unwrap_err(), "");
    assert!(!bench.exists("x").await);
    assert_eq!(
        bench
            .copy("y", FaultEffect::ResetAfterEffect)
            .await
            .unwrap_err(),
        ""
    );
    assert!(bench.exists("y").await);
    assert_eq!(
        bench
            .copy("z", FaultEffect::TruncatedBody)
            .await
            .unwrap_err(),
        ""
    );
    assert!(bench.exists("z").await);
    Ok(())
}

#[tokio::test]
async fn delays() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let begun = Instant::now();
    bench
        .copy("x", FaultEffect::Delay(Duration::from_millis(200)))
        .await
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    Ok(())
}

#[tokio::test]
async fn a_slow_copy_outlives_its_caller() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let slow = FaultEffect::Slow(Duration::from_millis(300));
    let copy = bench.copy("x", slow);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), copy)
            .await
            .is_err()
    );
    while !bench.exists("x").await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_late_answer_comes_after_the_effect() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let copy = bench.copy("x", FaultEffect::DelayedResponse(Duration::from_mins(10)));
    tokio::select! {
        _ = copy => panic!("it was answered"),
        () = async { while !bench.exists("x").await {} } => {}
    }
    Ok(())
}

#[tokio::test]
async fn batches_of_which_a_part_fails() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let queue = bench.cloud.create_queue("q", CreateQueueOptions::default());
    let url = queue.await?.url;
    let send = async |ids: &[&str]| -> Result<(usize, Vec<String>)> {
        let entry = |id: &&str| Entry::builder().id(*id).message_body("a").build().unwrap();
        let entries = ids.iter().map(entry).collect();
        let send = bench.sqs.send_message_batch().queue_url(&url);
        let sent = send.set_entries(Some(entries)).send().await?;
        let failed = sent.failed.into_iter().map(|entry| entry.id).collect();
        Ok((sent.successful.len(), failed))
    };
    let effect = FaultEffect::FailSomeEntries {
        code: "InternalError".into(),
        sender_fault: false,
    };
    let _fault = bench
        .cloud
        .inject_fault(Fault::new("SendMessageBatch", effect));
    assert_eq!(
        send(&["1", "2", "3"]).await?,
        (1, vec!["1".into(), "3".into()])
    );
    assert_eq!(send(&["4"]).await?, (0, vec!["4".into()]));
    assert_eq!(bench.cloud.queue_depth(&url).await?.total(), 1);
    Ok(())
}

#[tokio::test]
async fn errors_and_failed_entries_of_sqs() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let url = bench
        .cloud
        .create_queue("q", CreateQueueOptions::default())
        .await?
        .url;
    let entries = ["1", "2"].map(|id| {
        Entry::builder()
            .id(id)
            .message_body("image/a")
            .build()
            .unwrap()
    });
    let send = bench
        .sqs
        .send_message_batch()
        .queue_url(&url)
        .set_entries(Some(entries.to_vec()));

    let fault = Fault::new(
        "SendMessageBatch",
        FaultEffect::error(403, "RequestThrottled"),
    )
    .times(1);
    let handle = bench.cloud.inject_fault(fault);
    assert_eq!(
        send.clone().send().await.unwrap_err().code(),
        Some("RequestThrottled")
    );
    handle.remove();

    let fail = FaultEffect::FailEntries {
        code: "InternalError".into(),
        sender_fault: false,
    };
    let fault = Fault::new("SendMessageBatch", fail)
        .key_contains("image/a")
        .times(1);
    let handle = bench.cloud.inject_fault(fault);
    let failed = send.clone().send().await?.failed;
    assert_eq!(
        failed
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>(),
        ["1", "2"]
    );
    assert_eq!(
        (failed[0].code.as_str(), failed[0].sender_fault),
        ("InternalError", false)
    );
    assert_eq!(bench.cloud.queue_depth(&url).await?.total(), 0);

    assert_eq!(send.send().await?.successful.len(), 2);
    assert_eq!(handle.hits(), 1);
    Ok(())
}

#[tokio::test]
async fn only_what_is_meant_is_struck() -> Result<()> {
    let bench = FaultFixture::new().await?;
    let fault = Fault::new("HeadObject", FaultEffect::error(403, "AccessDenied"));
    let by_key = bench
        .cloud
        .inject_fault(fault.clone().key_contains("other"));
    let by_caller = bench.cloud.inject_fault(fault.clone().caller("consumer"));
    let never = bench.cloud.inject_fault(fault.clone().probability(0.0));
    assert!(bench.exists("a").await);
    assert_eq!((by_key.hits(), by_caller.hits(), never.hits()), (0, 0, 0));
    let twice = bench.cloud.inject_fault(fault.clone().times(2));
    let outcomes = [
        bench.exists("a").await,
        bench.exists("a").await,
        bench.exists("a").await,
    ];
    assert_eq!((outcomes, twice.hits()), ([false, false, true], 2));
    let half = bench.cloud.inject_fault(fault.probability(0.5));
    for _ in 0..100 {
        bench.exists("a").await;
    }
    assert!((20..80).contains(&half.hits()), "{}", half.hits());
    drop(half);
    assert!(bench.exists("a").await);
    Ok(())
}
