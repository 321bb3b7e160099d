//! One message from receipt to its end: carries out what [`crate::protocol`] decides.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bucket_brigade_common::ledger::fleet_control::FleetControl;
use bucket_brigade_common::message::{DecodeError, MoveTask, RunKey};
use bucket_brigade_common::panics::contain_panic;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::{MessageQueue, ReceivedMessage};
use bucket_brigade_common::row_id::IdType;
use bucket_brigade_common::throttle::CopySubject;
use bucket_brigade_common::trace::mark_failed;
use tokio::time::sleep;
use tracing::Instrument;

use crate::acknowledge::Acknowledger;
use crate::commit::Committer;
use crate::context::ConsumerContext;
use crate::copy::Copier;
use crate::dead_letter::DeadLetterSender;
use crate::lease::{Lease, LeaseWatch};
use crate::protocol::{Action, Event, FailureCause, MoveProtocol};
use crate::record::OutcomeRecorder;
use crate::row_reader::RowReader;
use crate::runs::{IncomingMessage, LeasedMessage, RunParts};
use crate::trace::{Deliveries, Delivery};

/// The stages that the messages of one run pass, shared by all in hand.
pub struct Stages {
    pub run: i64,
    key: RunKey,
    pub fleet_control: Arc<dyn FleetControl>,
    pub copier: Copier,
    pub context: ConsumerContext,
    id_type: IdType,
    rule: PathRule,
    /// Whether other runs' messages are served too, or left to others.
    serves_all: bool,
    row_reader: RowReader,
    committer: Committer,
    recorder: OutcomeRecorder,
    deliveries: Deliveries,
    ends: Arc<MessageEnds>,
    moved: AtomicU64,
}

/// How deliveries end, whatever their run.
pub struct MessageEnds {
    acknowledger: Acknowledger,
    dead_letters: DeadLetterSender,
    /// Of the queue's redrive policy, if it has one.
    pub(crate) max_receive_count: Option<u32>,
}

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
    pub fn new(
        parts: RunParts,
        serves_all: bool,
        ends: &Arc<MessageEnds>,
        context: ConsumerContext,
    ) -> Self {
        let (ledger, rule) = (&parts.ledger, &parts.rule);
        Self {
            run: parts.run.number(),
            key: parts.run,
            id_type: parts.id_type,
            serves_all,
            row_reader: RowReader::new(Arc::clone(ledger), rule.clone(), &context),
            copier: Copier::new(parts.store, rule, &context).with_ledger(ledger),
            committer: Committer::new(Arc::clone(ledger), &context),
            recorder: OutcomeRecorder::new(ledger, &context),
            rule: parts.rule,
            fleet_control: parts.fleet_control,
            deliveries: parts.deliveries,
            ends: Arc::clone(ends),
            moved: AtomicU64::default(),
            context,
        }
    }

    /// Rows of this run that this process moved.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Handles one message. It is deleted, released or, at the worst, left to its visibility timeout; or returned,
    /// where the fleet's limits have come to leave nothing of its run to this process.
    pub async fn handle(&self, leased: LeasedMessage) -> Option<LeasedMessage> {
        let LeasedMessage {
            incoming,
            lease,
            received_at,
        } = leased;
        match contain_panic(self.handle_leased(&incoming, lease)).await {
            Ok(lease) => Some(LeasedMessage {
                incoming,
                lease: lease?,
                received_at,
            }),
            Err(panic) => {
                self.record_panic(&incoming, panic).await;
                None
            }
        }
    }

    async fn handle_leased(&self, incoming: &IncomingMessage, lease: Lease) -> Option<Lease> {
        let (message, content) = (&incoming.message, self.read_content(incoming));
        let mut delivery = self.deliveries.start(message, content.as_task());
        let (mut protocol, mut event) = self.begin(message, &content);
        let mut give_up = pin!(self.context.give_up.cancelled());
        let watch = lease.watch();
        loop {
            let action = match protocol.next(event) {
                Action::EndLease => {
                    self.ends.end_lease(protocol, lease, delivery).await;
                    return None;
                }
                action => action,
            };
            let span = delivery.start_step(&action);
            let work = pin!(self.perform(action, message, &content, &watch));
            event = tokio::select! {
                biased;
                event = work.instrument(span.clone()) => event,
                () = &mut give_up => Event::Interrupted,
            };
            delivery.end_step(&span, &event);
            if event == Event::Interrupted && self.is_left_to_others() {
                return Some(lease);
            }
        }
    }

    fn is_left_to_others(&self) -> bool {
        self.context.throttle.is_excluded() && !self.context.stop.is_cancelled()
    }

    /// The message is left to its lease, which has ended, and to the redrive policy.
    async fn record_panic(&self, incoming: &IncomingMessage, panic: String) {
        let (id, parsed) = (&incoming.message.message_id, incoming.parsed.as_ref().ok());
        let key = parsed.map(|parsed| &*parsed.path);
        tracing::error!(key, "message {id} could not be handled: {panic}");
        let recording = async {
            if let MessageContent::Row(task) = self.read_content(incoming) {
                self.context.counters.failed.inc();
                let cause = FailureCause::panicked(panic);
                self.recorder.record_failure(&task, cause, None).await;
            }
        };
        if let Err(panic) = contain_panic(recording).await {
            tracing::error!(key, "nor could that be recorded: {panic}");
        }
    }

    fn read_content(&self, incoming: &IncomingMessage) -> MessageContent {
        let parsed = match &incoming.parsed {
            Ok(parsed) => parsed,
            Err(reason) => return MessageContent::Poison(reason.to_string()),
        };
        match parsed.to_task(self.key, self.id_type, &self.rule) {
            Ok(_) if incoming.is_stray => MessageContent::Poison(
                "the message names no run, and the ledger has several that could be meant".into(),
            ),
            Ok(task) => {
                self.context.counters.own_run();
                MessageContent::Row(Box::new(task))
            }
            Err(DecodeError::Poison(reason)) => MessageContent::Poison(reason.to_string()),
            Err(unknown @ DecodeError::OtherRun(_)) if self.serves_all => {
                MessageContent::Poison(format!("{unknown}, which is not in the ledger"))
            }
            Err(foreign) => {
                self.context.counters.record_other_run(self.run, &foreign);
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
        let protocol = MoveProtocol::new(message.receive_count, self.ends.max_receive_count, key);
        let protocol = protocol.with_sent_at(message.sent_at, SystemTime::now());
        (protocol, event)
    }

    async fn perform(
        &self,
        action: Action,
        message: &ReceivedMessage,
        content: &MessageContent,
        lease: &LeaseWatch,
    ) -> Event {
        match content {
            MessageContent::Row(_) if action == Action::SendDeadLetter => {
                self.ends.dead_letters.send(message).await
            }
            MessageContent::Row(task) => self.perform_for_row(action, task, lease).await,
            MessageContent::Poison(reason) => {
                self.context.counters.poison.inc();
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

    async fn perform_for_row(&self, action: Action, task: &MoveTask, lease: &LeaseWatch) -> Event {
        match action {
            Action::ReadRow => self.row_reader.read_row(task).await,
            Action::Copy => self.copier.copy(&task.route, CopySubject::Image).await,
            Action::Compare => self.copier.compare(&task.route, CopySubject::Image).await,
            Action::Commit(copied, wait) => {
                // A stop shortens the wait, and the commit is tried at once, for the last time.
                let waiting = self.context.stop.run_until_cancelled(sleep(wait));
                let is_last = waiting.await.is_none() && !wait.is_zero();
                let companions = match self.copier.copy_companions(&task.route, &copied).await {
                    Ok(companions) => companions,
                    Err(event) => return event,
                };
                let event = self.committer.commit(task, lease, copied, companions);
                let event = event.await;
                if event == Event::Committed {
                    self.context.counters.moved.inc();
                    self.moved.fetch_add(1, Ordering::Relaxed);
                }
                // Its row may be locked for a while yet, which is no failure.
                match event {
                    Event::NotCommitted if is_last => Event::Interrupted,
                    event => event,
                }
            }
            Action::RecordSettlement(row, orphan) => {
                self.context.counters.settled.inc();
                self.recorder.record_settlement(task, row, orphan).await
            }
            Action::RecordFailure(cause, orphan) => {
                self.context.counters.failed.inc();
                self.recorder.record_failure(task, cause, orphan).await
            }
            // Poison has no row, and the ends of a message come after its lease.
            Action::RecordPoison
            | Action::SendDeadLetter
            | Action::EndLease
            | Action::Delete
            | Action::Release(_)
            | Action::Abandon => Event::Interrupted,
        }
    }
}

impl MessageEnds {
    pub fn new(
        queue: &Arc<dyn MessageQueue>,
        max_receive_count: Option<u32>,
        context: &ConsumerContext,
    ) -> Self {
        Self {
            acknowledger: Acknowledger::new(queue, context),
            dead_letters: DeadLetterSender::new(queue),
            max_receive_count,
        }
    }

    /// Gives a message back without looking at it, hidden for so long.
    pub async fn release(&self, leased: LeasedMessage, wait: Duration) {
        if let Some(held) = leased.lease.suspend().await {
            let handle = held.receipt_handle;
            self.acknowledger.release(handle, wait).await;
        }
    }

    /// While nothing can be deleted little is received.
    pub(crate) async fn wait_while_failing(&self) {
        self.acknowledger.wait_while_failing().await;
    }

    async fn end_lease(&self, mut protocol: MoveProtocol, lease: Lease, mut delivery: Delivery) {
        let held = lease.suspend().await;
        let event = Event::LeaseEnded {
            held: held.is_some(),
        };
        let action = protocol.next(event);
        let span = delivery.start_step(&action);
        let ending = pin!(async {
            match (action, held) {
                (Action::Delete, Some(held)) => self.acknowledger.delete(&lease, held).await,
                (Action::Release(wait), Some(held)) => {
                    let handle = held.receipt_handle;
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
}
