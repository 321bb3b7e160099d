//! The queue as a process reaches it.

use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::queue::{
    Backlog, Entry, Message, Outgoing, Queue, QueueAttributes, QueueError,
};
use tokio::time::{Instant, sleep};

use super::Client;
use crate::fate::Fate;
use crate::shared::Things;

/// How often a long poll looks for messages.
const LOOK: Duration = Duration::from_millis(500);

fn unavailable(operation: &'static str) -> impl Fn(Fate) -> QueueError {
    move |fate| QueueError::Unavailable {
        operation,
        message: format!("injected: {fate:?}"),
    }
}

/// Each entry of a batch for itself: a few are not carried out, and reported as failed.
fn each<T>(
    things: &mut Things,
    items: &[T],
    mut act: impl FnMut(&mut Things, &T) -> Entry,
) -> Vec<Entry> {
    let percent = things.weather.failed_entries;
    let mut entry = |item| {
        if things.happens(percent) {
            return Entry::Retry("injected".into());
        }
        act(things, item)
    };
    items.iter().map(&mut entry).collect()
}

fn send_one(things: &mut Things, body: &str) -> Entry {
    things.mailbox.send(body.to_owned());
    let percent = things.weather.sent_twice;
    if things.happens(percent) {
        things.mailbox.send(body.to_owned());
    }
    Entry::Done
}

/// Hides a message, or finds the lease lost and the message in other hands soon.
fn hide_one(things: &mut Things, (handle, time): &(String, Duration)) -> Entry {
    let Some(number) = things.mailbox.named_by(handle) else {
        return Entry::Refused("the receipt handle has expired".into());
    };
    let percent = things.weather.lost_leases;
    if things.happens(percent) {
        things.visible_at.insert(number, Instant::now());
        return Entry::Refused("injected: the lease is lost".into());
    }
    things.visible_at.insert(number, Instant::now() + *time);
    Entry::Done
}

#[async_trait]
impl Queue for Client {
    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Entry>, QueueError> {
        let lost = unavailable("SendMessageBatch");
        self.call("send", lost, |things| {
            Ok(each(things, messages, |things, message| {
                send_one(things, &message.body)
            }))
        })
        .await
    }

    async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let deadline = Instant::now() + wait;
        while self.shared.lock().is_drained() && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let lost = unavailable("ReceiveMessage");
        let messages = self
            .call("receive", lost, |things| {
                Ok(things.receive(most, visibility))
            })
            .await?;
        if messages.is_empty() {
            sleep(LOOK).await;
        }
        Ok(messages)
    }

    async fn delete(&self, receipt_handles: &[String]) -> Result<Vec<Entry>, QueueError> {
        let lost = unavailable("DeleteMessageBatch");
        self.call("delete", lost, |things| {
            Ok(each(things, receipt_handles, |things, handle| {
                things.delete(handle);
                // As on SQS, a stale receipt handle deletes nothing, and that is a success.
                Entry::Done
            }))
        })
        .await
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<Entry>, QueueError> {
        let lost = unavailable("ChangeMessageVisibilityBatch");
        self.call("hide", lost, |things| Ok(each(things, changes, hide_one)))
            .await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let lost = unavailable("GetQueueAttributes");
        self.call("attributes", lost, |things| {
            let percent = things.weather.wrong_counts;
            let count = if things.happens(percent) {
                0
            } else {
                things.mailbox.queued.len()
            };
            Ok(QueueAttributes {
                max_receive_count: Some(5),
                backlog: Backlog {
                    visible: u64::try_from(count).unwrap_or(u64::MAX),
                    in_flight: 0,
                },
            })
        })
        .await
    }
}
