//! One message from receipt to its end: carries out what [`crate::step`] decides.

use std::pin::pin;
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
use crate::trace::{Deliveries, Delivery};

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
    /// Traces.
    pub deliveries: Deliveries,
    /// Ends all waiting, not the work under way.
    pub stop: CancellationToken,
    /// Ends the work under way too: the grace is over.
    pub give_up: CancellationToken,
}

/// What a message turned out to be.
enum Content {
    Row(Box<Task>),
    Poison(String),
}

impl Content {
    fn task(&self) -> Option<&Task> {
        match self {
            Self::Row(task) => Some(task),
            Self::Poison(_) => None,
        }
    }
}

impl Stages {
    /// Handles one message. It is deleted, released or, at the worst, left to its visibility timeout.
    pub async fn handle(&self, message: Message, lease: Lease) {
        let content = match decode(&message.body, self.id_type, &self.rule) {
            Ok(task) => Content::Row(Box::new(task)),
            Err(poison) => Content::Poison(poison.to_string()),
        };
        let mut delivery = self.deliveries.begin(&message, content.task());
        let (mut protocol, mut event) = self.begin(&message, &content);
        loop {
            let step = match protocol.next(event) {
                Step::EndLease => return self.end(protocol, lease, delivery).await,
                step => step,
            };
            let span = delivery.step(&step);
            let work = pin!(self.carry_out(step, &message, &content));
            event = tokio::select! {
                biased;
                event = span.around(work) => event,
                () = self.give_up.cancelled() => Event::Interrupted,
            };
            delivery.stepped(&span, &event);
        }
    }

    /// Gives a message back at once, without looking at it: it came after the stop.
    pub async fn give_back(&self, message: Message, lease: Lease) {
        let mut protocol = self.protocol(&message, None);
        protocol.next(Event::Interrupted);
        self.end(protocol, lease, Delivery::default()).await;
    }

    fn begin(&self, message: &Message, content: &Content) -> (Protocol, Event) {
        let (key, event) = match content {
            Content::Row(task) => (Some(task.route.destination_key.clone()), Event::Understood),
            Content::Poison(_) => (None, Event::Poison),
        };
        (self.protocol(message, key), event)
    }

    fn protocol(&self, message: &Message, destination_key: Option<String>) -> Protocol {
        let count = message.receive_count;
        Protocol::new(count, self.has_dead_letter_queue, destination_key)
    }

    /// The message leaves our hands.
    async fn end(&self, mut protocol: Protocol, lease: Lease, mut delivery: Delivery) {
        let handle = lease.end().await;
        let held = handle.is_some();
        let step = protocol.next(Event::LeaseEnded { held });
        let span = delivery.step(&step);
        let ending = pin!(async {
            match (step, handle) {
                (Step::Delete, Some(handle)) => self.acknowledge.delete(handle).await,
                (Step::Release(wait), Some(handle)) => self.acknowledge.release(handle, wait).await,
                // There is nothing to confirm.
                _ => true,
            }
        });
        if !span.around(ending).await {
            span.fail("NotConfirmed");
        }
    }

    async fn carry_out(&self, step: Step, message: &Message, content: &Content) -> Event {
        match content {
            Content::Row(task) => self.for_row(step, task).await,
            Content::Poison(reason) => {
                self.tally.poison();
                let Message {
                    message_id, body, ..
                } = message;
                self.record.poison(message_id, reason.clone(), body).await
            }
        }
    }

    async fn for_row(&self, step: Step, task: &Task) -> Event {
        match step {
            Step::Look => self.decide.look(task).await,
            Step::Copy => self.copy.copy(&task.route).await,
            Step::Compare => self.copy.compare(&task.route).await,
            Step::Commit(copied, wait) => {
                self.pause(wait).await;
                let event = self.commit.commit(task, copied).await;
                if event == Event::Committed {
                    self.tally.moved();
                }
                event
            }
            Step::Settle(seen, orphan) => {
                self.tally.settled();
                self.record.settle(task, seen, orphan).await
            }
            Step::Fail(trouble) => {
                self.tally.failed();
                self.record.fail(task, trouble).await
            }
            // Poison has no row, and the ends of a message come after its lease.
            Step::RecordPoison | Step::EndLease | Step::Delete | Step::Release(_) | Step::LetGo => {
                Event::Interrupted
            }
        }
    }

    /// A stop shortens the wait, and the commit is tried at once.
    async fn pause(&self, wait: Duration) {
        tokio::select! {
            biased;
            () = sleep(wait) => {}
            () = self.stop.cancelled() => {}
        }
    }
}
