//! The pages of the table, and the cursor that survives the feeder.

use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::{CursorPosition, FeedSource, PageReader, RowPage};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::throttle::Throttle;
use futures::future::join;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::retry::{FeederStopped, Retrier};

/// How often the cursor moves while a page takes its time, or holds nothing to feed.
const CURSOR_INTERVAL: Duration = Duration::from_secs(1);

/// How long the cursor may still take once the feeder is stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How far the queue has confirmed the sends.
#[derive(Debug, Clone)]
struct ConfirmedPosition {
    last: Option<RowId>,
    fed: u64,
    /// When the writer was last asked to write.
    asked: Instant,
}

/// Where sends that the queue confirmed are noted for [`FeedCursor::follow`].
pub struct ConfirmedRows {
    newest: watch::Sender<ConfirmedPosition>,
    /// False while the ledger refuses to move the cursor.
    is_moving: watch::Receiver<bool>,
}

/// The other end.
struct CursorWriter {
    positions: watch::Receiver<ConfirmedPosition>,
    is_moving: watch::Sender<bool>,
}

impl ConfirmedRows {
    fn channel() -> (Self, CursorWriter) {
        let (newest, positions) = watch::channel(ConfirmedPosition {
            last: None,
            fed: 0,
            asked: Instant::now(),
        });
        let (moving, is_moving) = watch::channel(true);
        let writer = CursorWriter {
            positions,
            is_moving: moving,
        };
        (Self { newest, is_moving }, writer)
    }

    /// Of a page that is not to move the cursor.
    pub fn unfollowed() -> Self {
        Self::channel().0
    }

    /// Notes that all rows up to `last` are confirmed, `fed` more of them. A page that was fed is written at
    /// once.
    pub fn confirm(&self, last: RowId, fed: usize, is_fed_page: bool) {
        self.newest.send_if_modified(|newest| {
            newest.last = Some(last);
            newest.fed += u64::try_from(fed).unwrap_or(0);
            let is_due = is_fed_page || newest.asked.elapsed() >= CURSOR_INTERVAL;
            if is_due {
                newest.asked = Instant::now();
            }
            is_due
        });
    }

    /// A slow ledger delays no page; one that fails would be left behind without a bound.
    pub async fn wait_while_failing(&self) {
        // An error is a writer that was stopped.
        let _ = self
            .is_moving
            .clone()
            .wait_for(|is_moving| *is_moving)
            .await;
    }
}

/// Calls of the ledger, retried.
#[derive(Clone, Copy)]
pub struct FeedCursor<'a> {
    pub source: &'a dyn FeedSource,
    pub pages: &'a dyn PageReader,
    pub page_size: u32,
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
        self.retrier
            .retry_database("reading a page", async || {
                self.pages.read(cursor, self.page_size).await
            })
            .await
    }

    /// Moves the cursor behind what `feeding` confirms, beside it and on another connection, so that no page waits
    /// for a commit. Returns when the last position is written, also where the feeding was stopped.
    pub async fn follow<T>(
        self,
        feeding: impl AsyncFnOnce(&ConfirmedRows) -> Result<T, FeederStopped>,
    ) -> Result<T, FeederStopped> {
        let (confirmed, writer) = ConfirmedRows::channel();
        let feeding = async move {
            let fed = feeding(&confirmed).await;
            drop(confirmed);
            fed
        };
        let writing = async {
            tokio::select! {
                biased;
                written = self.write_positions(writer) => written,
                () = self.stop_timeout() => Err(FeederStopped),
            }
        };
        let (fed, written) = join(feeding, writing).await;
        written.and(fed)
    }

    async fn stop_timeout(self) {
        self.retrier.stop.cancelled().await;
        sleep(STOP_TIMEOUT).await;
    }

    /// One position at a time, the newest each time. A statement that has begun is waited for when the feeder is
    /// stopped: its rows would be fed again.
    async fn write_positions(self, mut writer: CursorWriter) -> Result<(), FeederStopped> {
        let stop = &CancellationToken::new();
        let cursor = FeedCursor {
            retrier: Retrier {
                stop,
                ..self.retrier
            },
            ..self
        };
        let (mut written, mut is_open) = (0, true);
        let mut last_written = None;
        while is_open {
            is_open = writer.positions.changed().await.is_ok();
            let ConfirmedPosition { last, fed, .. } = writer.positions.borrow_and_update().clone();
            if let Some(last) = last.filter(|last| last_written.as_ref() != Some(last)) {
                cursor
                    .advance_past(&last, fed - written, &writer.is_moving)
                    .await?;
                (written, last_written) = (fed, Some(last));
            }
        }
        Ok(())
    }

    async fn advance_past(
        self,
        cursor: &RowId,
        fed: u64,
        is_moving: &watch::Sender<bool>,
    ) -> Result<(), FeederStopped> {
        self.retrier
            .retry_database("moving the cursor", async || {
                let began = Instant::now();
                let advanced = self.source.advance_cursor(cursor, fed).await;
                // A database that is away is waited for elsewhere; it is not slow.
                if advanced.is_ok() {
                    self.throttle.commit_took(began.elapsed());
                }
                is_moving.send_replace(advanced.is_ok());
                advanced
            })
            .await
    }
}
