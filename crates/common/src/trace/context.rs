//! A span's place in its trace, as messages carry it.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TARGET;

/// The name of the message attribute.
pub const TRACEPARENT: &str = "traceparent";

/// The length of `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`.
const TRACEPARENT_LENGTH: usize = 55;

/// Whether a text may be a `traceparent`. Anyone who may send to the queue can write anything there, and the
/// propagator accepts more than the standard: a sign before a number, for example.
pub fn is_traceparent(text: &str) -> bool {
    let is_allowed = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    text.len() == TRACEPARENT_LENGTH && text.bytes().all(is_allowed)
}

/// What a message carries so that its receiver continues this span's trace; none while traces are off.
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Makes a new span the child of the one that a message carries, if it carries one. False when sampling
/// leaves the trace out.
pub fn continue_trace(span: &Span, traceparent: Option<&str>) -> bool {
    if let Some(text) = traceparent {
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), text.to_owned())]);
        let propagator = TraceContextPropagator::new();
        let parent = propagator.extract_with_context(&Context::new(), &carrier);
        // Fails only for a span that has begun or that no layer wants.
        drop(span.set_parent(parent));
    }
    span.context().span().is_recording()
}

/// The span within which the work is done, for a request that a batch carries out elsewhere.
pub fn current_span() -> Span {
    // Looking it up costs more than asking whether spans are wanted.
    if tracing::enabled!(target: TARGET, Level::INFO) {
        Span::current()
    } else {
        Span::none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use proptest::prelude::*;
    use tracing::subscriber::NoSubscriber;
    use tracing_subscriber::layer::SubscriberExt;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// What the span of a message with this attribute hands on.
    fn continued(text: &str) -> (bool, String) {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(target: TARGET, parent: None, "move");
            let is_recording = continue_trace(&span, Some(text));
            (is_recording, traceparent(&span).unwrap())
        })
    }

    #[test]
    fn a_span_continues_the_trace_of_its_message() {
        let (is_recording, next) = continued(EXAMPLE);
        assert!(is_recording && next != EXAMPLE);
        assert_eq!(next[..36], EXAMPLE[..36]);
        assert!(next.ends_with("-01"));
        // What was left out by sampling stays left out.
        let (is_recording, next) = continued(&EXAMPLE.replace("-01", "-00"));
        assert!(!is_recording && next.ends_with("-00"));
    }

    #[test]
    fn without_a_subscriber_there_is_no_span_and_no_context() {
        // Another test may have set one for the process.
        tracing::subscriber::with_default(NoSubscriber::default(), || {
            let span = tracing::info_span!(target: TARGET, parent: None, "feed");
            assert!(span.is_disabled());
            assert_eq!(traceparent(&span), None);
            assert!(current_span().is_none());
        });
    }

    #[test]
    fn what_is_not_a_whole_one_is_left() {
        for text in [
            "",
            "00",
            &EXAMPLE[1..],
            &format!("{EXAMPLE}0"),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace("0af7", "+af7"),
            &EXAMPLE.replace("0af7", "é76"),
            &"-".repeat(1 << 20),
        ] {
            assert!(!is_traceparent(text), "{text:.60}");
        }
        for text in [
            &EXAMPLE.replace("00-", "ff-"),
            &EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16)),
            &EXAMPLE.replace("-01", "--1"),
            &"-".repeat(55),
        ] {
            assert!(is_traceparent(text));
            assert_ne!(continued(text).1[..36], text[..36], "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_continued_or_left(text in "[0-9a-f-]{55}|.{0,80}") {
            if is_traceparent(&text) {
                prop_assert!(is_traceparent(&continued(&text).1));
            }
        }
    }
}
