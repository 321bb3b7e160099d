//! Traces: `tracing` spans, from the feeder's send to the consumer's delete, exported by OpenTelemetry.
//! Off unless OpenTelemetry's own variables ask for it: then no subscriber wants these spans, and none is made.
//!
//! Each message carries its trace in W3C's `traceparent`. It says where spans belong; nothing is decided by it.

mod context;
mod export;
mod settings;

pub use context::{TRACEPARENT, continue_trace, current_span, is_traceparent, traceparent};
pub use export::{FLUSH_TIMEOUT, TraceLayer, Traces};
pub use settings::TraceSettings;
use tracing::Span;

/// The target of every span and event that is exported; the log leaves it out.
pub const TARGET: &str = "bucket_brigade::trace";

/// Sets a span's error type and status. The span has the fields `error.type` and `otel.status_description`.
pub fn mark_failed(span: &Span, code: &str) {
    span.record("error.type", code);
    span.record("otel.status_description", code);
}
