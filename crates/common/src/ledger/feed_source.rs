//! What the feeder asks of the database, as a trait of only those calls: which rows are in scope,
//! and how far the feeding has come.

use std::ops::ControlFlow;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::empty_scope::PathSample;
use crate::ledger::move_ledger::{MoveFailure, StatementError};
use crate::row_id::RowId;

/// How far the feeding has come. It survives the feeder.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CursorPosition {
    /// The last id whose sends the queue confirmed in this sweep; none at a sweep's beginning.
    pub cursor: Option<RowId>,
    /// Which sweep this is, from 1.
    pub sweep: u64,
    pub sweep_fed: u64,
}

/// One keyset page: a stretch of the table in id order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowPage {
    /// The rows of the stretch that are to be fed: id and path.
    pub rows: Vec<(RowId, String)>,
    /// The last id of the stretch, fed or not; none when there are no more rows. The cursor is moved there.
    pub last_id: Option<RowId>,
    /// A row that the database refuses to read: it is the stretch.
    pub unreadable: Option<MoveFailure>,
    /// Whether the rows are not in id order: then no row's id is a cursor.
    pub is_spread: bool,
}

/// What of a queue is this run's, by the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct QueueShare {
    /// Rows that were fed in this sweep and have not ended: at most so many messages. Less than none where some ended
    /// before the cursor counted them.
    pub own_messages: i64,
    /// Whether the ledger has other runs: otherwise the queue's own count is this run's, and takes in what is not counted.
    pub is_shared: bool,
    /// Rows that the cursor has counted in this sweep.
    pub sweep_fed: i64,
    /// Other runs that are being fed.
    pub other_feeders: i64,
    /// Whether other runs have messages, by the same count.
    pub others_have_messages: bool,
    /// Whether any consumer is alive, of whatever run: one that has no messages of a run drops it.
    pub has_consumers: bool,
}

impl QueueShare {
    /// How many of the queue's messages are this run's, at most; `uncounted` were sent since the cursor moved.
    pub fn own_backlog(share: Option<Self>, queue_total: u64, uncounted: i64) -> u64 {
        let own = |share: Self| u64::try_from(share.own_messages + uncounted).unwrap_or(0);
        let share = share.filter(|share| share.is_shared);
        share.map_or(queue_total, |share| own(share).min(queue_total))
    }

    /// How many this run may have, of so many in all.
    pub fn max_backlog(share: Option<Self>, max_backlog: u64) -> u64 {
        let others = share.map_or(0, |share| share.other_feeders);
        let feeders = u64::try_from(others).unwrap_or(0) + 1;
        (max_backlog / feeders).max(1)
    }
}

/// What a sweep can find rows with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SweepAccess {
    /// An index says that no row is to be fed.
    NothingLeft,
    /// A partial index over the rows still to move, by its name: a sweep costs what is left.
    Index(String),
    /// Stretches of ids: a sweep reads the table.
    Stretches,
    /// The table in the order of its pages, from this cursor, because ids are random: a stretch of them lies
    /// all over the table. Rows move while they are updated, so that only a sweep by id proves that none is left.
    Heap(RowId),
}

impl SweepAccess {
    /// Where a sweep begins that need not prove anything; none for the table's first id.
    pub fn start(&self) -> Option<&RowId> {
        match self {
            Self::Heap(start) => Some(start),
            _ => None,
        }
    }
}

/// The run in numbers: sums over processes, never a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RunProgress {
    /// Rows that had the old prefix when the run began: an estimate until they are counted.
    pub in_scope: Option<u64>,
    /// Rows fed since the beginning, repeats included.
    pub fed: u64,
    pub moved: u64,
    /// Rows the application changed or deleted after they were fed.
    pub changed: u64,
    /// Rows that could not be moved.
    pub failed: u64,
    /// Copies that no row names: it was changed, went back, or failed.
    pub orphans: u64,
    /// Messages that were not ours.
    pub poison: u64,
}

impl RunProgress {
    /// Rows that have ended: moved, changed or failed.
    pub fn accounted_rows(&self) -> u64 {
        self.moved + self.changed + self.failed
    }

    /// Whether any row of this run was ever found. That some are in scope may be an estimate, which is never zero.
    pub fn has_had_rows(&self) -> bool {
        self.fed > 0 || self.accounted_rows() > 0
    }

    /// None until they have been counted.
    pub fn rows_left(&self) -> Option<u64> {
        Some(self.in_scope?.saturating_sub(self.accounted_rows()))
    }

    /// The time left at this rate, or N/A.
    pub fn format_eta(&self, per_second: f64) -> String {
        match self.rows_left() {
            Some(left) if per_second > 0.0 => format_eta(left, per_second),
            _ => "N/A".into(),
        }
    }
}

/// The time that so many take at a rate above zero.
pub fn format_eta(left: u64, per_second: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let seconds = (left as f64 / per_second).min(1e9);
    let rounded = Duration::from_secs_f64(seconds.ceil());
    humantime::format_duration(rounded).to_string()
}

/// The rows to feed, and the cursor.
#[async_trait]
pub trait FeedSource: Send + Sync {
    async fn cursor_position(&self) -> Result<CursorPosition, StatementError>;

    /// Moves the cursor past rows whose sends are confirmed.
    async fn advance_cursor(&self, cursor: &RowId, fed: u64) -> Result<(), StatementError>;

    /// Goes back to the table's beginning.
    async fn begin_sweep(&self) -> Result<(), StatementError>;

    /// This run's part of a queue that others may share; none where the ledger has no other run.
    async fn queue_share(&self) -> Result<Option<QueueShare>, StatementError>;

    async fn run_progress(&self) -> Result<RunProgress, StatementError>;

    /// Whether any row is left that a sweep would feed, as far as one page after `cursor` says: see [`scan_pages`].
    async fn has_rows_left(
        &self,
        cursor: Option<&RowId>,
    ) -> Result<ControlFlow<bool, RowId>, StatementError>;

    /// Turns failures whose row the application has changed since into changes, a page of them after `cursor`: see
    /// [`scan_pages`].
    async fn settle_stale_failures(
        &self,
        cursor: Option<&RowId>,
    ) -> Result<ControlFlow<(), RowId>, StatementError>;

    /// The recorded failures by code, most frequent first, ten at most. For an outcome, not for polling.
    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, StatementError>;

    /// Some paths of the column, when none is in scope.
    async fn sample_paths(&self) -> Result<PathSample, StatementError>;

    /// Records that a sweep found nothing left, and goes back to the table's beginning; false where rows came to be left
    /// meanwhile.
    async fn finish_run(&self) -> Result<bool, StatementError>;
}

/// Reads page after page, each from the cursor that the one before returned, until one ends the scan. The cursor is kept
/// here: where `read` retries, an outage costs a page, and not a scan that takes longer than the time between two.
pub async fn scan_pages<T, E>(
    read: impl AsyncFn(Option<&RowId>) -> Result<ControlFlow<T, RowId>, E>,
) -> Result<T, E> {
    let mut cursor = None;
    loop {
        match read(cursor.as_ref()).await? {
            ControlFlow::Break(end) => return Ok(end),
            ControlFlow::Continue(last) => cursor = Some(last),
        }
    }
}

/// How sweeps read rows: in id order, or in another.
#[async_trait]
pub trait PageReader: Send + Sync {
    /// Before a sweep: chooses how its pages are read.
    async fn prepare(&self) -> Result<SweepAccess, StatementError>;

    /// Reads the next `size` rows after `cursor` and returns those in scope. Rows with a recorded failure are left out
    /// until an operator retries them.
    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Postgres estimates no scan below one row.
    #[test]
    fn an_estimate_is_no_row() {
        let mut numbers = RunProgress {
            in_scope: Some(1),
            ..RunProgress::default()
        };
        assert!(!numbers.has_had_rows());
        numbers.fed = 1;
        assert!(numbers.has_had_rows());
    }

    #[test]
    fn an_eta_needs_a_total_and_a_rate() {
        let mut numbers = RunProgress {
            moved: 40,
            ..RunProgress::default()
        };
        assert_eq!(numbers.format_eta(10.0), "N/A");
        numbers.in_scope = Some(100);
        assert_eq!(numbers.format_eta(0.0), "N/A");
        assert_eq!(numbers.format_eta(0.5), "2m");
        numbers.moved = 200;
        assert_eq!(numbers.format_eta(1.0), "0s");
    }
}
