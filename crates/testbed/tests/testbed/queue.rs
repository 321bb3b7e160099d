//! Local SQS: receipt handles and dead letters.

use std::time::Duration;

use anyhow::Result;
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry as Entry, Message, MessageAttributeValue,
    SendMessageBatchRequestEntry,
};
use bucket_brigade_testbed::cloud::{Cloud, CloudOptions, CreateQueueOptions, QueueDepth};

async fn receive(cloud: &Cloud, url: &str) -> Result<String> {
    let received = cloud
        .sqs_client()
        .receive_message()
        .queue_url(url)
        .send()
        .await?;
    Ok(received.messages.unwrap_or_default()[0]
        .receipt_handle
        .clone()
        .unwrap_or_default())
}

#[tokio::test]
async fn a_stale_handle_deletes_nothing_and_succeeds() -> Result<()> {
    let cloud = Cloud::start(CloudOptions::default())?;
    let queue = CreateQueueOptions {
        visibility_seconds: 1,
        ..CreateQueueOptions::default()
    };
    let url = cloud.create_queue("q", queue).await?.url;
    let sqs = cloud.sqs_client();
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
    let cloud = Cloud::start(CloudOptions::default())?;
    let queue = CreateQueueOptions {
        max_receive_count: Some(1),
        ..CreateQueueOptions::default()
    };
    let queue = cloud.create_queue("q", queue).await?;
    let sqs = cloud.sqs_client();
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
    let cloud = Cloud::start(CloudOptions::default())?;
    let queue = CreateQueueOptions {
        fifo: true,
        max_receive_count: None,
        ..CreateQueueOptions::default()
    };
    let url = cloud.create_queue("q.fifo", queue).await?.url;
    assert!(url.ends_with("q.fifo"));
    Ok(())
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Of `traceparent` alone, and of both attributes: MD5 over name, type and value, each with its length, in
/// the order of the names, as the SQS developer guide has it; computed by hand.
const MD5: &str = "bea2564b4c828908d0473cae38673bfa";
const MD5_OF_BOTH: &str = "fc6dea1b27e9bf80253f2d655ed8c1e6";

fn attribute(kind: &str, value: &str) -> Result<MessageAttributeValue> {
    let builder = MessageAttributeValue::builder().data_type(kind);
    Ok(builder.string_value(value).build()?)
}

/// Receives a message with these attributes, and gives it back at once.
async fn receive_with_attributes(cloud: &Cloud, url: &str, names: &[&str]) -> Result<Message> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let receive = cloud.sqs_client().receive_message().queue_url(url);
    let receive = receive.set_message_attribute_names(Some(names));
    let received = receive.visibility_timeout(0).send().await?;
    let message = received.messages.unwrap_or_default().into_iter().next();
    message.ok_or_else(|| anyhow::anyhow!("no message"))
}

#[tokio::test]
async fn attributes_come_to_those_who_ask_for_them() -> Result<()> {
    let cloud = Cloud::start(CloudOptions::default())?;
    let queue = CreateQueueOptions {
        max_receive_count: Some(4),
        ..CreateQueueOptions::default()
    };
    let queue = cloud.create_queue("q", queue).await?;
    let entry = SendMessageBatchRequestEntry::builder()
        .id("0")
        .message_body("a")
        .message_attributes("traceparent", attribute("String", TRACEPARENT)?)
        .message_attributes("other", attribute("Number", "7")?)
        .build()?;
    let send = cloud
        .sqs_client()
        .send_message_batch()
        .queue_url(&queue.url);
    let sent = send.entries(entry).send().await?;
    assert_eq!(
        sent.successful[0].md5_of_message_attributes(),
        Some(MD5_OF_BOTH)
    );
    let message = receive_with_attributes(&cloud, &queue.url, &["traceparent"]).await?;
    let attributes = message.message_attributes.clone().unwrap_or_default();
    assert_eq!(attributes.len(), 1);
    let value = &attributes["traceparent"];
    assert_eq!(value.string_value(), Some(TRACEPARENT));
    assert_eq!(value.data_type(), "String");
    assert_eq!(message.md5_of_message_attributes(), Some(MD5));
    let message = receive_with_attributes(&cloud, &queue.url, &["All"]).await?;
    assert_eq!(message.md5_of_message_attributes(), Some(MD5_OF_BOTH));
    for names in [&[][..], &["absent"]] {
        let message = receive_with_attributes(&cloud, &queue.url, names).await?;
        assert_eq!(message.message_attributes, None);
        assert_eq!(message.md5_of_message_attributes(), None);
    }
    // A dead letter has them still.
    assert!(
        receive_with_attributes(&cloud, &queue.url, &[])
            .await
            .is_err()
    );
    let dead = queue.dead_letter_url.unwrap_or_default();
    let message = receive_with_attributes(&cloud, &dead, &["traceparent"]).await?;
    assert_eq!(message.md5_of_message_attributes(), Some(MD5));
    Ok(())
}
