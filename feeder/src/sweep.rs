//! One sweep: from the cursor to the table's end, page by page. The cursor advances only past rows
//! whose sends the queue confirmed.

use std::time::Duration;

use bucket_brigade_common::feed_source::{CursorPosition, FeedSource, RowPage};
use bucket_brigade_common::move_ledger::MoveFailure;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;
use futures::future::try_join;
use tokio::time::Instant;

use crate::backlog::BacklogLimit;
use crate::canary::CanarySelection;
use crate::cursor::FeedCursor;
use crate::progress::{FEEDING_PHASE, FeederProgress};
use crate::rate_limiter::RateLimiter;
use crate::retry::{FeederStopped, Retrier};
use crate::send::{BatchSender, permanent_failure};
use crate::steering::{PAUSED, Steering};

/// How often a feeder that spares the database looks whether it may go on.
const THROTTLE_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often the ledger is looked at: for the end of a pause, and, while a page takes its time, for a
/// pause or another rate.
const LEDGER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What a sweep works with.
pub struct TableSweep<'a> {
    /// The rows.
    pub source: &'a dyn FeedSource,
    /// The path rule.
    pub rule: &'a PathRule,
    /// Where rows go.
    pub sender: BatchSender<'a>,
    /// How many may go.
    pub backlog: BacklogLimit<'a>,
    /// How fast they may go.
    pub rate_limiter: RateLimiter,
    /// When the ledger was asked last whether they may.
    pub refreshed_at: Instant,
    /// Rows read at a time.
    pub page_size: u32,
    /// A part only; none for all rows.
    pub canary: Option<CanarySelection>,
    /// What holds the feeder back.
    pub throttle: &'a Steering,
    /// Where the phase is shown.
    pub progress: &'a FeederProgress,
    /// Tries again.
    pub retrier: Retrier<'a>,
}

impl<'a> TableSweep<'a> {
    /// Feeds everything in scope after the cursor. Returns the rows fed in the whole sweep, those of
    /// earlier processes included. While a page is sent the next one is read.
    ///
    /// # Errors
    /// [`Stopped`]; the cursor stands past rows whose sends were all confirmed.
    pub async fn run(mut self) -> Result<u64, FeederStopped> {
        let place = self.feed_cursor();
        let position = self.refresh_position().await?;
        let mut left = self.remaining_limit(position.sweep_fed);
        let mut page = place.read_page(position.cursor.as_ref()).await?;
        let mut sent = None;
        while left != Some(0) {
            let part = self.select_canary_rows(page, left);
            left = left.map(|left| left.saturating_sub(part.rows.len()));
            let Some(last) = part.last_id.clone() else {
                break;
            };
            let beside = place.advance_and_read_next(sent, &last);
            let (fed, (next, is_paused)) = try_join(self.send_page(part), beside).await?;
            sent = Some((last, fed));
            page = next;
            if is_paused {
                self.refresh_position().await?;
            }
        }
        if let Some(sent) = &sent {
            place.advance_past(sent).await?;
        }
        Ok(self.refresh_position().await?.sweep_fed)
    }

    fn feed_cursor(&self) -> FeedCursor<'a> {
        FeedCursor {
            source: self.source,
            page_size: self.page_size,
            throttle: self.throttle,
            retrier: self.retrier,
        }
    }

    /// How many rows a canary may still feed; none for any number.
    fn remaining_limit(&self, fed: u64) -> Option<usize> {
        let limit = self.canary.and_then(|canary| canary.limit);
        limit.map(|limit| usize::try_from(limit.saturating_sub(fed)).unwrap_or(usize::MAX))
    }

    /// What a canary feeds of a page: the sample, up to the limit.
    fn select_canary_rows(&self, mut page: RowPage, left: Option<usize>) -> RowPage {
        if let Some(canary) = self.canary {
            page.rows.retain(|(id, _)| canary.includes_row(id));
        }
        let most = left.unwrap_or(usize::MAX);
        if page.rows.len() > most {
            page.rows.truncate(most);
            page.last_id = page.rows.last().map(|(id, _)| id.clone());
        }
        page
    }

    /// Where the feeding stands, and how fast it may go on.
    async fn refresh_position(&mut self) -> Result<CursorPosition, FeederStopped> {
        let position = self.wait_while_paused().await?;
        self.rate_limiter.set_limit(position.rate_limit);
        self.refreshed_at = Instant::now();
        Ok(position)
    }

    async fn wait_while_paused(&self) -> Result<CursorPosition, FeederStopped> {
        loop {
            let position = self.feed_cursor().read_position().await?;
            if !position.paused {
                return Ok(position);
            }
            self.progress.set_phase(PAUSED);
            self.retrier
                .sleep_unless_stopped(LEDGER_POLL_INTERVAL)
                .await?;
        }
    }

    /// Spares a slow database, and obeys a pause that was heard of already.
    async fn wait_while_throttled(&self) -> Result<(), FeederStopped> {
        let mut was_held = false;
        while let Some((phase, _)) = self.throttle.held() {
            was_held = true;
            self.progress.set_phase(phase);
            self.retrier
                .sleep_unless_stopped(THROTTLE_POLL_INTERVAL)
                .await?;
        }
        if was_held {
            self.progress.set_phase(FEEDING_PHASE);
        }
        Ok(())
    }

    /// Sends a page as backlog and rate allow; rows without a route are recorded as failed. Returns how
    /// many rows were fed since the cursor moved last: while a page takes its time, it moves within it.
    async fn send_page(&mut self, page: RowPage) -> Result<usize, FeederStopped> {
        let (rows, failures) = self.split_unroutable(page.rows);
        if !failures.is_empty() {
            self.sender.record_failures(&failures).await?;
        }
        let (mut rest, mut fed, mut advanced) = (&rows[..], 0, Instant::now());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.reserve_rows(rest.len()).await?);
            self.sender.send_all(now).await?;
            (rest, fed) = (later, fed + now.len());
            if let Some((cursor, _)) = now.last()
                && advanced.elapsed() >= LEDGER_POLL_INTERVAL
            {
                self.feed_cursor()
                    .advance_past(&(cursor.clone(), fed))
                    .await?;
                (fed, advanced) = (0, Instant::now());
            }
        }
        Ok(fed)
    }

    /// Waits until some of so many rows may go; how many.
    async fn reserve_rows(&mut self, rows: usize) -> Result<usize, FeederStopped> {
        self.wait_while_throttled().await?;
        while let Some(wait) = self.rate_limiter.time_until_due() {
            self.retrier
                .sleep_unless_stopped(wait.min(LEDGER_POLL_INTERVAL))
                .await?;
            self.refresh_if_due().await?;
        }
        let room = self
            .backlog
            .reserve_messages(rows.min(self.rate_limiter.burst_size()))
            .await?;
        self.refresh_if_due().await?;
        self.rate_limiter.record_sent(room);
        if self.rate_limiter.is_limited() {
            self.progress.set_phase("feeding at the rate limit");
        }
        Ok(room)
    }

    /// Obeys a pause or another rate also within a page.
    async fn refresh_if_due(&mut self) -> Result<(), FeederStopped> {
        if self.refreshed_at.elapsed() >= LEDGER_POLL_INTERVAL {
            self.refresh_position().await?;
        }
        Ok(())
    }

    /// Rows without a route are told from the others.
    fn split_unroutable(
        &self,
        rows: Vec<(RowId, String)>,
    ) -> (Vec<(RowId, String)>, Vec<MoveFailure>) {
        let mut good = Vec::with_capacity(rows.len());
        let mut failures = Vec::new();
        for row in rows {
            match self.rule.route_for(&row.1) {
                Ok(_) => good.push(row),
                Err(reason) => failures.push(permanent_failure(
                    row,
                    reason.error_code(),
                    reason.to_string(),
                )),
            }
        }
        (good, failures)
    }
}
