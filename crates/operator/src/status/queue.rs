//! The queue and its dead-letter queue, as far as they answer.

use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::queue::sqs::SqsQueue;
use serde::Serialize;

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct QueueStatus {
    pub(crate) visible: Option<u64>,
    pub(crate) in_flight: Option<u64>,
    /// SQS gives the age of its oldest message to CloudWatch only.
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) dead_letters: Option<u64>,
    /// Why something of it is not known.
    #[serde(rename = "trouble")]
    pub(crate) error: Option<String>,
}

impl QueueStatus {
    pub(super) async fn read_queue(queue: &SqsQueue) -> Self {
        let mut status = Self::default();
        status.error = status.read_counts(queue).await.err();
        status
    }

    async fn read_counts(&mut self, queue: &SqsQueue) -> Result<(), String> {
        let attributes = queue.queue_attributes().await;
        let attributes = attributes.map_err(|error| error.to_string())?;
        self.visible = Some(attributes.backlog.visible);
        self.in_flight = Some(attributes.backlog.in_flight);
        if let Some(dead) = queue.dead_letter_queue_of(&attributes) {
            let dead = dead.queue_attributes().await;
            let dead = dead.map_err(|error| format!("dead letters: {error}"))?;
            self.dead_letters = Some(dead.backlog.total_messages());
        }
        Ok(())
    }

    pub(super) fn has_messages(&self) -> bool {
        self.visible.unwrap_or(0) + self.in_flight.unwrap_or(0) > 0
    }
}
