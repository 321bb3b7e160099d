//! Sending rows to the queue until each is confirmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{mem, slice};

use bucket_brigade_common::batch::flush_in_halves;
use bucket_brigade_common::ledger::move_ledger::{MoveFailure, MoveLedger, StatementError};
use bucket_brigade_common::message::{MessageOrigin, encode};
use bucket_brigade_common::queue::{
    EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue, OutgoingMessage, QueueError,
};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::trace::{TARGET, mark_failed, traceparent};
use futures::{TryStreamExt, stream};
use tokio::task::JoinError;
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

/// Why the queue refuses a row; none where it has confirmed it.
type RowResult = Result<Option<String>, FeederStopped>;

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

    /// A batch that is refused as a whole for one of its rows is halved until that row is alone.
    async fn send_batch(&self, batch: Vec<(RowId, String)>) -> Result<(), FeederStopped> {
        let rows = batch.into_iter().map(TracedRow::new).map(Arc::new);
        let rows: Vec<Arc<TracedRow>> = rows.collect();
        let attempt = async |part: Arc<[Arc<TracedRow>]>| {
            let sent = self.send_rows(&part).await;
            sent.unwrap_or_else(|stopped| Ok(vec![Err(stopped); part.len()]))
        };
        let refused_single = |error: QueueError| Ok(Some(error.to_string()));
        let results = flush_in_halves(rows.clone(), attempt, |_, _| false, refused_single).await;
        for (row, result) in rows.iter().zip(results) {
            match result? {
                None => {
                    row.span.record("bucket_brigade.outcome", "sent");
                }
                Some(reason) => self.record_refusal(row, reason).await?,
            }
        }
        Ok(())
    }

    /// Sends rows until the queue has answered for each. An error where it refuses them all for one of them.
    async fn send_rows(
        &self,
        rows: &[Arc<TracedRow>],
    ) -> Result<Result<Vec<RowResult>, QueueError>, FeederStopped> {
        let mut results = vec![Ok(None); rows.len()];
        let mut pending: Vec<usize> = (0..rows.len()).collect();
        let sending = self.retrier.retry_queue("sending", async || {
            let unsent = pending.iter();
            let unsent = unsent.map(|index| encode_message(self.origin, &rows[*index]));
            let entries = match self.send_request(unsent.collect::<Result<_, _>>()?).await {
                Err(error) if error.is_about_entries() => return Ok(Some(error)),
                sent => sent.map_err(|error| error.to_string())?,
            };
            let reason = note_entries(&mut pending, entries, &mut results);
            if pending.is_empty() {
                return Ok(None);
            }
            let failed = pending.len();
            Err(format!("{failed} entries of a batch failed: {reason}"))
        });
        Ok(sending.await?.map_or(Ok(results), Err))
    }

    /// One request, in a task of its own: sixteen at a time keep more than one processor busy. It ends
    /// when nothing waits for it any more.
    async fn send_request(
        &self,
        messages: Vec<OutgoingMessage>,
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        let queue = Arc::clone(&self.queue);
        let sending = tokio::spawn(async move { queue.send_batch(&messages).await });
        let failed = |error: JoinError| QueueError::Unavailable {
            operation: "SendMessageBatch",
            message: error.to_string(),
        };
        AbortOnDropHandle::new(sending).await.map_err(failed)?
    }

    /// Records a row that can never be sent.
    async fn record_refusal(
        &self,
        TracedRow { row, span }: &TracedRow,
        message: String,
    ) -> Result<(), FeederStopped> {
        let code = "RefusedByQueue";
        span.record("bucket_brigade.outcome", "refused");
        mark_failed(span, code);
        let failure = permanent_failure(row.clone(), code, message);
        self.record_failures(&[failure]).await
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

/// Keeps of `pending` what is to be sent again, and returns why.
fn note_entries(
    pending: &mut Vec<usize>,
    entries: Vec<EntryOutcome>,
    results: &mut [RowResult],
) -> String {
    let mut reason = String::new();
    for (index, entry) in mem::take(pending).into_iter().zip(entries) {
        match entry {
            EntryOutcome::Done => {}
            EntryOutcome::Retry(why) => {
                reason = why;
                pending.push(index);
            }
            EntryOutcome::Refused(why) => results[index] = Ok(Some(why)),
        }
    }
    reason
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

#[cfg(test)]
mod tests;
