//! The pass over the moves and, in full mode, over the table: page by page, many requests at a time.

use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::object_store::objects::BucketSide;
use tokio_util::sync::CancellationToken;

use super::check::MoveChecker;
use super::lister::{ListedPage, ObjectLister};
use super::queries::{
    begin_table_phase, current_path, moves_to_verify, record_findings, record_table_page,
    rows_to_verify,
};
use super::verification::{
    Mismatch, TableRow, VerificationFinding, VerificationMismatch, VerificationState,
};
use crate::command_throttle::CommandThrottle;
use crate::locks::CommandLocks;
use crate::moved_row::MovedRow;
use crate::page_pipeline::{run_pages, until_stopped};
use crate::retrying_store::{RequestSlots, is_object_error, stat_object};
use crate::statements::retry_statement;

/// Rows of a page. A kill repeats those under way, a few seconds of work.
const PAGE_ROWS: u32 = 1000;

/// In a sample the stretches are longer, since most of their rows are left out.
const MAX_PAGE_ROWS: f64 = 20_000.0;

pub(super) struct VerificationPass<'a> {
    pub(super) checker: &'a MoveChecker<'a>,
    pub(super) verification: VerificationState,
    pub(super) slots: &'a RequestSlots,
    pub(super) lister: ObjectLister<'a>,
    pub(super) throttle: &'a CommandThrottle<'a>,
    pub(super) stop: &'a CancellationToken,
}

/// What was found of a page of the table: mismatches, rows, and how many of these are outside the rule.
type TablePage = (Vec<VerificationMismatch>, usize, usize);

impl VerificationPass<'_> {
    pub(super) async fn run(mut self, locks: &mut CommandLocks<'_>) -> anyhow::Result<()> {
        let ledger = self.checker.ledger;
        if !self.verification.is_in_table {
            self.verify_moves(locks).await?;
            retry_statement(async || begin_table_phase(ledger).await).await?;
            (self.verification.is_in_table, self.verification.cursor) = (true, None);
        }
        if self.verification.spec.is_full {
            self.verify_table(locks).await?;
        }
        Ok(())
    }

    fn page_rows(&self) -> i64 {
        let share = self.verification.spec.sample_percent / 100.0;
        #[expect(clippy::cast_possible_truncation, reason = "at most 20,000")]
        let rows = (f64::from(PAGE_ROWS) / share).min(MAX_PAGE_ROWS) as i64;
        rows
    }

    async fn verify_moves(&self, locks: &mut CommandLocks<'_>) -> anyhow::Result<()> {
        let ledger = self.checker.ledger;
        let progress = ledger.run_progress().await?;
        let percent = self.verification.spec.sample_percent;
        let total = share_of(progress.moved, percent);
        self.throttle.begin_phase("verifying moves", total);
        let (state, size) = (&self.verification, self.page_rows());
        let next = async |cursor: Option<&str>| moves_to_verify(ledger, state, cursor, size).await;
        let work = async |rows| self.check_moves(rows).await;
        let record = async |findings: Vec<_>, cursor: Option<String>| {
            let Some(last) = cursor else { return Ok(()) };
            let write = async || record_findings(ledger, &findings, &last).await;
            self.throttle.write(retry_statement(write)).await?;
            self.throttle.advance_by(findings.len());
            Ok(())
        };
        run_pages(self.reader(locks, next), work, record).await
    }

    async fn verify_table(&self, locks: &mut CommandLocks<'_>) -> anyhow::Result<()> {
        let ledger = self.checker.ledger;
        self.throttle.begin_phase("verifying the table", 0);
        let size = self.page_rows();
        let next = async |cursor: Option<&str>| rows_to_verify(ledger, cursor, size).await;
        let work = async |rows| self.check_table_page(rows).await;
        let record = async |(mismatches, rows, outside): TablePage, cursor: Option<String>| {
            let Some(last) = cursor else { return Ok(()) };
            let counts = (rows, outside);
            let write = async || record_table_page(ledger, &mismatches, &last, counts).await;
            self.throttle.write(retry_statement(write)).await?;
            self.throttle.advance_by(rows);
            Ok(())
        };
        run_pages(self.reader(locks, next), work, record).await
    }

    /// Reads page after page, as the throttle lets it.
    fn reader<T>(
        &self,
        locks: &mut CommandLocks<'_>,
        next: impl AsyncFn(Option<&str>) -> Result<(Vec<T>, Option<String>), StatementError>,
    ) -> impl AsyncFnMut() -> anyhow::Result<Option<(Vec<T>, Option<String>)>> {
        let mut cursor = self.verification.cursor.clone();
        async move || {
            let read = async {
                let page = retry_statement(async || next(cursor.as_deref()).await).await?;
                let count = page.0.len().clamp(1, PAGE_ROWS as usize);
                self.throttle.acquire(count, self.stop).await?;
                locks.ensure_held().await?;
                anyhow::Ok(page)
            };
            let (rows, last) = until_stopped(self.stop, read).await?;
            cursor.clone_from(&last);
            Ok(last.map(|last| (rows, Some(last))))
        }
    }

    async fn check_moves(
        &self,
        rows: Vec<MovedRow>,
    ) -> anyhow::Result<Vec<(MovedRow, VerificationFinding)>> {
        let listed = &self.list(self.checker.keys_of(&rows)).await?;
        let rows = rows.into_iter().enumerate();
        // One that was found may be the copy of another row, which is made anew for that.
        let (found, made): (Vec<_>, Vec<_>) = rows.partition(|(_, row)| row.is_found);
        let mut findings = Vec::new();
        for rows in [made, found] {
            let checks = rows.into_iter().map(async |(at, row)| {
                anyhow::Ok((at, self.checker.check_move(row, listed).await?))
            });
            findings.extend(self.slots.run_all(checks).await?);
        }
        findings.sort_by_key(|(at, _)| *at);
        Ok(findings.into_iter().map(|(_, finding)| finding).collect())
    }

    async fn list(&self, objects: Vec<(BucketSide, String)>) -> anyhow::Result<ListedPage> {
        let listed = async { anyhow::Ok(self.lister.list(objects).await) };
        until_stopped(self.stop, listed).await
    }

    async fn check_table_page(&self, rows: Vec<TableRow>) -> anyhow::Result<TablePage> {
        let rule = self.checker.ledger.rule();
        let is_outside =
            |row: &&TableRow| row.is_left_out || rule.locate_object(&row.path).is_none();
        let counts = (rows.len(), rows.iter().filter(is_outside).count());
        let mut wanted = rows;
        wanted.retain(|row| {
            !row.is_checked && !row.is_left_out && self.verification.includes_row(&row.id)
        });
        let objects = wanted
            .iter()
            .filter_map(|row| rule.locate_object(&row.path));
        let listed = &self.list(objects.collect()).await?;
        let checks = wanted.into_iter();
        let checks = checks.map(|row| until_stopped(self.stop, self.find_mismatch(row, listed)));
        let found = self.slots.run_all(checks).await?;
        Ok((found.into_iter().flatten().collect(), counts.0, counts.1))
    }

    /// Checks that the object that a row names is there. A row that changed meanwhile is checked again.
    async fn find_mismatch(
        &self,
        row: TableRow,
        listed: &ListedPage,
    ) -> anyhow::Result<Option<VerificationMismatch>> {
        let TableRow { id, mut path, .. } = row;
        if let Some(message) = row.unreadable {
            let code = "Unreadable".into();
            return Ok(Some(VerificationMismatch {
                id,
                path,
                code,
                message,
            }));
        }
        loop {
            let Some((code, message)) = self.missing_object(&path, listed).await? else {
                return Ok(None);
            };
            let read = async || current_path(self.checker.ledger, &id).await;
            match retry_statement(read).await? {
                None => return Ok(None),
                Some(now) if now != path => path = now,
                Some(_) => {
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
    async fn missing_object(
        &self,
        path: &str,
        listed: &ListedPage,
    ) -> anyhow::Result<Option<Mismatch>> {
        let Some((side, key)) = self.checker.ledger.rule().locate_object(path) else {
            return Ok(None);
        };
        if listed[side as usize].get(&key).is_some() {
            return Ok(None);
        }
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

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn share_of(rows: u64, percent: f64) -> u64 {
    (rows as f64 * percent / 100.0) as u64
}
