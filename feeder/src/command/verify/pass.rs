//! The way through the moves and, in full mode, through the table: page by page, many looks at a time.

use bucket_brigade_common::ledger::{
    FeederLock, Finding, Mismatch, MovedRow, TableRow, Verification,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::check::Checker;
use crate::command::alone;
use crate::command::gauge::Gauge;
use crate::command::store::{IN_FLIGHT, is_about_one};

/// Rows of a page: a few seconds of work, the most that a kill repeats.
const PAGE: f64 = 1000.0;

/// In a sample the stretches are longer, since most of their rows are left out.
const MOST: f64 = 20_000.0;

/// One verification.
pub(super) struct Pass<'a> {
    checker: &'a Checker<'a>,
    place: Verification,
    page: i64,
    lock: FeederLock,
}

impl<'a> Pass<'a> {
    /// A verification that goes on from `place`.
    pub(super) fn new(checker: &'a Checker<'a>, place: Verification, lock: FeederLock) -> Self {
        let share = place.spec.sample_percent / 100.0;
        #[expect(clippy::cast_possible_truncation, reason = "at most 20,000")]
        let page = (PAGE / share).min(MOST) as i64;
        Self {
            checker,
            place,
            page,
            lock,
        }
    }

    /// Goes on to the end; false when it was stopped before.
    ///
    /// # Errors
    /// The store or the database does not answer.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> anyhow::Result<bool> {
        if !self.place.is_in_table {
            if !self.moves(stop).await? {
                return Ok(false);
            }
            self.checker.ledger.verify_table_next().await?;
            (self.place.is_in_table, self.place.cursor) = (true, None);
        }
        if self.place.spec.is_full {
            return self.table(stop).await;
        }
        Ok(true)
    }

    async fn moves(&mut self, stop: &CancellationToken) -> anyhow::Result<bool> {
        let ledger = self.checker.ledger;
        let mut gauge = Gauge::new("verifying moves", ledger.count_moves().await?);
        while !stop.is_cancelled() {
            alone::still(&mut self.lock).await?;
            let (rows, last) = ledger.moves_to_verify(&self.place, self.page).await?;
            let Some(last) = last else {
                gauge.clear();
                return Ok(true);
            };
            let findings = self.check_all(rows).await?;
            ledger.record_findings(&findings, &last).await?;
            gauge.advance(findings.len());
            self.place.cursor = Some(last);
        }
        gauge.clear();
        Ok(false)
    }

    async fn check_all(&self, rows: Vec<MovedRow>) -> anyhow::Result<Vec<(MovedRow, Finding)>> {
        let checks = rows.into_iter().map(|row| self.checker.check(row));
        stream::iter(checks).buffered(IN_FLIGHT).try_collect().await
    }

    async fn table(&mut self, stop: &CancellationToken) -> anyhow::Result<bool> {
        let ledger = self.checker.ledger;
        let mut gauge = Gauge::new("verifying the table", 0);
        while !stop.is_cancelled() {
            alone::still(&mut self.lock).await?;
            let (rows, last) = ledger.rows_to_verify(&self.place, self.page).await?;
            let Some(last) = last else {
                gauge.clear();
                return Ok(true);
            };
            let outside = rows.iter().filter(|row| self.is_outside(row)).count();
            let count = rows.len();
            let wrong = self.resolve_all(rows).await?;
            ledger
                .record_unresolved(&wrong, &last, (count, outside))
                .await?;
            gauge.advance(count);
            self.place.cursor = Some(last);
        }
        gauge.clear();
        Ok(false)
    }

    fn is_outside(&self, row: &TableRow) -> bool {
        self.checker.rule.locate(&row.path).is_none()
    }

    async fn resolve_all(&self, rows: Vec<TableRow>) -> anyhow::Result<Vec<Mismatch>> {
        let wanted = rows.into_iter().filter(|row| row.is_wanted);
        let found: Vec<Option<Mismatch>> = stream::iter(wanted.map(|row| self.resolve(row)))
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Looks for the object that a row names. A row that changed meanwhile is looked at again.
    async fn resolve(&self, row: TableRow) -> anyhow::Result<Option<Mismatch>> {
        let TableRow { id, mut path, .. } = row;
        loop {
            let Some(why) = self.missing(&path).await? else {
                return Ok(None);
            };
            match self.checker.ledger.current_path(&id).await? {
                None => return Ok(None),
                Some(now) if now != path => path = now,
                Some(_) => {
                    let (code, message) = why;
                    return Ok(Some(Mismatch {
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
    async fn missing(&self, path: &str) -> anyhow::Result<Option<(&'static str, String)>> {
        let Some((side, key)) = self.checker.rule.locate(path) else {
            return Ok(None);
        };
        match self.checker.stat(side, &key).await {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some((
                "NoObject",
                format!("there is no such object: '{key}'"),
            ))),
            Err(error) if is_about_one(&error) => Ok(Some(("Unreadable", error.to_string()))),
            Err(error) => Err(error.into()),
        }
    }
}
