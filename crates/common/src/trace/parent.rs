//! What a message carries: W3C's `traceparent`.

use std::fmt;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The span that a message's further spans belong under. Written as W3C Trace Context has it,
/// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traceparent {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl Traceparent {
    /// The name of the message attribute.
    pub const NAME: &'static str = "traceparent";

    /// Its length in bytes. Later versions of the standard may be longer; none exists.
    const LENGTH: usize = 55;

    /// Reads one. None for anything that is not a whole and valid one: whoever may send to the queue may
    /// write anything there.
    pub fn parse(text: &str) -> Option<Self> {
        let is_ours = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        if text.len() != Self::LENGTH || !text.bytes().all(is_ours) {
            return None;
        }
        let mut parts = text.split('-');
        let mut next = |length| parts.next().filter(|part| part.len() == length);
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let context = Self {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
            flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        };
        (version != "ff" && context.remote().is_valid()).then_some(context)
    }

    /// The same for a span of ours; none when it belongs to no trace.
    pub(super) fn of(context: &SpanContext) -> Option<Self> {
        context.is_valid().then(|| Self {
            trace: context.trace_id(),
            span: context.span_id(),
            flags: context.trace_flags() & TraceFlags::SAMPLED,
        })
    }

    /// As the parent of spans in this process.
    pub(super) fn remote(self) -> SpanContext {
        SpanContext::new(
            self.trace,
            self.span,
            self.flags,
            true,
            TraceState::default(),
        )
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace}-{span}-{flags:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_written_is_what_was_read() {
        let parent = Traceparent::parse(EXAMPLE).unwrap();
        assert_eq!(parent.to_string(), EXAMPLE);
        assert!(parent.remote().is_sampled());
        // A version to come, and flags that nobody knows yet.
        let later = EXAMPLE.replacen("00", "01", 1).replace("-01", "-ff");
        assert_eq!(Traceparent::parse(&later), Some(parent));
    }

    #[test]
    fn what_is_not_a_whole_one_is_none() {
        for text in [
            "",
            "00",
            &EXAMPLE[1..],
            &format!("{EXAMPLE}0"),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace("00-", "ff-"),
            &EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16)),
            &EXAMPLE.replace("0af7", "+af7"),
            &EXAMPLE.replace("-01", "--1"),
            &EXAMPLE.replace("0af7", "é76"),
            &"-".repeat(55),
            &"-".repeat(1 << 20),
        ] {
            assert_eq!(Traceparent::parse(text), None, "{text:.60}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_left(text in "[0-9a-f-]{55}|.{0,80}") {
            if let Some(parent) = Traceparent::parse(&text) {
                prop_assert!(parent.remote().is_valid());
                prop_assert_eq!(&parent.to_string()[3..53], &text[3..53]);
            }
        }
    }
}
