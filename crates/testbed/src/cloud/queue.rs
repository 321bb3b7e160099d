//! Queues: creating them and looking how full they are.

use std::collections::HashMap;

use anyhow::{Context, Result};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;

use super::{Cloud, CloudEndpoint};

#[derive(Debug, Clone)]
pub struct CreateQueueOptions {
    /// How long a received message stays invisible, in seconds.
    pub visibility_seconds: u32,
    /// After how many receives a message goes to a dead-letter queue named `NAME-dlq`; none without one.
    pub max_receive_count: Option<u32>,
    /// Whether it is a FIFO queue; its name must end in `.fifo`.
    pub fifo: bool,
}

impl Default for CreateQueueOptions {
    fn default() -> Self {
        Self {
            visibility_seconds: 30,
            max_receive_count: Some(5),
            fifo: false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct QueueUrls {
    pub url: String,
    /// The URL of its dead-letter queue, if it has one.
    pub dead_letter_url: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages that wait to be received.
    pub visible: u64,
    /// Messages received and not yet deleted, or delayed.
    pub in_flight: u64,
}

impl QueueDepth {
    pub fn total(self) -> u64 {
        self.visible + self.in_flight
    }
}

impl Cloud {
    pub async fn create_queue(&self, name: &str, queue: CreateQueueOptions) -> Result<QueueUrls> {
        self.services().create_queue(name, queue).await
    }

    pub async fn queue_depth(&self, url: &str) -> Result<QueueDepth> {
        self.services().queue_depth(url).await
    }
}

impl CloudEndpoint {
    /// Creates a queue and, if it is to have one, its dead-letter queue.
    pub async fn create_queue(&self, name: &str, queue: CreateQueueOptions) -> Result<QueueUrls> {
        let mut attributes = HashMap::from([(
            Attribute::VisibilityTimeout,
            queue.visibility_seconds.to_string(),
        )]);
        if queue.fifo {
            attributes.insert(Attribute::FifoQueue, "true".to_owned());
        }
        let mut dead_letter_url = None;
        if let Some(count) = queue.max_receive_count {
            // Fourteen days, as the README has it: longer than the queue's own four.
            let kept = HashMap::from([(Attribute::MessageRetentionPeriod, "1209600".to_owned())]);
            let url = self
                .create_with_attributes(&format!("{name}-dlq"), kept)
                .await?;
            let made = self.get_queue_attributes(&url).await?;
            let arn = made
                .get(&Attribute::QueueArn)
                .context("a queue has no ARN")?;
            let policy =
                serde_json::json!({ "deadLetterTargetArn": arn, "maxReceiveCount": count });
            attributes.insert(Attribute::RedrivePolicy, policy.to_string());
            dead_letter_url = Some(url);
        }
        let url = self.create_with_attributes(name, attributes).await?;
        Ok(QueueUrls {
            url,
            dead_letter_url,
        })
    }

    /// How many messages the queue at `url` holds.
    pub async fn queue_depth(&self, url: &str) -> Result<QueueDepth> {
        let attributes = self.get_queue_attributes(url).await?;
        let count = |name: Attribute| -> Result<u64> {
            Ok(attributes.get(&name).map_or("0", String::as_str).parse()?)
        };
        let in_flight = count(Attribute::ApproximateNumberOfMessagesNotVisible)?
            + count(Attribute::ApproximateNumberOfMessagesDelayed)?;
        Ok(QueueDepth {
            visible: count(Attribute::ApproximateNumberOfMessages)?,
            in_flight,
        })
    }

    async fn create_with_attributes(
        &self,
        name: &str,
        attributes: HashMap<Attribute, String>,
    ) -> Result<String> {
        let request = self
            .sqs_client_for("test")
            .create_queue()
            .queue_name(name)
            .set_attributes(Some(attributes));
        request
            .send()
            .await?
            .queue_url
            .context("a created queue has no URL")
    }

    async fn get_queue_attributes(&self, url: &str) -> Result<HashMap<Attribute, String>> {
        let request = self
            .sqs_client_for("test")
            .get_queue_attributes()
            .queue_url(url)
            .attribute_names(Attribute::All);
        Ok(request.send().await?.attributes.unwrap_or_default())
    }
}
