//! Spans, and what is done with them where the work is done.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use super::{Traceparent, attribute};

/// Begins traces. There is one only while traces are exported.
#[derive(Debug, Clone)]
pub struct Tracer(Arc<SdkTracer>);

impl Tracer {
    pub(super) fn new(tracer: SdkTracer) -> Self {
        Self(Arc::new(tracer))
    }

    /// The span of a message that is sent: the beginning of its trace.
    pub fn sending(&self, name: &'static str) -> Span {
        self.begin(name, SpanKind::Producer, &Context::new())
    }

    /// The span of a message that was received: it goes on with the trace the message carries, or begins
    /// one.
    pub fn received(&self, name: &'static str, parent: Option<Traceparent>) -> Span {
        let context = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(parent.remote())
        });
        self.begin(name, SpanKind::Consumer, &context)
    }

    fn begin(&self, name: &'static str, kind: SpanKind, parent: &Context) -> Span {
        let builder = self.0.span_builder(name).with_kind(kind);
        let span = self.0.build_with_context(builder, parent);
        Span(Some(Open {
            tracer: self.clone(),
            is_recording: span.is_recording(),
            context: parent.with_span(span),
        }))
    }
}

/// Something that takes its time. It ends when this is dropped, whatever becomes of the work.
#[derive(Debug, Default)]
#[must_use = "a span that is dropped has ended"]
pub struct Span(Option<Open>);

#[derive(Debug)]
struct Open {
    tracer: Tracer,
    /// False when sampling has left this trace out: it is carried on, and told to nobody.
    is_recording: bool,
    context: Context,
}

impl Span {
    /// No span: traces are off.
    pub fn none() -> Self {
        Self(None)
    }

    /// The span when somebody will see it.
    fn recording(&self) -> Option<&Open> {
        self.0.as_ref().filter(|open| open.is_recording)
    }

    /// Whether somebody will see it.
    pub fn is_recording(&self) -> bool {
        self.recording().is_some()
    }

    /// A part of it.
    pub fn child(&self, name: &'static str) -> Self {
        self.recording().map_or_else(Self::none, |open| {
            open.tracer.begin(name, SpanKind::Internal, &open.context)
        })
    }

    /// What a message carries so that its receiver goes on from here.
    pub fn traceparent(&self) -> Option<Traceparent> {
        let open = self.0.as_ref()?;
        Traceparent::of(open.context.span().span_context())
    }

    /// Says something of it, once for each key.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(open) = self.recording() {
            let attribute = KeyValue::new(key, value);
            open.context.span().set_attribute(attribute);
        }
    }

    /// It failed, with this short code.
    pub fn fail(&self, code: &str) {
        if let Some(open) = self.recording() {
            let span = open.context.span();
            span.set_attribute(KeyValue::new(attribute::ERROR, code.to_owned()));
            span.set_status(Status::Error {
                description: Cow::Owned(code.to_owned()),
            });
        }
    }

    /// Does a piece of work within it: what the work tells by [`event`] is told of this span. The work is
    /// pinned by the caller, so that it has no second place in the caller's own future.
    pub fn around<'a, F: Future>(
        &'a self,
        mut work: Pin<&'a mut F>,
    ) -> impl Future<Output = F::Output> + use<'a, F> {
        let context = self.recording().map(|open| &open.context);
        std::future::poll_fn(move |waker| -> Poll<F::Output> {
            let _within = context.map(|context| context.clone().attach());
            work.as_mut().poll(waker)
        })
    }
}

/// Tells something of the span within which the work is done; without one, nothing.
pub fn event(name: &'static str, key: &'static str, value: impl FnOnce() -> String) {
    Context::map_current(|context| {
        if context.has_active_span() {
            let attributes = vec![KeyValue::new(key, value())];
            context.span().add_event(name, attributes);
        }
    });
}

/// The span within which a request is made, for whoever carries it out with others elsewhere.
#[derive(Debug, Default)]
pub struct Mark(Option<Context>);

impl Mark {
    /// The span within which the work is done now.
    pub fn here() -> Self {
        let active = |context: &Context| context.has_active_span().then(|| context.clone());
        Self(Context::map_current(active))
    }

    /// Tells something of it.
    pub fn event(&self, name: &'static str, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            let attributes = vec![KeyValue::new(key, value)];
            context.span().add_event(name, attributes);
        }
    }
}
