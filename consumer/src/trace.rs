//! The consumer's spans: one for each delivery of a message, and one within it for each step that the
//! protocol takes. They tell what is done; nothing is done because of them.

use std::sync::Arc;

use bucket_brigade_common::message::Task;
use bucket_brigade_common::object_store::Destination;
use bucket_brigade_common::queue::Message;
use bucket_brigade_common::trace::{Span, Tracer, attribute};

use crate::step::{Event, Seen, Step, Trouble};

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
    pub fn begin(&self, message: &Message, task: Option<&Task>) -> Delivery {
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

fn describe_message(span: &Span, message: &Message) {
    span.set(attribute::MESSAGING_SYSTEM, attribute::SQS);
    span.set(attribute::MESSAGE_ID, message.message_id.clone());
    span.set(attribute::RECEIVE_COUNT, i64::from(message.receive_count));
}

impl Between {
    fn describe(&self, span: &Span, Task { id, route }: &Task) {
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
    pub fn step(&mut self, step: &Step) -> Span {
        if !self.span.is_recording() {
            return Span::none();
        }
        self.note(step);
        name(step).map_or_else(Span::none, |name| self.span.child(name))
    }

    /// What a step means for the end.
    fn note(&mut self, step: &Step) {
        match step {
            Step::Settle(seen, _) => self.ending.outcome = what_was_seen(seen),
            Step::Fail(trouble) => {
                self.ending.outcome = "failed";
                self.ending.error = Some(trouble.code.clone());
            }
            Step::RecordPoison => self.ending.outcome = "poison",
            Step::LetGo => self.ending.outcome = "lease lost",
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
        if let Event::CopyFailed(Trouble { code, .. })
        | Event::CommitRefused(Trouble { code, .. }) = event
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

fn name(step: &Step) -> Option<&'static str> {
    match step {
        Step::Look => Some("decide"),
        Step::Copy => Some("copy"),
        Step::Compare => Some("compare"),
        Step::Commit(..) => Some("commit"),
        Step::Settle(..) | Step::Fail(_) | Step::RecordPoison => Some("record"),
        Step::Delete => Some("delete"),
        Step::Release(_) => Some("release"),
        Step::EndLease | Step::LetGo => None,
    }
}

fn what_was_seen(seen: &Seen) -> &'static str {
    match seen {
        Seen::Wanted { .. } => "wanted",
        Seen::Moved => "moved already",
        Seen::Changed { .. } => "changed by the application",
        Seen::Gone => "deleted by the application",
    }
}

fn outcome(event: &Event) -> &'static str {
    match event {
        Event::Looked(seen) => what_was_seen(seen),
        Event::Copied(_) => "copied",
        Event::DestinationTaken => "destination taken",
        Event::Compared(Destination::Same(_)) => "our own copy",
        Event::Compared(Destination::Different(_)) => "another object",
        Event::Compared(Destination::Empty) => "nothing there",
        Event::CopyFailed(_) | Event::CommitRefused(_) => "failed",
        Event::Committed => "committed",
        Event::NotCommitted => "not matched",
        Event::Recorded => "recorded",
        Event::Interrupted => "interrupted",
        // These come from no step.
        Event::Understood | Event::Poison | Event::LeaseEnded { .. } => "",
    }
}
