//! The pass over the moves and, in full mode, over the table: page by page, many requests at a time.

use bucket_brigade_common::ledger::AdvisoryLock;
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::check::MoveChecker;
use super::queries::{
    begin_table_phase, count_moves, current_path, moves_to_verify, record_findings,
    record_table_page, rows_to_verify,
};
use super::verification::{TableRow, VerificationFinding, VerificationMismatch, VerificationState};
use crate::locks::{self, PauseGate};
use crate::moved_row::MovedRow;
use crate::progress_bar::ProgressReporter;
use crate::retrying_store::{DEFAULT_REQUESTS_IN_FLIGHT, is_object_error};
use crate::statements::retry_statement;

/// Rows of a page: a few seconds of work, the most that a kill repeats.
const PAGE_ROWS: f64 = 1000.0;

/// In a sample the stretches are longer, since most of their rows are left out.
const MAX_PAGE_ROWS: f64 = 20_000.0;

pub(super) struct VerificationPass<'a> {
    checker: &'a MoveChecker<'a>,
    verification: VerificationState,
    page_rows: i64,
    lock: AdvisoryLock,
    pause: PauseGate,
}

impl<'a> VerificationPass<'a> {
    pub(super) fn new(
        checker: &'a MoveChecker<'a>,
        verification: VerificationState,
        lock: AdvisoryLock,
    ) -> Self {
        let share = verification.spec.sample_percent / 100.0;
        #[expect(clippy::cast_possible_truncation, reason = "at most 20,000")]
        let page = (PAGE_ROWS / share).min(MAX_PAGE_ROWS) as i64;
        Self {
            checker,
            verification,
            page_rows: page,
            lock,
            pause: PauseGate::default(),
        }
    }

    /// Goes on to the end; false when it was stopped before.
    ///
    /// # Errors
    /// The store or the database does not answer.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> anyhow::Result<bool> {
        if !self.verification.is_in_table {
            if !self.verify_moves(stop).await? {
                return Ok(false);
            }
            retry_statement(async || begin_table_phase(self.checker.ledger).await).await?;
            (self.verification.is_in_table, self.verification.cursor) = (true, None);
        }
        if self.verification.spec.is_full {
            return self.verify_table(stop).await;
        }
        Ok(true)
    }

    async fn verify_moves(&mut self, stop: &CancellationToken) -> anyhow::Result<bool> {
        let ledger = self.checker.ledger;
        let mut progress = ProgressReporter::new("verifying moves", count_moves(ledger).await?);
        while !stop.is_cancelled() {
            self.pause.wait(ledger, stop).await?;
            locks::ensure_held(ledger, &mut self.lock).await?;
            let (state, size) = (&self.verification, self.page_rows);
            let read = async || moves_to_verify(ledger, state, size).await;
            let (rows, last) = retry_statement(read).await?;
            let Some(last) = last else {
                return Ok(true);
            };
            let findings = self.check_moves(rows).await?;
            retry_statement(async || record_findings(ledger, &findings, &last).await).await?;
            progress.advance_by(findings.len());
            self.verification.cursor = Some(last);
        }
        Ok(false)
    }

    async fn check_moves(
        &self,
        rows: Vec<MovedRow>,
    ) -> anyhow::Result<Vec<(MovedRow, VerificationFinding)>> {
        let checks = rows.into_iter().map(|row| self.checker.check_move(row));
        stream::iter(checks)
            .buffered(DEFAULT_REQUESTS_IN_FLIGHT)
            .try_collect()
            .await
    }

    async fn verify_table(&mut self, stop: &CancellationToken) -> anyhow::Result<bool> {
        let ledger = self.checker.ledger;
        let mut progress = ProgressReporter::new("verifying the table", 0);
        while !stop.is_cancelled() {
            self.pause.wait(ledger, stop).await?;
            locks::ensure_held(ledger, &mut self.lock).await?;
            let (state, size) = (&self.verification, self.page_rows);
            let read = async || rows_to_verify(ledger, state, size).await;
            let (rows, last) = retry_statement(read).await?;
            let Some(last) = last else {
                return Ok(true);
            };
            let outside = rows.iter().filter(|row| self.is_outside_rule(row)).count();
            let count = rows.len();
            let mismatches = self.find_mismatches(rows).await?;
            let counts = (count, outside);
            retry_statement(async || record_table_page(ledger, &mismatches, &last, counts).await)
                .await?;
            progress.advance_by(count);
            self.verification.cursor = Some(last);
        }
        Ok(false)
    }

    fn is_outside_rule(&self, row: &TableRow) -> bool {
        self.checker.rule.locate_object(&row.path).is_none()
    }

    async fn find_mismatches(
        &self,
        rows: Vec<TableRow>,
    ) -> anyhow::Result<Vec<VerificationMismatch>> {
        let wanted = rows.into_iter();
        let wanted =
            wanted.filter(|row| !row.is_checked && self.verification.includes_row(&row.id));
        let found: Vec<Option<VerificationMismatch>> =
            stream::iter(wanted.map(|row| self.find_mismatch(row)))
                .buffered(DEFAULT_REQUESTS_IN_FLIGHT)
                .try_collect()
                .await?;
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
        match self.checker.stat_object(side, &key).await {
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
