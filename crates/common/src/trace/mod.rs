//! Traces: the way of one image as OpenTelemetry spans, from the feeder's send to the consumer's delete.
//! Off unless OpenTelemetry's own variables ask for it, and then nothing here costs more than a look at
//! an empty `Option`.
//!
//! The trace is carried by the message: the feeder gives each one a [`Traceparent`], and whoever receives
//! it goes on from there. It says where spans belong and nothing else: no decision is made on it.

pub mod attribute;
mod collector;
mod export;
mod parent;
mod settings;
mod span;

pub use export::{FLUSH, Traces};
pub use parent::Traceparent;
pub use settings::TraceSettings;
pub use span::{Mark, Span, Tracer, event};
