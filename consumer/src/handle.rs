//! One message from receipt to its end: carries out what [`crate::step`] decides.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::{MoveTask, decode};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::row_id::IdColumnType;
use bucket_brigade_common::trace::mark_failed;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::acknowledge::Acknowledger;
use crate::commit::Committer;
use crate::copy::Copier;
use crate::counters::ConsumerCounters;
use crate::lease::Lease;
use crate::protocol::{Action, Event, MoveProtocol};
use crate::record::OutcomeRecorder;
use crate::row_reader::RowReader;
use crate::trace::{Deliveries, Delivery};

/// The stages a message passes, shared by all messages in hand.
pub struct Stages {
    /// The type of the table's ids.
    pub id_type: IdColumnType,
    /// The path rule.
    pub rule: PathRule,
    /// Whether the queue has a redrive policy.
    pub has_dead_letter_queue: bool,
    /// Reads rows.
    pub decide: RowReader,
    /// Copies objects.
    pub copy: Copier,
    /// Sets paths.
    pub commit: Committer,
    /// Writes down other endings.
    pub record: OutcomeRecorder,
    /// Deletes and releases messages.
    pub acknowledge: Acknowledger,
    /// Counts.
    pub tally: Arc<ConsumerCounters>,
    /// Traces.
    pub deliveries: Deliveries,
    /// Ends all waiting, not the work under way.
    pub stop: CancellationToken,
    /// Ends the work under way too: the grace is over.
    pub give_up: CancellationToken,
}

/// What a message turned out to be.
enum MessageContent {
    Row(Box<MoveTask>),
    Poison(String),
}

impl MessageContent {
    fn as_task(&self) -> Option<&MoveTask> {
        match self {
            Self::Row(task) => Some(task),
            Self::Poison(_) => None,
        }
    }
}

impl Stages {
    /// Handles one message. It is deleted, released or, at the worst, left to its visibility timeout.
    pub async fn handle(&self, message: ReceivedMessage, lease: Lease) {
        let content = match decode(&message.body, self.id_type, &self.rule) {
            Ok(task) => MessageContent::Row(Box::new(task)),
            Err(poison) => MessageContent::Poison(poison.to_string()),
        };
        let mut delivery = self.deliveries.begin(&message, content.as_task());
        let (mut protocol, mut event) = self.begin(&message, &content);
        loop {
            let step = match protocol.next(event) {
                Action::EndLease => return self.end(protocol, lease, delivery).await,
                step => step,
            };
            let span = delivery.step(&step);
            let work = pin!(self.carry_out(step, &message, &content));
            event = tokio::select! {
                biased;
                event = work.instrument(span.clone()) => event,
                () = self.give_up.cancelled() => Event::Interrupted,
            };
            delivery.stepped(&span, &event);
        }
    }

    /// Gives a message back at once, without looking at it: it came after the stop.
    pub async fn give_back(&self, message: ReceivedMessage, lease: Lease) {
        let mut protocol = self.protocol(&message, None);
        protocol.next(Event::Interrupted);
        self.end(protocol, lease, Delivery::default()).await;
    }

    fn begin(&self, message: &ReceivedMessage, content: &MessageContent) -> (MoveProtocol, Event) {
        let (key, event) = match content {
            MessageContent::Row(task) => (Some(task.route.destination_key.clone()), Event::Decoded),
            MessageContent::Poison(_) => (None, Event::Poison),
        };
        (self.protocol(message, key), event)
    }

    fn protocol(&self, message: &ReceivedMessage, destination_key: Option<String>) -> MoveProtocol {
        let count = message.receive_count;
        MoveProtocol::new(count, self.has_dead_letter_queue, destination_key)
    }

    /// The message leaves our hands.
    async fn end(&self, mut protocol: MoveProtocol, lease: Lease, mut delivery: Delivery) {
        let handle = lease.end().await;
        let held = handle.is_some();
        let step = protocol.next(Event::LeaseEnded { held });
        let span = delivery.step(&step);
        let ending = pin!(async {
            match (step, handle) {
                (Action::Delete, Some(handle)) => self.acknowledge.delete(handle).await,
                (Action::Release(wait), Some(handle)) => {
                    self.acknowledge.release(handle, wait).await
                }
                // There is nothing to confirm.
                _ => true,
            }
        });
        if !ending.instrument(span.clone()).await {
            mark_failed(&span, "NotConfirmed");
        }
    }

    async fn carry_out(
        &self,
        step: Action,
        message: &ReceivedMessage,
        content: &MessageContent,
    ) -> Event {
        match content {
            MessageContent::Row(task) => self.for_row(step, task).await,
            MessageContent::Poison(reason) => {
                self.tally.poison();
                let ReceivedMessage {
                    message_id, body, ..
                } = message;
                self.record.poison(message_id, reason.clone(), body).await
            }
        }
    }

    async fn for_row(&self, step: Action, task: &MoveTask) -> Event {
        match step {
            Action::ReadRow => self.decide.read_row(task).await,
            Action::Copy => self.copy.copy(&task.route).await,
            Action::Compare => self.copy.compare(&task.route).await,
            Action::Commit(copied, wait) => {
                self.pause(wait).await;
                let event = self.commit.commit(task, copied).await;
                if event == Event::Committed {
                    self.tally.moved();
                }
                event
            }
            Action::RecordSettlement(seen, orphan) => {
                self.tally.settled();
                self.record.record_settlement(task, seen, orphan).await
            }
            Action::RecordFailure(trouble) => {
                self.tally.failed();
                self.record.record_failure(task, trouble).await
            }
            // Poison has no row, and the ends of a message come after its lease.
            Action::RecordPoison
            | Action::EndLease
            | Action::Delete
            | Action::Release(_)
            | Action::Abandon => Event::Interrupted,
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
