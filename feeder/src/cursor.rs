//! The pages of the table, and the cursor that survives the feeder.

use bucket_brigade_common::ledger::feed_source::{CursorPosition, FeedSource, PageReader, RowPage};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::throttle::Throttle;
use tokio::time::Instant;

use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};

/// Rows whose sends were confirmed, and for which the cursor has not been moved: the last one, and
/// how many.
pub type ConfirmedRows = (RowId, usize);

/// Calls of the ledger, retried.
#[derive(Clone, Copy)]
pub struct FeedCursor<'a> {
    pub source: &'a dyn FeedSource,
    pub pages: &'a dyn PageReader,
    pub page_size: u32,
    pub progress: &'a FeederProgress,
    pub throttle: &'a Throttle,
    pub retrier: Retrier<'a>,
}

impl FeedCursor<'_> {
    pub async fn read_position(self) -> Result<CursorPosition, FeederStopped> {
        self.retrier
            .retry_database("reading the cursor", async || {
                self.source.cursor_position().await
            })
            .await
    }

    pub async fn begin_sweep(self) -> Result<(), FeederStopped> {
        self.retrier
            .retry_database("starting a sweep", async || self.source.begin_sweep().await)
            .await
    }

    pub async fn read_page(self, cursor: Option<&RowId>) -> Result<RowPage, FeederStopped> {
        let page = self
            .retrier
            .retry_database("reading a page", async || {
                self.pages.read(cursor, self.page_size).await
            })
            .await?;
        self.progress.count_page();
        Ok(page)
    }

    pub async fn advance_past(self, (cursor, fed): &ConfirmedRows) -> Result<(), FeederStopped> {
        let fed = u64::try_from(*fed).unwrap_or(0);
        self.retrier
            .retry_database("moving the cursor", async || {
                let began = Instant::now();
                let advanced = self.source.advance_cursor(cursor, fed).await;
                // A database that is away is waited for elsewhere; it is not slow.
                if advanced.is_ok() {
                    self.throttle.commit_took(began.elapsed());
                }
                advanced
            })
            .await
    }

    /// What is done beside the sending of a page, so that the queue does not wait for the database: moves
    /// the cursor past the page before and reads the page after. One after the other, on one connection.
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
