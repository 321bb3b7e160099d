//! The consumer's spans: one for each delivery of a message, and one within it for each step that the
//! protocol takes. They describe the work and never influence it.

use std::sync::Arc;

use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::object_store::DestinationState;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::trace::{TARGET, continue_trace, mark_failed};
use tracing::Span;
use tracing::field::Empty;

use crate::protocol::{Action, Event, FailureCause, RowState};

/// Makes the spans of deliveries, which name these buckets.
#[derive(Debug, Clone, Default)]
pub struct Deliveries(Arc<[String; 2]>);

impl Deliveries {
    /// Traces moves between these buckets, while traces are on.
    pub fn new(source_bucket: &str, destination_bucket: &str) -> Self {
        Self(Arc::new(
            [source_bucket, destination_bucket].map(str::to_owned),
        ))
    }

    /// The span of a delivery, under the one that its message carries. A message that was not understood
    /// has no task.
    pub fn start(&self, message: &ReceivedMessage, task: Option<&MoveTask>) -> Delivery {
        let route = task.map(|task| &task.route);
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "move",
            otel.kind = "consumer",
            otel.status_description = Empty,
            messaging.system = "aws_sqs",
            messaging.message.id = message.message_id,
            bucket_brigade.receive_count = i64::from(message.receive_count),
            bucket_brigade.row_id = task.map(|task| task.id.as_str()),
            bucket_brigade.old_path = route.map(|route| &*route.old_path),
            bucket_brigade.new_path = route.map(|route| &*route.new_path),
            bucket_brigade.source_bucket = task.map(|_| &*self.0[0]),
            bucket_brigade.source_key = route.map(|route| &*route.source_key),
            bucket_brigade.destination_bucket = task.map(|_| &*self.0[1]),
            bucket_brigade.destination_key = route.map(|route| &*route.destination_key),
            bucket_brigade.outcome = Empty,
            "error.type" = Empty,
        );
        let mut delivery = Delivery::default();
        if !span.is_disabled() && continue_trace(&span, message.traceparent.as_deref()) {
            delivery.span = Some(span);
        }
        delivery
    }
}

#[derive(Debug, Default)]
pub struct Delivery {
    /// None while traces are off, and where sampling leaves the trace out.
    span: Option<Span>,
    outcome: &'static str,
    error: Option<String>,
}

impl Delivery {
    /// The span of a step that is about to be taken; none for a step that takes no time.
    pub fn start_step(&mut self, action: &Action) -> Span {
        let Some(span) = &self.span else {
            return Span::none();
        };
        let child = step_name(action).map_or_else(Span::none, |name| step_span(span, name));
        self.note_outcome(action);
        child
    }

    /// What a step means for the end.
    fn note_outcome(&mut self, action: &Action) {
        match action {
            Action::RecordSettlement(row, _) => self.outcome = describe_row(row),
            Action::RecordFailure(cause, _) => {
                self.outcome = "failed";
                self.error = Some(cause.code.clone());
            }
            Action::RecordPoison => self.outcome = "poison",
            Action::Abandon => self.outcome = "lease lost",
            _ => {}
        }
    }

    /// What became of a step.
    pub fn end_step(&mut self, span: &Span, event: &Event) {
        if self.span.is_none() {
            return;
        }
        match event {
            Event::Committed => self.outcome = "moved",
            Event::Interrupted => self.outcome = "given back",
            _ => {}
        }
        span.record("bucket_brigade.outcome", describe_event(event));
        if let Event::CopyFailed(FailureCause { code, .. })
        | Event::CommitRefused(FailureCause { code, .. })
        | Event::RowUnreadable(FailureCause { code, .. }) = event
        {
            mark_failed(span, code);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let Some(span) = &self.span else {
            return;
        };
        if !self.outcome.is_empty() {
            span.record("bucket_brigade.outcome", self.outcome);
        }
        if let Some(code) = &self.error {
            mark_failed(span, code);
        }
    }
}

fn step_span(parent: &Span, name: &'static str) -> Span {
    tracing::info_span!(
        target: TARGET,
        parent: parent,
        "step",
        otel.name = name,
        otel.status_description = Empty,
        bucket_brigade.outcome = Empty,
        "error.type" = Empty,
    )
}

fn step_name(action: &Action) -> Option<&'static str> {
    match action {
        Action::ReadRow => Some("decide"),
        Action::Copy => Some("copy"),
        Action::Compare => Some("compare"),
        Action::Commit(..) => Some("commit"),
        Action::RecordSettlement(..) | Action::RecordFailure(..) | Action::RecordPoison => {
            Some("record")
        }
        Action::SendDeadLetter => Some("dead letter"),
        Action::Delete => Some("delete"),
        Action::Release(_) => Some("release"),
        Action::EndLease | Action::Abandon => None,
    }
}

fn describe_row(row: &RowState) -> &'static str {
    match row {
        RowState::NeedsMove { .. } => "wanted",
        RowState::Fenced => "fed before a rollback or a clean",
        RowState::Moved => "moved already",
        RowState::Changed { .. } => "changed by the application",
        RowState::Deleted => "deleted by the application",
    }
}

fn describe_event(event: &Event) -> &'static str {
    match event {
        Event::RowRead(row) => describe_row(row),
        Event::Copied(_) => "copied",
        Event::DestinationExists => "destination taken",
        Event::Compared(DestinationState::Same(_)) => "our own copy",
        Event::Compared(DestinationState::WithoutSource(_)) => "an object without a source",
        Event::Compared(DestinationState::Different(_)) => "another object",
        Event::Compared(DestinationState::Empty) => "nothing there",
        Event::CopyFailed(_) | Event::CommitRefused(_) | Event::RowUnreadable(_) => "failed",
        Event::Committed => "committed",
        Event::NotCommitted => "not matched",
        Event::Recorded => "recorded",
        Event::DeadLetterSent { confirmed: true } => "sent",
        Event::DeadLetterSent { confirmed: false } => "not confirmed",
        Event::DeadLetterQueueMissing => "no such queue",
        Event::Interrupted => "interrupted",
        // These come from no step.
        Event::Decoded | Event::Poison | Event::OtherRun | Event::LeaseEnded { .. } => "",
    }
}
