//! The consumer's spans: one for each delivery of a message, and one within it for each step that the
//! protocol takes. They tell what is done; nothing is done because of them.

use std::sync::Arc;

use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::object_store::DestinationState;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::trace::{Span, Tracer, attribute};

use crate::protocol::{Action, Event, FailureCause, RowState};

/// Makes the spans of deliveries; none by default.
#[derive(Debug, Clone, Default)]
pub struct Deliveries(Option<Arc<Between>>);

#[derive(Debug)]
struct Between {
    tracer: Tracer,
    source_bucket: String,
    destination_bucket: String,
}

impl Deliveries {
    /// Traces moves between these buckets, if there are traces.
    pub fn new(tracer: Option<Tracer>, source_bucket: &str, destination_bucket: &str) -> Self {
        Self(tracer.map(|tracer| {
            Arc::new(Between {
                tracer,
                source_bucket: source_bucket.to_owned(),
                destination_bucket: destination_bucket.to_owned(),
            })
        }))
    }

    /// The span of a delivery, under the one that its message carries. A message that was not understood
    /// has no task.
    pub fn begin(&self, message: &ReceivedMessage, task: Option<&MoveTask>) -> Delivery {
        let Some(between) = &self.0 else {
            return Delivery::default();
        };
        let span = between.tracer.received("move", message.traceparent);
        if span.is_recording() {
            describe_message(&span, message);
            if let Some(task) = task {
                between.describe(&span, task);
            }
        }
        Delivery {
            span,
            ending: Ending::default(),
        }
    }
}

fn describe_message(span: &Span, message: &ReceivedMessage) {
    span.set(attribute::MESSAGING_SYSTEM, attribute::SQS);
    span.set(attribute::MESSAGE_ID, message.message_id.clone());
    span.set(attribute::RECEIVE_COUNT, i64::from(message.receive_count));
}

impl Between {
    fn describe(&self, span: &Span, MoveTask { id, route }: &MoveTask) {
        for (key, value) in [
            (attribute::ROW, id.as_str()),
            (attribute::OLD_PATH, &route.old_path),
            (attribute::NEW_PATH, &route.new_path),
            (attribute::SOURCE_BUCKET, &self.source_bucket),
            (attribute::SOURCE_KEY, &route.source_key),
            (attribute::DESTINATION_BUCKET, &self.destination_bucket),
            (attribute::DESTINATION_KEY, &route.destination_key),
        ] {
            span.set(key, value.to_owned());
        }
    }
}

/// One delivery of one message.
#[derive(Debug, Default)]
pub struct Delivery {
    span: Span,
    ending: Ending,
}

/// How a delivery ends, as far as is known.
#[derive(Debug, Default)]
struct Ending {
    outcome: &'static str,
    error: Option<String>,
}

impl Delivery {
    /// The span of a step that is about to be taken; none for a step that takes no time.
    pub fn step(&mut self, step: &Action) -> Span {
        if !self.span.is_recording() {
            return Span::none();
        }
        self.note(step);
        name(step).map_or_else(Span::none, |name| self.span.child(name))
    }

    /// What a step means for the end.
    fn note(&mut self, step: &Action) {
        match step {
            Action::RecordSettlement(seen, _) => self.ending.outcome = what_was_seen(seen),
            Action::RecordFailure(trouble) => {
                self.ending.outcome = "failed";
                self.ending.error = Some(trouble.code.clone());
            }
            Action::RecordPoison => self.ending.outcome = "poison",
            Action::Abandon => self.ending.outcome = "lease lost",
            _ => {}
        }
    }

    /// What became of a step.
    pub fn stepped(&mut self, span: &Span, event: &Event) {
        if !self.span.is_recording() {
            return;
        }
        match event {
            Event::Committed => self.ending.outcome = "moved",
            Event::Interrupted => self.ending.outcome = "given back",
            _ => {}
        }
        span.set(attribute::OUTCOME, outcome(event));
        if let Event::CopyFailed(FailureCause { code, .. })
        | Event::CommitRefused(FailureCause { code, .. }) = event
        {
            span.fail(code);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let Ending { outcome, error } = &self.ending;
        if !outcome.is_empty() {
            self.span.set(attribute::OUTCOME, *outcome);
        }
        if let Some(code) = error {
            self.span.fail(code);
        }
    }
}

fn name(step: &Action) -> Option<&'static str> {
    match step {
        Action::ReadRow => Some("decide"),
        Action::Copy => Some("copy"),
        Action::Compare => Some("compare"),
        Action::Commit(..) => Some("commit"),
        Action::RecordSettlement(..) | Action::RecordFailure(_) | Action::RecordPoison => {
            Some("record")
        }
        Action::Delete => Some("delete"),
        Action::Release(_) => Some("release"),
        Action::EndLease | Action::Abandon => None,
    }
}

fn what_was_seen(seen: &RowState) -> &'static str {
    match seen {
        RowState::NeedsMove { .. } => "wanted",
        RowState::Moved => "moved already",
        RowState::Changed { .. } => "changed by the application",
        RowState::Deleted => "deleted by the application",
    }
}

fn outcome(event: &Event) -> &'static str {
    match event {
        Event::RowRead(seen) => what_was_seen(seen),
        Event::Copied(_) => "copied",
        Event::DestinationExists => "destination taken",
        Event::Compared(DestinationState::Same(_)) => "our own copy",
        Event::Compared(DestinationState::Different(_)) => "another object",
        Event::Compared(DestinationState::Empty) => "nothing there",
        Event::CopyFailed(_) | Event::CommitRefused(_) => "failed",
        Event::Committed => "committed",
        Event::NotCommitted => "not matched",
        Event::Recorded => "recorded",
        Event::Interrupted => "interrupted",
        // These come from no step.
        Event::Decoded | Event::Poison | Event::LeaseEnded { .. } => "",
    }
}
