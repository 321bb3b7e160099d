//! The queue and its dead-letter queue, as far as they answer.

use bucket_brigade_common::queue::QueueError;
use bucket_brigade_common::sqs::SqsQueue;
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
        let description = match queue.describe_queue().await {
            Ok(description) => description,
            Err(error) => return Self::from_error(&error),
        };
        let known = Self {
            visible: Some(description.backlog.visible),
            in_flight: Some(description.backlog.in_flight),
            ..Self::default()
        };
        let dead = match queue.dead_letter_queue_of(&description) {
            Some(dead) => dead.describe_queue().await,
            None => return known,
        };
        match dead {
            Ok(dead) => Self {
                dead_letters: Some(dead.backlog.total_messages()),
                ..known
            },
            Err(error) => Self {
                error: Some(format!("dead letters: {error}")),
                ..known
            },
        }
    }

    fn from_error(error: &QueueError) -> Self {
        Self {
            error: Some(error.to_string()),
            ..Self::default()
        }
    }

    /// Whether anything is known to wait in it.
    pub(super) fn has_messages(&self) -> bool {
        self.visible.unwrap_or(0) + self.in_flight.unwrap_or(0) > 0
    }
}
