//! Sending rows to the queue until each is confirmed.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bucket_brigade_common::ledger::move_ledger::{MoveFailure, MoveLedger, StatementError};
use bucket_brigade_common::message::{MessageOrigin, encode};
use bucket_brigade_common::queue::{
    EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, OutgoingMessage,
};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::trace::{TARGET, mark_failed, traceparent};
use futures::{TryStreamExt, stream};
use tokio_util::task::AbortOnDropHandle;
use tracing::Span;
use tracing::field::Empty;

use crate::retry::{FeederStopped, Retrier};

/// Batches in flight; they hide the round trip.
const MAX_CONCURRENT_BATCHES: usize = 16;

/// A row that is being sent, and its span: from the first send until the queue has confirmed it.
struct TracedRow {
    row: (RowId, String),
    /// The same however often the row is sent, so that each delivery belongs to one trace.
    span: Span,
}

impl TracedRow {
    /// Begins the row's trace, while traces are on.
    fn new(row: (RowId, String)) -> Self {
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

pub struct BatchSender<'a> {
    pub origin: MessageOrigin,
    pub queue: Arc<dyn MessageQueue>,
    /// Where rows that the queue refuses are recorded.
    pub ledger: &'a dyn MoveLedger,
    /// Rows whose failure could not be recorded.
    pub unrecorded: AtomicU64,
    pub retrier: Retrier<'a>,
}

impl BatchSender<'_> {
    /// Sends all rows; returns when every one is confirmed by the queue or recorded as failed.
    /// When it is stopped, some may have been sent and will be sent again, which changes nothing.
    pub async fn send_all(&self, rows: &[(RowId, String)]) -> Result<(), FeederStopped> {
        stream::iter(rows.chunks(MAX_BATCH_ENTRIES).map(Ok))
            .try_for_each_concurrent(MAX_CONCURRENT_BATCHES, |batch| {
                self.send_batch(batch.to_vec())
            })
            .await
    }

    async fn send_batch(&self, batch: Vec<(RowId, String)>) -> Result<(), FeederStopped> {
        let mut pending: Vec<TracedRow> = batch.into_iter().map(TracedRow::new).collect();
        self.retrier
            .retry_queue("sending", async || {
                let entries = self.send_request(self.encode_messages(&pending)?).await?;
                let mut again = Vec::new();
                let mut reason = String::new();
                for (row, entry) in pending.drain(..).zip(entries) {
                    match entry {
                        EntryOutcome::Done => {
                            row.span.record("bucket_brigade.outcome", "sent");
                        }
                        EntryOutcome::Retry(why) => {
                            reason = why;
                            again.push(row);
                        }
                        EntryOutcome::Refused(why) => self.record_refusal(row, why).await?,
                    }
                }
                pending = again;
                if pending.is_empty() {
                    return Ok(());
                }
                Err(format!(
                    "{} entries of a batch failed: {reason}",
                    pending.len()
                ))
            })
            .await
    }

    fn encode_messages(&self, rows: &[TracedRow]) -> Result<Vec<OutgoingMessage>, String> {
        let encode = |row| encode_message(self.origin, row);
        rows.iter().map(encode).collect()
    }

    /// One request, in a task of its own: sixteen at a time keep more than one processor busy. It ends
    /// when nothing waits for it any more.
    async fn send_request(
        &self,
        messages: Vec<OutgoingMessage>,
    ) -> Result<Vec<EntryOutcome>, String> {
        let queue = Arc::clone(&self.queue);
        let sending = tokio::spawn(async move { queue.send_batch(&messages).await });
        match AbortOnDropHandle::new(sending).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Records a row that can never be sent.
    async fn record_refusal(
        &self,
        TracedRow { row, span }: TracedRow,
        message: String,
    ) -> Result<(), String> {
        let code = "RefusedByQueue";
        span.record("bucket_brigade.outcome", "refused");
        mark_failed(&span, code);
        let failure = permanent_failure(row, code, message);
        self.record_failures(&[failure])
            .await
            .map_err(|FeederStopped| "stopped".to_owned())
    }

    pub async fn record_failures(&self, failures: &[MoveFailure]) -> Result<(), FeederStopped> {
        let unrecorded = self.retrier.retry_database("recording failures", async || {
            match self.ledger.record_failures(failures).await {
                Err(StatementError::Rejected { .. } | StatementError::Suspect { .. }) => {
                    self.record_each(failures).await
                }
                recorded => recorded.map(|()| 0),
            }
        });
        self.unrecorded
            .fetch_add(unrecorded.await?, Ordering::Relaxed);
        Ok(())
    }

    /// A failure that the database refuses to record is in the log alone. Returns how many there are.
    async fn record_each(&self, failures: &[MoveFailure]) -> Result<u64, StatementError> {
        let mut unrecorded = 0;
        for failure in failures {
            match self.ledger.record_failures(slice::from_ref(failure)).await {
                Err(StatementError::Rejected { code, message }) => {
                    let row = &failure.id;
                    tracing::error!(%row, code, "the failure of row {row} cannot be recorded: {message}");
                    unrecorded += 1;
                }
                recorded => recorded?,
            }
        }
        Ok(unrecorded)
    }
}

/// A permanent failure of a row the feeder could not send.
pub fn permanent_failure((id, path): (RowId, String), code: &str, message: String) -> MoveFailure {
    tracing::warn!(row = %id, path, code, "row {id} cannot be fed: {message}");
    MoveFailure {
        id,
        path,
        code: code.to_owned(),
        message,
        permanent: true,
        orphan: None,
    }
}

fn encode_message(
    origin: MessageOrigin,
    TracedRow { row, span }: &TracedRow,
) -> Result<OutgoingMessage, String> {
    Ok(OutgoingMessage {
        body: encode(origin, &row.0, &row.1).map_err(|error| error.to_string())?,
        traceparent: traceparent(span),
    })
}
