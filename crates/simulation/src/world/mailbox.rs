//! The queue, and its dead-letter queue.

use std::collections::BTreeMap;

use bucket_brigade_common::queue::Message;

/// A message in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Queued {
    /// What was sent.
    pub body: String,
    /// How often it was received.
    pub receives: u32,
    /// Whether it is hidden.
    pub in_flight: bool,
}

/// A standard queue with a redrive policy. A receipt handle is `number:receives`: the latest one names
/// its message until that is deleted, an earlier one names nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    /// Messages by number, in the order they were sent.
    pub queued: BTreeMap<u64, Queued>,
    /// The bodies of the messages in the dead-letter queue.
    pub dead: Vec<String>,
    sent: u64,
    max_receive_count: u32,
}

impl Mailbox {
    /// An empty queue; what was received `max_receive_count` times goes to the dead-letter queue.
    pub fn new(max_receive_count: u32) -> Self {
        Self {
            queued: BTreeMap::new(),
            dead: Vec::new(),
            sent: 0,
            max_receive_count,
        }
    }

    /// Takes a message; returns its number.
    pub fn send(&mut self, body: String) -> u64 {
        self.sent += 1;
        let queued = Queued {
            body,
            receives: 0,
            in_flight: false,
        };
        self.queued.insert(self.sent, queued);
        self.sent
    }

    /// Hands out a message, hidden or not: a standard queue delivers at least once. None when it is gone
    /// or goes to the dead-letter queue instead.
    pub fn receive(&mut self, number: u64) -> Option<Message> {
        let queued = self.queued.get_mut(&number)?;
        if queued.receives >= self.max_receive_count {
            let queued = self.queued.remove(&number)?;
            self.dead.push(queued.body);
            return None;
        }
        queued.receives += 1;
        queued.in_flight = true;
        Some(Message {
            message_id: number.to_string(),
            receipt_handle: format!("{number}:{}", queued.receives),
            body: queued.body.clone(),
            receive_count: queued.receives,
            traceparent: None,
        })
    }

    /// The message whose latest receipt handle this is.
    pub fn named_by(&self, receipt_handle: &str) -> Option<u64> {
        let (number, receives) = receipt_handle.split_once(':')?;
        let number = number.parse().ok()?;
        let queued = self.queued.get(&number)?;
        (queued.receives.to_string() == receives).then_some(number)
    }

    /// Deletes the message named, and returns its body. A stale handle deletes nothing, and says so to nobody.
    pub fn delete(&mut self, receipt_handle: &str) -> Option<String> {
        let number = self.named_by(receipt_handle)?;
        Some(self.queued.remove(&number)?.body)
    }

    /// Makes a message visible: its visibility timeout is over, or was set to nothing.
    pub fn reveal(&mut self, number: u64) {
        if let Some(queued) = self.queued.get_mut(&number) {
            queued.in_flight = false;
        }
    }
}
