//! Sending rows to the queue until each is confirmed.

use std::sync::Arc;

use bucket_brigade_common::catalog::{Catalog, Failure};
use bucket_brigade_common::message::encode;
use bucket_brigade_common::queue::{BATCH, Entry, Outgoing, Queue};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::trace::{Tracer, attribute};
use futures::{TryStreamExt, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::persist::{Persist, Stopped};
use crate::trace::Parcel;

/// Batches on their way at a time; they hide the round trip.
const IN_FLIGHT: usize = 16;

/// Where rows go.
pub struct Send<'a> {
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// Where rows that the queue refuses are recorded.
    pub catalog: &'a dyn Catalog,
    /// Begins the rows' traces; none while traces are off.
    pub tracer: Option<&'a Tracer>,
    /// Tries again.
    pub persist: Persist<'a>,
}

impl Send<'_> {
    /// Sends all rows; returns when every one is confirmed by the queue or recorded as failed.
    ///
    /// # Errors
    /// [`Stopped`]: some may have been sent and will be sent again, which changes nothing.
    pub async fn send_all(&self, rows: &[(RowId, String)]) -> Result<(), Stopped> {
        stream::iter(rows.chunks(BATCH).map(Ok))
            .try_for_each_concurrent(IN_FLIGHT, |batch| self.send_batch(batch.to_vec()))
            .await
    }

    async fn send_batch(&self, batch: Vec<(RowId, String)>) -> Result<(), Stopped> {
        let parcel = |row| Parcel::new(row, self.tracer);
        let mut pending: Vec<Parcel> = batch.into_iter().map(parcel).collect();
        self.persist
            .queue("sending", async || {
                let entries = self.call(messages(&pending)?).await?;
                let mut again = Vec::new();
                let mut reason = String::new();
                for (parcel, entry) in pending.drain(..).zip(entries) {
                    match entry {
                        Entry::Done => parcel.span.set(attribute::OUTCOME, "sent"),
                        Entry::Retry(why) => {
                            reason = why;
                            again.push(parcel);
                        }
                        Entry::Refused(why) => self.refuse(parcel, why).await?,
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

    /// One request, in a task of its own: sixteen at a time keep more than one processor busy. Whoever
    /// stops waiting for it ends it.
    async fn call(&self, messages: Vec<Outgoing>) -> Result<Vec<Entry>, String> {
        let queue = Arc::clone(&self.queue);
        let sending = tokio::spawn(async move { queue.send(&messages).await });
        match AbortOnDropHandle::new(sending).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Records a row that can never be sent.
    async fn refuse(&self, Parcel { row, span }: Parcel, message: String) -> Result<(), String> {
        let code = "RefusedByQueue";
        span.set(attribute::OUTCOME, "refused");
        span.fail(code);
        let failure = failure(row, code, message);
        self.record(&[failure])
            .await
            .map_err(|Stopped| "stopped".to_owned())
    }

    /// Records failures, however long the database takes.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn record(&self, failures: &[Failure]) -> Result<(), Stopped> {
        self.persist
            .database("recording failures", async || {
                self.catalog.fail(failures).await
            })
            .await
    }
}

/// A permanent failure of a row the feeder could not send.
pub fn failure((id, path): (RowId, String), code: &str, message: String) -> Failure {
    tracing::warn!(row = %id, path, code, "row {id} cannot be fed: {message}");
    Failure {
        id,
        path,
        code: code.to_owned(),
        message,
        permanent: true,
    }
}

fn messages(parcels: &[Parcel]) -> Result<Vec<Outgoing>, String> {
    parcels.iter().map(message).collect()
}

fn message(Parcel { row, span }: &Parcel) -> Result<Outgoing, String> {
    Ok(Outgoing {
        body: encode(&row.0, &row.1).map_err(|error| error.to_string())?,
        traceparent: span.traceparent(),
    })
}
