//! The queue as a process reaches it.

use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::message::named_run;
use bucket_brigade_common::queue::{
    DeadLetter, EntryOutcome, MessageQueue, OutgoingMessage, QueueAttributes, QueueBacklog,
    QueueError, ReceivedMessage,
};
use tokio::time::{Instant, sleep};

use super::SimulatedClient;
use crate::fault_rates::CallOutcome;
use crate::sabotage::Sabotage;
use crate::shared_world::WorldState;

/// How often a long poll looks for messages.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

fn unavailable_error(operation: &'static str) -> impl Fn(CallOutcome) -> QueueError {
    move |outcome| QueueError::Unavailable {
        operation,
        message: format!("injected: {outcome:?}"),
    }
}

/// Each entry of a batch for itself: a few are not carried out, and reported as failed.
fn apply_entries<T>(
    things: &mut WorldState,
    items: &[T],
    mut act: impl FnMut(&mut WorldState, &T) -> EntryOutcome,
) -> Vec<EntryOutcome> {
    let percent = things.fault_rates.failed_entries;
    let mut entry = |item| {
        if things.roll_fault(percent) {
            return EntryOutcome::Retry("injected".into());
        }
        act(things, item)
    };
    items.iter().map(&mut entry).collect()
}

fn send_message(things: &mut WorldState, body: &str) -> EntryOutcome {
    things.mailbox.send(body.to_owned());
    let percent = things.fault_rates.duplicate_sends;
    if things.roll_fault(percent) {
        things.mailbox.send(body.to_owned());
    }
    EntryOutcome::Done
}

/// Hides a message, or finds the lease lost and the message in other hands soon.
fn hide_message(things: &mut WorldState, (handle, time): &(String, Duration)) -> EntryOutcome {
    let Some(number) = things.mailbox.find_by_handle(handle) else {
        return EntryOutcome::Refused("the receipt handle has expired".into());
    };
    let percent = things.fault_rates.lost_leases;
    if things.roll_fault(percent) {
        things.visible_at.insert(number, Instant::now());
        return EntryOutcome::Refused("injected: the lease is lost".into());
    }
    things.visible_at.insert(number, Instant::now() + *time);
    EntryOutcome::Done
}

impl SimulatedClient {
    /// Whether that is allowed the world of its run knows.
    fn delete_message(&self, things: &mut WorldState, handle: &str) {
        let Some(body) = things.mailbox.delete_message(handle) else {
            return;
        };
        let named = named_run(&body);
        let is_dead_letter = things.mailbox.dead_letters.contains(&body);
        let mut others = self.others.iter().map(|other| other.lock());
        match others.find(|other| Some(other.run) == named) {
            Some(mut other) => other.check_deletion(&body, is_dead_letter),
            None => things.check_deletion(&body, is_dead_letter),
        }
    }
}

#[async_trait]
impl MessageQueue for SimulatedClient {
    async fn send_batch(
        &self,
        messages: &[OutgoingMessage],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let lost = unavailable_error("SendMessageBatch");
        self.perform_call("send", lost, |things| {
            Ok(apply_entries(things, messages, |things, message| {
                send_message(things, &message.body)
            }))
        })
        .await
    }

    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        let deadline = Instant::now() + wait;
        while self.shared.lock().is_drained() && Instant::now() < deadline {
            sleep(POLL_INTERVAL).await;
        }
        let lost = unavailable_error("ReceiveMessage");
        let messages = self
            .perform_call("receive", lost, |things| {
                Ok(things.receive_messages(most, visibility))
            })
            .await?;
        if messages.is_empty() {
            sleep(POLL_INTERVAL).await;
        }
        Ok(messages)
    }

    async fn delete_batch(
        &self,
        receipt_handles: &[String],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let lost = unavailable_error("DeleteMessageBatch");
        self.perform_call("delete", lost, |things| {
            Ok(apply_entries(things, receipt_handles, |things, handle| {
                self.delete_message(things, handle);
                // As on SQS, a stale receipt handle deletes nothing, and that is a success.
                EntryOutcome::Done
            }))
        })
        .await
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let lost = unavailable_error("ChangeMessageVisibilityBatch");
        self.perform_call("hide", lost, |things| {
            Ok(apply_entries(things, changes, hide_message))
        })
        .await
    }

    async fn send_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let lost = unavailable_error("SendMessageBatch");
        self.perform_call("dead letter", lost, |things| {
            Ok(apply_entries(things, letters, |things, letter| {
                if things.sabotage != Sabotage::UnsentDeadLetter {
                    things.mailbox.dead_letters.insert(letter.body.clone());
                }
                EntryOutcome::Done
            }))
        })
        .await
    }

    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        let lost = unavailable_error("GetQueueAttributes");
        self.perform_call("attributes", lost, |things| {
            let percent = things.fault_rates.wrong_counts;
            let count = if things.roll_fault(percent) {
                0
            } else {
                things.mailbox.queued.len()
            };
            Ok(QueueAttributes {
                max_receive_count: Some(5),
                backlog: QueueBacklog {
                    visible: u64::try_from(count).unwrap_or(u64::MAX),
                    in_flight: 0,
                },
                ..QueueAttributes::default()
            })
        })
        .await
    }
}
