//! The feeder's place in the table: the pages, and the cursor that survives the feeder.

use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::{Page, Position, Scope};
use tokio::time::Instant;

use crate::persist::{Persist, Stopped};
use crate::steering::Steering;

/// Rows whose sends were confirmed, and for which the cursor has not been moved: the last one, and
/// how many.
pub type Sent = (RowId, usize);

/// Asks the ledger, however long it takes.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The rows.
    pub scope: &'a dyn Scope,
    /// Rows read at a time.
    pub page_size: u32,
    /// Hears how long a write took.
    pub steering: &'a Steering,
    /// Tries again.
    pub persist: Persist<'a>,
}

impl Place<'_> {
    /// Where the feeding stands, and whether it may go on.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn position(self) -> Result<Position, Stopped> {
        self.persist
            .database("reading the cursor", async || self.scope.position().await)
            .await
    }

    /// The page after `cursor`.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn page(self, cursor: Option<&RowId>) -> Result<Page, Stopped> {
        self.persist
            .database("reading a page", async || {
                self.scope.page(cursor, self.page_size).await
            })
            .await
    }

    /// Moves the cursor past what was sent.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn advance(self, (cursor, fed): &Sent) -> Result<(), Stopped> {
        let fed = u64::try_from(*fed).unwrap_or(0);
        self.persist
            .database("moving the cursor", async || {
                let began = Instant::now();
                let answer = self.scope.advance(cursor, fed).await;
                // A database that is away is waited for elsewhere; it is not slow.
                if answer.is_ok() {
                    self.steering.wrote(began.elapsed());
                }
                answer
            })
            .await
    }

    /// What is done beside the sending of a page, so that the queue does not wait for the database: moves
    /// the cursor past the page before, asks whether an operator has paused the run, and reads the page
    /// after. One after the other, on one connection.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn turn(self, sent: Option<Sent>, last: &RowId) -> Result<(Page, bool), Stopped> {
        if let Some(sent) = &sent {
            self.advance(sent).await?;
        }
        let is_paused = self.position().await?.paused;
        Ok((self.page(Some(last)).await?, is_paused))
    }
}
