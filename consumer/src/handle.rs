//! One message from receipt to its end: carries out what [`crate::protocol`] decides.

use std::pin::pin;
use std::time::Duration;

use bucket_brigade_common::message::{DecodeError, MoveTask, decode};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::row_id::IdType;
use bucket_brigade_common::trace::mark_failed;
use tokio::time::sleep;
use tracing::Instrument;

use crate::acknowledge::Acknowledger;
use crate::commit::Committer;
use crate::context::ConsumerContext;
use crate::copy::Copier;
use crate::lease::Lease;
use crate::protocol::{Action, Event, MoveProtocol};
use crate::record::OutcomeRecorder;
use crate::row_reader::RowReader;
use crate::trace::{Deliveries, Delivery};

/// The stages a message passes, shared by all messages in hand.
pub struct Stages {
    /// The run's number in the ledger.
    pub run: i64,
    pub id_type: IdType,
    pub rule: PathRule,
    /// Whether the queue has a redrive policy.
    pub has_dead_letter_queue: bool,
    pub row_reader: RowReader,
    pub copier: Copier,
    pub committer: Committer,
    pub recorder: OutcomeRecorder,
    pub acknowledger: Acknowledger,
    pub deliveries: Deliveries,
    pub context: ConsumerContext,
}

/// What a message turned out to be.
enum MessageContent {
    Row(Box<MoveTask>),
    Poison(String),
    OtherRun,
}

impl MessageContent {
    fn as_task(&self) -> Option<&MoveTask> {
        match self {
            Self::Row(task) => Some(task),
            Self::Poison(_) | Self::OtherRun => None,
        }
    }
}

impl Stages {
    /// Handles one message. It is deleted, released or, at the worst, left to its visibility timeout.
    pub async fn handle(&self, message: ReceivedMessage, lease: Lease) {
        let content = self.decode(&message);
        let mut delivery = self.deliveries.start(&message, content.as_task());
        let (mut protocol, mut event) = self.begin(&message, &content);
        let mut give_up = pin!(self.context.give_up.cancelled());
        loop {
            let action = match protocol.next(event) {
                Action::EndLease => return self.end_lease(protocol, lease, delivery).await,
                action => action,
            };
            let span = delivery.start_step(&action);
            let work = pin!(self.perform(action, &message, &content));
            event = tokio::select! {
                biased;
                event = work.instrument(span.clone()) => event,
                () = &mut give_up => Event::Interrupted,
            };
            delivery.end_step(&span, &event);
        }
    }

    /// Gives a message back at once, without looking at it: it came after the stop.
    pub async fn give_back(&self, message: ReceivedMessage, lease: Lease) {
        let mut protocol = self.new_protocol(&message, String::new());
        protocol.next(Event::Interrupted);
        self.end_lease(protocol, lease, Delivery::default()).await;
    }

    fn decode(&self, message: &ReceivedMessage) -> MessageContent {
        match decode(&message.body, self.run, self.id_type, &self.rule) {
            Ok(task) => {
                self.context.counters.own_run();
                MessageContent::Row(Box::new(task))
            }
            Err(DecodeError::Poison(reason)) => MessageContent::Poison(reason.to_string()),
            Err(DecodeError::OtherRun(run)) => {
                self.context.counters.other_run(self.run, run);
                MessageContent::OtherRun
            }
        }
    }

    fn begin(&self, message: &ReceivedMessage, content: &MessageContent) -> (MoveProtocol, Event) {
        let (key, event) = match content {
            MessageContent::Row(task) => (task.route.destination_key.clone(), Event::Decoded),
            MessageContent::Poison(_) => (String::new(), Event::Poison),
            MessageContent::OtherRun => (String::new(), Event::OtherRun),
        };
        (self.new_protocol(message, key), event)
    }

    fn new_protocol(&self, message: &ReceivedMessage, destination_key: String) -> MoveProtocol {
        let count = message.receive_count;
        MoveProtocol::new(count, self.has_dead_letter_queue, destination_key)
    }

    async fn end_lease(&self, mut protocol: MoveProtocol, lease: Lease, mut delivery: Delivery) {
        let handle = lease.end().await;
        let held = handle.is_some();
        let action = protocol.next(Event::LeaseEnded { held });
        let span = delivery.start_step(&action);
        let ending = pin!(async {
            match (action, handle) {
                (Action::Delete, Some(handle)) => self.acknowledger.delete(handle).await,
                (Action::Release(wait), Some(handle)) => {
                    self.acknowledger.release(handle, wait).await
                }
                // There is nothing to confirm.
                _ => true,
            }
        });
        if !ending.instrument(span.clone()).await {
            mark_failed(&span, "NotConfirmed");
        }
    }

    async fn perform(
        &self,
        action: Action,
        message: &ReceivedMessage,
        content: &MessageContent,
    ) -> Event {
        match content {
            MessageContent::Row(task) => self.perform_for_row(action, task).await,
            MessageContent::Poison(reason) => {
                self.context.counters.poison();
                let ReceivedMessage {
                    message_id, body, ..
                } = message;
                self.recorder
                    .record_poison(message_id, reason.clone(), body)
                    .await
            }
            // It is released without a step.
            MessageContent::OtherRun => Event::Interrupted,
        }
    }

    async fn perform_for_row(&self, action: Action, task: &MoveTask) -> Event {
        match action {
            Action::ReadRow => self.row_reader.read_row(task).await,
            Action::Copy => self.copier.copy(&task.route).await,
            Action::Compare => self.copier.compare(&task.route).await,
            Action::Commit(copied, wait) => {
                self.wait_for_retry(wait).await;
                let event = self.committer.commit(task, copied).await;
                if event == Event::Committed {
                    self.context.counters.moved();
                }
                event
            }
            Action::RecordSettlement(row, orphan) => {
                self.context.counters.settled();
                self.recorder.record_settlement(task, row, orphan).await
            }
            Action::RecordFailure(cause) => {
                self.context.counters.failed();
                self.recorder.record_failure(task, cause).await
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
    async fn wait_for_retry(&self, wait: Duration) {
        tokio::select! {
            biased;
            () = sleep(wait) => {}
            () = self.context.stop.cancelled() => {}
        }
    }
}
