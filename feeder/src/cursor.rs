//! The feeder's place in the table: the pages, and the cursor that survives the feeder.

use bucket_brigade_common::feed_source::{CursorPosition, FeedSource, RowPage};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::throttle::Throttle;
use tokio::time::Instant;

use crate::retry::{FeederStopped, Retrier};

/// Rows whose sends were confirmed, and for which the cursor has not been moved: the last one, and
/// how many.
pub type ConfirmedRows = (RowId, usize);

/// Asks the ledger, however long it takes.
#[derive(Clone, Copy)]
pub struct FeedCursor<'a> {
    /// The rows.
    pub source: &'a dyn FeedSource,
    /// Rows read at a time.
    pub page_size: u32,
    /// Hears how long a write took.
    pub throttle: &'a Throttle,
    /// Tries again.
    pub retrier: Retrier<'a>,
}

impl FeedCursor<'_> {
    /// Where the feeding stands.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn read_position(self) -> Result<CursorPosition, FeederStopped> {
        self.retrier
            .retry_database("reading the cursor", async || {
                self.source.cursor_position().await
            })
            .await
    }

    /// The page after `cursor`.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn read_page(self, cursor: Option<&RowId>) -> Result<RowPage, FeederStopped> {
        self.retrier
            .retry_database("reading a page", async || {
                self.source.next_page(cursor, self.page_size).await
            })
            .await
    }

    /// Moves the cursor past what was sent.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn advance_past(self, (cursor, fed): &ConfirmedRows) -> Result<(), FeederStopped> {
        let fed = u64::try_from(*fed).unwrap_or(0);
        self.retrier
            .retry_database("moving the cursor", async || {
                let began = Instant::now();
                let answer = self.source.advance_cursor(cursor, fed).await;
                // A database that is away is waited for elsewhere; it is not slow.
                if answer.is_ok() {
                    self.throttle.commit_took(began.elapsed());
                }
                answer
            })
            .await
    }

    /// What is done beside the sending of a page, so that the queue does not wait for the database: moves
    /// the cursor past the page before and reads the page after. One after the other, on one connection.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn advance_and_read_next(
        self,
        sent: Option<ConfirmedRows>,
        last: &RowId,
    ) -> Result<RowPage, FeederStopped> {
        if let Some(sent) = &sent {
            self.advance_past(sent).await?;
        }
        self.read_page(Some(last)).await
    }
}
