//! Sending rows to the queue until each is confirmed.

use std::sync::Arc;

use bucket_brigade_common::catalog::{Catalog, Failure};
use bucket_brigade_common::message::encode;
use bucket_brigade_common::queue::{BATCH, Entry, Queue};
use bucket_brigade_common::row_id::RowId;
use futures::{TryStreamExt, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::persist::{Persist, Stopped};

/// Batches on their way at a time; they hide the round trip.
const IN_FLIGHT: usize = 16;

/// Where rows go.
pub struct Send<'a> {
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// Where rows that the queue refuses are recorded.
    pub catalog: &'a dyn Catalog,
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
        let mut pending = batch;
        self.persist
            .queue("sending", async || {
                let bodies = bodies(&pending)?;
                let entries = self.call(bodies).await?;
                let mut again = Vec::new();
                let mut reason = String::new();
                for (row, entry) in pending.drain(..).zip(entries) {
                    match entry {
                        Entry::Done => {}
                        Entry::Retry(why) => {
                            reason = why;
                            again.push(row);
                        }
                        Entry::Refused(why) => self.fail(row, "RefusedByQueue", why).await?,
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
    async fn call(&self, bodies: Vec<String>) -> Result<Vec<Entry>, String> {
        let queue = Arc::clone(&self.queue);
        let sending = tokio::spawn(async move { queue.send(&bodies).await });
        match AbortOnDropHandle::new(sending).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Records a row that can never be sent.
    async fn fail(&self, row: (RowId, String), code: &str, message: String) -> Result<(), String> {
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

fn bodies(rows: &[(RowId, String)]) -> Result<Vec<String>, String> {
    let body = |(id, path): &(RowId, String)| encode(id, path).map_err(|error| error.to_string());
    rows.iter().map(body).collect()
}
