//! One message from receipt to its end: carries out what [`crate::step`] decides.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::{Task, decode};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::Message;
use bucket_brigade_common::row_id::IdType;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::acknowledge::Acknowledge;
use crate::commit::Commit;
use crate::copy::Copy;
use crate::decide::Decide;
use crate::lease::Lease;
use crate::record::Record;
use crate::step::{Event, Protocol, Step};
use crate::tally::Tally;

/// The stages a message passes, shared by all messages in hand.
pub struct Stages {
    /// The type of the table's ids.
    pub id_type: IdType,
    /// The path rule.
    pub rule: PathRule,
    /// Whether the queue has a redrive policy.
    pub has_dead_letter_queue: bool,
    /// Reads rows.
    pub decide: Decide,
    /// Copies objects.
    pub copy: Copy,
    /// Sets paths.
    pub commit: Commit,
    /// Writes down other endings.
    pub record: Record,
    /// Deletes and releases messages.
    pub acknowledge: Acknowledge,
    /// Counts.
    pub tally: Arc<Tally>,
    /// Ends all waiting, not the work under way.
    pub stop: CancellationToken,
    /// Ends the work under way too: the grace is over.
    pub give_up: CancellationToken,
}

/// How a message leaves our hands.
enum Ending {
    Delete,
    Release(Duration),
}

impl Stages {
    /// Handles one message. It is deleted, released or, at the worst, left to its visibility timeout.
    pub async fn handle(&self, message: Message, lease: Lease) {
        let ending = tokio::select! {
            ending = self.work(&message) => ending,
            () = self.give_up.cancelled() => Ending::Release(Duration::ZERO),
        };
        match ending {
            Ending::Delete => {
                self.acknowledge.delete(lease).await;
            }
            Ending::Release(delay) => self.acknowledge.release(lease, delay).await,
        }
    }

    async fn work(&self, message: &Message) -> Ending {
        match decode(&message.body, self.id_type, &self.rule) {
            Ok(task) => self.move_row(message, &task).await,
            Err(poison) => self.set_aside(message, poison.to_string()).await,
        }
    }

    async fn move_row(&self, message: &Message, task: &Task) -> Ending {
        let key = task.route.destination_key.clone();
        let mut protocol = self.protocol(message, Some(key));
        let mut event = Event::Understood;
        loop {
            event = match protocol.next(event) {
                Step::Look => self.decide.look(task).await,
                Step::Copy => self.copy.copy(&task.route).await,
                Step::Commit(copied, wait) => {
                    self.pause(wait).await;
                    let event = self.commit.commit(task, copied).await;
                    if event == Event::Committed {
                        self.tally.moved();
                    }
                    event
                }
                Step::SeekOrphan => self.copy.seek_orphan(&task.route).await,
                Step::Settle(seen, orphan) => {
                    self.tally.settled();
                    self.record.settle(task, seen, orphan).await
                }
                Step::Fail(trouble) => {
                    self.tally.failed();
                    self.record.fail(task, trouble).await
                }
                Step::Acknowledge => return Ending::Delete,
                Step::Release(delay) => return Ending::Release(delay),
                // Only for messages that were not understood.
                Step::RecordPoison => return Ending::Release(Duration::ZERO),
            };
        }
    }

    async fn set_aside(&self, message: &Message, reason: String) -> Ending {
        let mut protocol = self.protocol(message, None);
        // The answer to poison is always to record it.
        protocol.next(Event::Poison);
        self.tally.poison();
        let event = self
            .record
            .poison(&message.message_id, reason, &message.body)
            .await;
        match protocol.next(event) {
            Step::Release(delay) => Ending::Release(delay),
            _ => Ending::Release(Duration::ZERO),
        }
    }

    fn protocol(&self, message: &Message, destination_key: Option<String>) -> Protocol {
        Protocol::new(
            message.receive_count,
            self.has_dead_letter_queue,
            destination_key,
        )
    }

    /// A stop shortens the wait, and the commit is tried at once.
    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = sleep(wait) => {}
            () = self.stop.cancelled() => {}
        }
    }
}
