//! The feeder's span: one row from its first send until the queue has confirmed it.

use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::trace::{Span, Tracer, attribute};

/// A row that is being sent, and its span.
pub struct Parcel {
    /// The row.
    pub row: (RowId, String),
    /// Its span; the same however often it is sent, so that each delivery belongs to one trace.
    pub span: Span,
}

impl Parcel {
    /// Begins the row's trace, if there are traces.
    pub fn new(row: (RowId, String), tracer: Option<&Tracer>) -> Self {
        let span = tracer.map_or_else(Span::none, |tracer| tracer.sending("feed"));
        if span.is_recording() {
            span.set(attribute::ROW, row.0.to_string());
            span.set(attribute::OLD_PATH, row.1.clone());
            span.set(attribute::MESSAGING_SYSTEM, attribute::SQS);
        }
        Self { row, span }
    }
}
