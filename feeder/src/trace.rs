//! The feeder's span: one row from its first send until the queue has confirmed it.

use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::trace::TARGET;
use tracing::Span;
use tracing::field::Empty;

/// A row that is being sent, and its span.
pub struct TracedRow {
    pub row: (RowId, String),
    /// The same however often the row is sent, so that each delivery belongs to one trace.
    pub span: Span,
}

impl TracedRow {
    /// Begins the row's trace, while traces are on.
    pub fn new(row: (RowId, String)) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "feed",
            otel.kind = "producer",
            otel.status_description = Empty,
            messaging.system = "aws_sqs",
            bucket_brigade.row_id = %row.0,
            bucket_brigade.old_path = row.1,
            bucket_brigade.outcome = Empty,
            "error.type" = Empty,
        );
        Self { row, span }
    }
}
