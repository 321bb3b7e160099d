//! The queue of the world.

use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::queue::{Backlog, Entry, Message, Queue, QueueAttributes, QueueError};
use tokio::time::{Instant, sleep};

use super::{Fault, MAX_RECEIVES, World};

fn queue_error(operation: &'static str) -> QueueError {
    QueueError::Unavailable {
        operation,
        message: "fault".into(),
    }
}

#[async_trait]
impl Queue for World {
    async fn send(&self, _: &[String]) -> Result<Vec<Entry>, QueueError> {
        Err(queue_error("SendMessageBatch"))
    }

    async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let fate = self.fate().await;
        let deadline = Instant::now() + wait;
        loop {
            if fate == Fault::Before {
                return Err(queue_error("ReceiveMessage"));
            }
            let messages = self.lock().take(most, visibility);
            // An answer that is lost hides its messages for the visibility timeout.
            if fate == Fault::After && !messages.is_empty() {
                return Err(queue_error("ReceiveMessage"));
            }
            if !messages.is_empty() || Instant::now() >= deadline {
                return Ok(messages);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn delete(&self, handles: &[String]) -> Result<Vec<Entry>, QueueError> {
        let fate = self.fate().await;
        if fate == Fault::Before {
            return Ok(vec![Entry::Retry("fault".into()); handles.len()]);
        }
        let mut state = self.lock();
        for handle in handles {
            // As on SQS, a stale receipt handle deletes nothing.
            if let Some(number) = state.by_receipt(handle) {
                let queued = state.queue.remove(&number).unwrap();
                state.check_delete(&queued.body);
            }
        }
        match fate {
            Fault::After => Err(queue_error("DeleteMessageBatch")),
            _ => Ok(vec![Entry::Done; handles.len()]),
        }
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<Entry>, QueueError> {
        if self.fate().await == Fault::Before {
            return Err(queue_error("ChangeMessageVisibilityBatch"));
        }
        let mut state = self.lock();
        let mut entries = Vec::new();
        for (handle, hidden) in changes {
            let number = state.by_receipt(handle);
            match number.and_then(|number| state.queue.get_mut(&number)) {
                Some(queued) => {
                    queued.visible_at = Instant::now() + *hidden;
                    entries.push(Entry::Done);
                }
                None => entries.push(Entry::Refused("stale".into())),
            }
        }
        Ok(entries)
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        Ok(QueueAttributes {
            max_receive_count: Some(MAX_RECEIVES),
            backlog: Backlog::default(),
        })
    }
}
