//! The queue, and its dead-letter queue.

use std::collections::{BTreeMap, BTreeSet};

use bucket_brigade_common::queue::ReceivedMessage;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueuedMessage {
    pub body: String,
    pub receives: u32,
    pub in_flight: bool,
}

/// A standard queue with a redrive policy. A receipt handle is `number:receives`: the latest one names
/// its message until that is deleted, an earlier one names nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemoryQueue {
    /// Messages by number, in the order they were sent.
    pub queued: BTreeMap<u64, QueuedMessage>,
    /// The bodies of the messages in the dead-letter queue, where a second copy makes no difference.
    pub dead_letters: BTreeSet<String>,
    sent: u64,
    max_receive_count: u32,
}

impl MemoryQueue {
    /// An empty queue; what was received `max_receive_count` times goes to the dead-letter queue.
    pub fn new(max_receive_count: u32) -> Self {
        Self {
            queued: BTreeMap::new(),
            dead_letters: BTreeSet::new(),
            sent: 0,
            max_receive_count,
        }
    }

    /// Takes a message; returns its number.
    pub fn send(&mut self, body: String) -> u64 {
        self.sent += 1;
        let queued = QueuedMessage {
            body,
            receives: 0,
            in_flight: false,
        };
        self.queued.insert(self.sent, queued);
        self.sent
    }

    /// Hands out a message, hidden or not: a standard queue delivers at least once. None when it is gone
    /// or goes to the dead-letter queue instead.
    pub fn receive(&mut self, number: u64) -> Option<ReceivedMessage> {
        let queued = self.queued.get_mut(&number)?;
        if queued.receives >= self.max_receive_count {
            let queued = self.queued.remove(&number)?;
            self.dead_letters.insert(queued.body);
            return None;
        }
        queued.receives += 1;
        queued.in_flight = true;
        Some(ReceivedMessage {
            message_id: number.to_string(),
            receipt_handle: format!("{number}:{}", queued.receives),
            body: queued.body.clone(),
            receive_count: queued.receives,
            sent_at: None,
            traceparent: None,
            attributes: Vec::new(),
        })
    }

    /// The message whose latest receipt handle this is.
    pub fn find_by_handle(&self, receipt_handle: &str) -> Option<u64> {
        let (number, receives) = receipt_handle.split_once(':')?;
        let number = number.parse().ok()?;
        let queued = self.queued.get(&number)?;
        (queued.receives.to_string() == receives).then_some(number)
    }

    /// Deletes the message named, and returns its body. A stale handle deletes nothing, without an error.
    pub fn delete_message(&mut self, receipt_handle: &str) -> Option<String> {
        let number = self.find_by_handle(receipt_handle)?;
        Some(self.queued.remove(&number)?.body)
    }

    /// Makes a message visible: its visibility timeout is over, or was set to nothing.
    pub fn make_visible(&mut self, number: u64) {
        if let Some(queued) = self.queued.get_mut(&number) {
            queued.in_flight = false;
        }
    }
}
