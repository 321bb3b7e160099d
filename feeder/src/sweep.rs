//! One sweep: from the cursor to the table's end, page by page. The cursor advances only past rows
//! whose sends the queue confirmed.

use std::mem;

use bucket_brigade_common::ledger::MAX_ID_BYTES;
use bucket_brigade_common::ledger::feed_source::RowPage;
use bucket_brigade_common::ledger::move_ledger::MoveFailure;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::MAX_BATCH_ENTRIES;
use bucket_brigade_common::row_id::RowId;
use futures::future::try_join;

use crate::backlog::BacklogLimit;
use crate::canary::CanarySelection;
use crate::cursor::{ConfirmedRows, FeedCursor};
use crate::retry::FeederStopped;
use crate::send::{BatchSender, permanent_failure};

pub struct TableSweep<'a> {
    pub cursor: FeedCursor<'a>,
    /// The cursor before the first page; none for the table's first id.
    pub start: Option<RowId>,
    pub rule: &'a PathRule,
    pub sender: BatchSender<'a>,
    pub backlog: BacklogLimit<'a>,
    /// A part only; none for all rows.
    pub canary: Option<CanarySelection>,
}

/// What a sweep came to.
#[derive(Debug, Clone, Default)]
pub struct SweepSummary {
    /// Rows fed, those of earlier processes included.
    pub fed: u64,
    /// Rows that can neither be fed nor recorded as failed.
    pub unrecorded: u64,
    /// Pages read by this process.
    pub pages: u64,
    /// The last id there was, in scope or not.
    pub last_id: Option<RowId>,
}

/// A page that was read and fed outside a sweep.
pub struct FedPage {
    pub last_id: RowId,
    pub fed: usize,
}

impl TableSweep<'_> {
    /// Feeds everything in scope after the cursor. While a page is sent the next one is read.
    pub async fn run(mut self) -> Result<SweepSummary, FeederStopped> {
        let cursor = self.cursor;
        let position = cursor.read_position().await?;
        let left = self.remaining_limit(position.sweep_fed);
        self.wait_while_held().await?;
        let start = self.start.take();
        let first = cursor.read_page(position.cursor.or(start).as_ref()).await?;
        let feeding = async |confirmed: &_| self.feed_pages(first, left, confirmed).await;
        let (pages, last_id) = cursor.follow(feeding).await?;
        Ok(SweepSummary {
            fed: cursor.read_position().await?.sweep_fed,
            unrecorded: self.sender.unrecorded.into_inner(),
            pages,
            last_id,
        })
    }

    /// From this page on. Returns how many there were, and the last id.
    async fn feed_pages(
        &mut self,
        mut page: RowPage,
        mut left: Option<usize>,
        confirmed: &ConfirmedRows,
    ) -> Result<(u64, Option<RowId>), FeederStopped> {
        let (cursor, mut pages, mut last_id) = (self.cursor, 0, None);
        while left != Some(0) {
            self.wait_while_held().await?;
            let is_failing = confirmed.wait_while_failing();
            self.cursor.retrier.wait_unless_stopped(is_failing).await?;
            let part = self.select_canary_rows(page, left);
            left = left.map(|left| left.saturating_sub(part.rows.len()));
            let Some(last) = part.last_id.clone() else {
                break;
            };
            let sending = self.send_page(part, &last, confirmed);
            ((), page) = try_join(sending, cursor.read_page(Some(&last))).await?;
            (pages, last_id) = (pages + 1, Some(last));
        }
        Ok((pages, last_id))
    }

    /// Reads one page, and feeds what is in scope there; none where the table ends. A feeder that dies meanwhile
    /// is followed by one that begins a sweep.
    pub async fn feed_page_after(
        &mut self,
        cursor: Option<&RowId>,
    ) -> Result<Option<FedPage>, FeederStopped> {
        self.wait_while_held().await?;
        let start = cursor.or(self.start.as_ref());
        let cursor = self.cursor;
        let page = cursor.read_page(start).await?;
        let Some(last_id) = page.last_id.clone() else {
            return Ok(None);
        };
        let fed = page.rows.len();
        if fed > 0 {
            cursor.begin_sweep().await?;
            let sending = async |confirmed: &_| self.send_page(page, &last_id, confirmed).await;
            cursor.follow(sending).await?;
        } else {
            self.send_page(page, &last_id, &ConfirmedRows::unfollowed())
                .await?;
        }
        Ok(Some(FedPage { last_id, fed }))
    }

    async fn wait_while_held(&self) -> Result<(), FeederStopped> {
        let released = self.cursor.throttle.wait_while_held();
        self.cursor.retrier.wait_unless_stopped(released).await
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
            if !page.is_spread {
                page.last_id = page.rows.last().map(|(id, _)| id.clone());
            }
        }
        page
    }

    /// Sends a page as backlog and rate allow; rows without a route are recorded as failed. While it takes its time
    /// the cursor moves within it.
    async fn send_page(
        &mut self,
        page: RowPage,
        last_id: &RowId,
        confirmed: &ConfirmedRows,
    ) -> Result<(), FeederStopped> {
        let (rows, mut failures) = self.split_unroutable(page.rows);
        failures.extend(page.unreadable);
        if !failures.is_empty() {
            self.sender.record_failures(&failures).await?;
        }
        if rows.is_empty() {
            // To read it costs the database as much as any: under a limit, a batch's worth.
            self.acquire_rows(MAX_BATCH_ENTRIES).await?;
        }
        let (mut rest, mut fed) = (&rows[..], 0);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.reserve_rows(rest.len()).await?);
            self.sender.send_all(now).await?;
            (rest, fed) = (later, fed + now.len());
            if let Some((cursor, _)) = now.last().filter(|_| !page.is_spread) {
                confirmed.confirm(cursor.clone(), mem::take(&mut fed), false);
            }
        }
        confirmed.confirm(last_id.clone(), fed, !rows.is_empty());
        Ok(())
    }

    /// Waits until some of so many rows may be sent; returns how many.
    async fn reserve_rows(&mut self, rows: usize) -> Result<usize, FeederStopped> {
        let room = self.backlog.wait_for_room(rows).await?;
        let rows = self.acquire_rows(room).await?;
        self.backlog.record_sent(rows);
        Ok(rows)
    }

    async fn acquire_rows(&self, rows: usize) -> Result<usize, FeederStopped> {
        let starting = self.cursor.throttle.acquire_rows(rows);
        self.cursor.retrier.wait_unless_stopped(starting).await
    }

    fn split_unroutable(
        &self,
        rows: Vec<(RowId, String)>,
    ) -> (Vec<(RowId, String)>, Vec<MoveFailure>) {
        let mut good = Vec::with_capacity(rows.len());
        let mut failures = Vec::new();
        for row in rows {
            let length = row.0.as_str().len();
            let problem = match self.rule.route_for(&row.1) {
                Err(reason) => Some((reason.error_code(), reason.to_string())),
                Ok(_) if length > MAX_ID_BYTES => Some((
                    "IdTooLong",
                    format!("its id has {length} bytes, and the ledger holds {MAX_ID_BYTES}"),
                )),
                Ok(_) => None,
            };
            match problem {
                None => good.push(row),
                Some((code, message)) => failures.push(permanent_failure(row, code, message)),
            }
        }
        (good, failures)
    }
}
