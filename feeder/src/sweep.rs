//! One sweep: from the cursor to the table's end, page by page. The cursor advances only past rows
//! whose sends the queue confirmed.

use std::mem;
use std::time::Duration;

use bucket_brigade_common::ledger::MAX_ID_BYTES;
use bucket_brigade_common::ledger::feed_source::RowPage;
use bucket_brigade_common::ledger::move_ledger::MoveFailure;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::MAX_BATCH_ENTRIES;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::sample;
use futures::future::try_join;
use tokio::time::Instant;

use crate::backlog::BacklogLimit;
use crate::cursor::{ConfirmedRows, FeedCursor};
use crate::retry::FeederStopped;
use crate::send::{BatchSender, permanent_failure};

/// How often the cursor moves while a page takes its time, or holds nothing to feed.
const CURSOR_INTERVAL: Duration = Duration::from_secs(1);

/// A canary: a part of the rows first, to look at what becomes of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CanarySelection {
    /// So many rows at most.
    pub limit: Option<u64>,
    /// So many of a hundred, the same ones each time; a larger share holds the smaller one.
    pub percent: Option<f64>,
}

impl CanarySelection {
    /// Whether a row is in the sample.
    pub fn includes_row(&self, id: &RowId) -> bool {
        self.percent
            .is_none_or(|percent| sample::includes_id(id.as_str(), 0, percent))
    }
}

pub struct TableSweep<'a> {
    pub cursor: FeedCursor<'a>,
    /// The cursor before the first page; none for the table's first id.
    pub start: Option<RowId>,
    pub rule: &'a PathRule,
    pub sender: BatchSender<'a>,
    pub backlog: BacklogLimit<'a>,
    /// A part only; none for all rows.
    pub canary: Option<CanarySelection>,
    /// Whether pages outside a sweep have begun one.
    pub has_begun: bool,
    /// Whether failures were retried before that.
    pub is_retried: bool,
}

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
    /// Feeds everything in scope after the cursor. While a page is sent the next one is read. When it is stopped, the cursor
    /// stands past rows whose sends were all confirmed.
    pub async fn run(mut self) -> Result<SweepSummary, FeederStopped> {
        let cursor = self.cursor;
        let position = cursor.read_position().await?;
        let mut left = self.remaining_limit(position.sweep_fed);
        self.wait_while_held().await?;
        let first = position.cursor.as_ref().or(self.start.as_ref());
        let mut page = cursor.read_page(first).await?;
        let (mut sent, mut advanced): (Option<ConfirmedRows>, _) = (None, Instant::now());
        let (mut pages, mut own) = (0, 0);
        while left != Some(0) {
            self.wait_while_held().await?;
            let part = self.select_canary_rows(page, left);
            left = left.map(|left| left.saturating_sub(part.rows.len()));
            let Some(last) = part.last_id.clone() else {
                break;
            };
            // Where nothing is fed, the cursor moves only now and then.
            let is_due = |(_, fed): &mut _| *fed > 0 || advanced.elapsed() >= CURSOR_INTERVAL;
            let due = sent.take_if(is_due);
            if due.is_some() {
                advanced = Instant::now();
            }
            let beside = cursor.advance_and_read_next(due, &last);
            let (fed, next) = try_join(self.send_page(part), beside).await?;
            sent = Some((last, fed));
            own += fed as u64;
            page = next;
            pages += 1;
        }
        if let Some(sent) = &sent {
            cursor.advance_past(sent).await?;
        }
        Ok(SweepSummary {
            // Its own count, too: a feeder that has lost its lock may begin a sweep in the ledger.
            fed: cursor.read_position().await?.sweep_fed.max(own),
            unrecorded: self.sender.unrecorded.into_inner(),
            pages,
            last_id: sent.map(|(last, _)| last),
        })
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
        if fed > 0 && !mem::replace(&mut self.has_begun, true) {
            self.is_retried = cursor.read_position().await?.sweep_fed > 0;
            cursor.begin_sweep().await?;
        }
        let confirmed = (last_id.clone(), self.send_page(page).await?);
        if fed > 0 {
            cursor.advance_past(&confirmed).await?;
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

    /// Sends a page as backlog and rate allow; rows without a route are recorded as failed. Returns how
    /// many rows were fed since the cursor moved last: while a page takes its time, it moves within it.
    async fn send_page(&mut self, page: RowPage) -> Result<usize, FeederStopped> {
        let has_cursors = !page.is_spread;
        let (rows, mut failures) = self.split_unroutable(page.rows);
        failures.extend(page.unreadable);
        if !failures.is_empty() {
            self.sender.record_failures(&failures).await?;
        }
        if rows.is_empty() {
            // To read it costs the database as much as any: under a limit, a batch's worth.
            self.acquire_rows(MAX_BATCH_ENTRIES).await?;
        }
        let (mut rest, mut fed, mut advanced) = (&rows[..], 0, Instant::now());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.reserve_rows(rest.len()).await?);
            self.sender.send_all(now).await?;
            (rest, fed) = (later, fed + now.len());
            if let Some((cursor, _)) = now.last()
                && has_cursors
                && advanced.elapsed() >= CURSOR_INTERVAL
            {
                self.cursor.advance_past(&(cursor.clone(), fed)).await?;
                (fed, advanced) = (0, Instant::now());
            }
        }
        Ok(fed)
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
