//! The pass over the moves and, in full mode, over the table: page by page, many requests at a time.

use bucket_brigade_common::ledger::AdvisoryLock;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use tokio_util::sync::CancellationToken;

use super::check::MoveChecker;
use super::queries::{
    begin_table_phase, count_moves, current_path, moves_to_verify, record_findings,
    record_table_page, rows_to_verify,
};
use super::verification::{TableRow, VerificationFinding, VerificationMismatch, VerificationState};
use crate::command_throttle::CommandThrottle;
use crate::locks;
use crate::moved_row::MovedRow;
use crate::page_pipeline::{PageOrder, ensure_not_stopped, is_complete, run_pages};
use crate::retrying_store::{RequestSlots, is_object_error, stat_object};
use crate::statements::retry_statement;

/// Rows of a page. A kill repeats those under way, a few seconds of work.
const PAGE_ROWS: u32 = 1000;

/// In a sample the stretches are longer, since most of their rows are left out.
const MAX_PAGE_ROWS: f64 = 20_000.0;

pub(super) struct VerificationPass<'a> {
    checker: &'a MoveChecker<'a>,
    verification: VerificationState,
    page_rows: i64,
    slots: &'a RequestSlots,
    throttle: &'a CommandThrottle<'a>,
    stop: &'a CancellationToken,
}

/// A page, and the cursor after it.
type Page<T> = (Vec<T>, String);

/// What was found of a page of the table: mismatches, rows, and how many of these are outside the rule.
struct TablePage {
    mismatches: Vec<VerificationMismatch>,
    rows: usize,
    outside: usize,
}

impl<'a> VerificationPass<'a> {
    pub(super) fn new(
        checker: &'a MoveChecker<'a>,
        verification: VerificationState,
        slots: &'a RequestSlots,
        throttle: &'a CommandThrottle<'a>,
        stop: &'a CancellationToken,
    ) -> Self {
        let share = verification.spec.sample_percent / 100.0;
        #[expect(clippy::cast_possible_truncation, reason = "at most 20,000")]
        let page = (f64::from(PAGE_ROWS) / share).min(MAX_PAGE_ROWS) as i64;
        Self {
            checker,
            verification,
            page_rows: page,
            slots,
            throttle,
            stop,
        }
    }

    /// Goes on to the end; false when it was stopped before.
    ///
    /// # Errors
    /// The store or the database does not answer.
    pub(super) async fn run(mut self, mut lock: AdvisoryLock) -> anyhow::Result<bool> {
        is_complete(self.run_phases(&mut lock).await)
    }

    async fn run_phases(&mut self, lock: &mut AdvisoryLock) -> anyhow::Result<()> {
        let ledger = self.checker.ledger;
        if !self.verification.is_in_table {
            self.verify_moves(lock).await?;
            retry_statement(async || begin_table_phase(ledger).await).await?;
            (self.verification.is_in_table, self.verification.cursor) = (true, None);
        }
        if self.verification.spec.is_full {
            self.verify_table(lock).await?;
        }
        Ok(())
    }

    async fn verify_moves(&self, lock: &mut AdvisoryLock) -> anyhow::Result<()> {
        let ledger = self.checker.ledger;
        let moves = count_moves(ledger).await?;
        self.throttle.begin_phase("verifying moves", moves);
        let (state, size) = (&self.verification, self.page_rows);
        let next = async |cursor: Option<&str>| moves_to_verify(ledger, state, cursor, size).await;
        let work = async |(rows, last)| Ok((self.check_moves(rows).await?, last));
        let record = async |(findings, last): (Vec<_>, String), order| {
            let count = findings.len();
            let write = async || record_findings(ledger, &findings, &last).await;
            self.record(order, count, write).await
        };
        run_pages(self.reader(lock, next), work, record).await
    }

    async fn verify_table(&self, lock: &mut AdvisoryLock) -> anyhow::Result<()> {
        let ledger = self.checker.ledger;
        self.throttle.begin_phase("verifying the table", 0);
        let size = self.page_rows;
        let next = async |cursor: Option<&str>| rows_to_verify(ledger, cursor, size).await;
        let work = async |(rows, last)| Ok((self.check_table_page(rows).await?, last));
        let record = async |(page, last): (TablePage, String), order| {
            let counts = (page.rows, page.outside);
            let write = async || record_table_page(ledger, &page.mismatches, &last, counts).await;
            self.record(order, page.rows, write).await
        };
        run_pages(self.reader(lock, next), work, record).await
    }

    /// Reads page after page, as the throttle lets it.
    fn reader<T>(
        &self,
        lock: &mut AdvisoryLock,
        next: impl AsyncFn(Option<&str>) -> Result<(Vec<T>, Option<String>), StatementError>,
    ) -> impl AsyncFnMut() -> anyhow::Result<Option<Page<T>>> {
        let mut cursor = self.verification.cursor.clone();
        async move || {
            ensure_not_stopped(self.stop)?;
            let (rows, last) = retry_statement(async || next(cursor.as_deref()).await).await?;
            let count = rows.len().clamp(1, PAGE_ROWS as usize);
            self.throttle.acquire(count, self.stop).await;
            ensure_not_stopped(self.stop)?;
            locks::ensure_held(self.checker.ledger, lock).await?;
            cursor.clone_from(&last);
            Ok(last.map(|last| (rows, last)))
        }
    }

    async fn record(
        &self,
        order: PageOrder,
        count: usize,
        write: impl AsyncFnMut() -> Result<(), StatementError>,
    ) -> anyhow::Result<()> {
        if order == PageOrder::Unbroken {
            self.throttle.write(retry_statement(write)).await?;
            self.throttle.advance_by(count);
        }
        Ok(())
    }

    async fn check_moves(
        &self,
        rows: Vec<MovedRow>,
    ) -> anyhow::Result<Vec<(MovedRow, VerificationFinding)>> {
        let checks = rows.into_iter().map(|row| async {
            ensure_not_stopped(self.stop)?;
            self.checker.check_move(row).await
        });
        self.slots.run_all(checks).await
    }

    async fn check_table_page(&self, rows: Vec<TableRow>) -> anyhow::Result<TablePage> {
        Ok(TablePage {
            outside: rows.iter().filter(|row| self.is_outside_rule(row)).count(),
            rows: rows.len(),
            mismatches: self.find_mismatches(rows).await?,
        })
    }

    fn is_outside_rule(&self, row: &TableRow) -> bool {
        row.is_left_out || self.checker.rule.locate_object(&row.path).is_none()
    }

    async fn find_mismatches(
        &self,
        rows: Vec<TableRow>,
    ) -> anyhow::Result<Vec<VerificationMismatch>> {
        let wanted = rows.into_iter();
        let wanted = wanted.filter(|row| {
            !row.is_checked && !row.is_left_out && self.verification.includes_row(&row.id)
        });
        let wanted: Vec<TableRow> = wanted.collect();
        let checks = wanted.into_iter().map(|row| async {
            ensure_not_stopped(self.stop)?;
            self.find_mismatch(row).await
        });
        let found = self.slots.run_all(checks).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Checks that the object that a row names is there. A row that changed meanwhile is checked again.
    async fn find_mismatch(&self, row: TableRow) -> anyhow::Result<Option<VerificationMismatch>> {
        let TableRow { id, mut path, .. } = row;
        loop {
            let Some(why) = self.missing_object(&path).await? else {
                return Ok(None);
            };
            match current_path(self.checker.ledger, &id).await? {
                None => return Ok(None),
                Some(now) if now != path => path = now,
                Some(_) => {
                    let (code, message) = why;
                    return Ok(Some(VerificationMismatch {
                        id,
                        path,
                        code: code.into(),
                        message,
                    }));
                }
            }
        }
    }

    /// Why the object of a path cannot be had; none when it can, and for paths outside the rule.
    async fn missing_object(&self, path: &str) -> anyhow::Result<Option<(&'static str, String)>> {
        let Some((side, key)) = self.checker.rule.locate_object(path) else {
            return Ok(None);
        };
        match stat_object(self.checker.store, side, &key).await {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some((
                "NoObject",
                format!("there is no such object: '{key}'"),
            ))),
            Err(error) if is_object_error(&error) => Ok(Some(("Unreadable", error.to_string()))),
            Err(error) => Err(error.into()),
        }
    }
}
