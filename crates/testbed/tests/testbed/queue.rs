//! Local SQS: receipt handles and dead letters.

use std::time::Duration;

use anyhow::Result;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry as Entry;
use bucket_brigade_testbed::cloud::{Cloud, CreateQueue, Options, QueueDepth};

async fn receive(cloud: &Cloud, url: &str) -> Result<String> {
    let received = cloud.sqs().receive_message().queue_url(url).send().await?;
    Ok(received.messages.unwrap_or_default()[0]
        .receipt_handle
        .clone()
        .unwrap_or_default())
}

#[tokio::test]
async fn a_stale_handle_deletes_nothing_and_succeeds() -> Result<()> {
    let cloud = Cloud::start(Options::default())?;
    let queue = CreateQueue {
        visibility_seconds: 1,
        ..CreateQueue::default()
    };
    let url = cloud.create_queue("q", queue).await?.url;
    let sqs = cloud.sqs();
    sqs.send_message()
        .queue_url(&url)
        .message_body("a")
        .send()
        .await?;
    let stale = receive(&cloud, &url).await?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let fresh = receive(&cloud, &url).await?;

    sqs.delete_message()
        .queue_url(&url)
        .receipt_handle(&stale)
        .send()
        .await?;
    let entries = [("stale", stale.as_str()), ("garbage", "garbage")].map(|(id, handle)| {
        Entry::builder()
            .id(id)
            .receipt_handle(handle)
            .build()
            .expect("id and handle are there")
    });
    let batch = sqs
        .delete_message_batch()
        .queue_url(&url)
        .set_entries(Some(entries.to_vec()))
        .send()
        .await?;
    assert_eq!(
        batch
            .successful
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>(),
        ["stale"]
    );
    assert_eq!(
        batch
            .failed
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>(),
        ["garbage"]
    );
    assert!(
        sqs.delete_message()
            .queue_url(&url)
            .receipt_handle("garbage")
            .send()
            .await
            .is_err()
    );
    assert_eq!(
        cloud.queue_depth(&url).await?,
        QueueDepth {
            visible: 0,
            in_flight: 1
        }
    );

    sqs.delete_message()
        .queue_url(&url)
        .receipt_handle(&fresh)
        .send()
        .await?;
    assert_eq!(cloud.queue_depth(&url).await?.total(), 0);
    Ok(())
}

#[tokio::test]
async fn a_message_received_too_often_is_a_dead_letter() -> Result<()> {
    let cloud = Cloud::start(Options::default())?;
    let queue = CreateQueue {
        max_receive_count: Some(1),
        ..CreateQueue::default()
    };
    let queue = cloud.create_queue("q", queue).await?;
    let sqs = cloud.sqs();
    sqs.send_message()
        .queue_url(&queue.url)
        .message_body("a")
        .send()
        .await?;
    let handle = receive(&cloud, &queue.url).await?;
    let release = sqs
        .change_message_visibility()
        .queue_url(&queue.url)
        .receipt_handle(handle);
    release.visibility_timeout(0).send().await?;
    let again = sqs.receive_message().queue_url(&queue.url).send().await?;
    assert!(again.messages.unwrap_or_default().is_empty());
    let dead = cloud
        .queue_depth(&queue.dead_letter_url.expect("a dead-letter queue"))
        .await?;
    assert_eq!(
        (dead.total(), cloud.queue_depth(&queue.url).await?.total()),
        (1, 0)
    );
    Ok(())
}

#[tokio::test]
async fn a_fifo_queue_says_so() -> Result<()> {
    let cloud = Cloud::start(Options::default())?;
    let queue = CreateQueue {
        fifo: true,
        max_receive_count: None,
        ..CreateQueue::default()
    };
    let url = cloud.create_queue("q.fifo", queue).await?.url;
    assert!(url.ends_with("q.fifo"));
    Ok(())
}
