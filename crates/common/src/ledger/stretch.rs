//! Statements over a stretch of a table, as long as the time that the server grants.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::errors::{is_statement_timeout, statement_error};
use super::{before_timeout, no_response};
use crate::ledger::move_ledger::StatementError;

/// Rows of one statement in the background.
pub(super) const BACKGROUND_ROWS: u32 = 10_000;

/// A role that has no time for so few has none for work.
const MIN_ROWS: u32 = 10;

const MAX_ROWS: u32 = 100_000;

/// A stretch that takes less is followed by a longer one.
const QUICK: Duration = Duration::from_millis(100);

/// The same of one that was shortened: over a slow link even a few rows are not quick.
const BEARABLE: Duration = Duration::from_secs(1);

/// How many rows a statement has time for: half as many after one that took too long.
#[derive(Debug)]
pub(super) struct StretchLength(AtomicU32);

impl Default for StretchLength {
    fn default() -> Self {
        Self(BACKGROUND_ROWS.into())
    }
}

impl StretchLength {
    /// Runs a statement over up to `most` rows, and over fewer where the server ends it.
    pub(super) async fn run<T, F>(
        &self,
        most: u32,
        statement: impl Fn(u32) -> F,
    ) -> Result<T, StatementError>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        loop {
            let (rows, began) = (self.0.load(Ordering::Relaxed).min(most), Instant::now());
            let error = match before_timeout(statement(rows)).await {
                Some(Ok(result)) => {
                    self.record_success(rows, began.elapsed());
                    return Ok(result);
                }
                Some(Err(error)) => error,
                None => {
                    self.halve(rows);
                    return Err(no_response());
                }
            };
            if !is_statement_timeout(&error) {
                return Err(statement_error(&error));
            }
            if rows <= MIN_ROWS {
                return Err(StatementError::Unavailable(format!(
                    "{error} (for {rows} rows: ALTER ROLE … SET statement_timeout = '10s')"
                )));
            }
            self.halve(rows);
        }
    }

    fn halve(&self, rows: u32) {
        self.0.store((rows / 2).max(MIN_ROWS), Ordering::Relaxed);
    }

    /// Whether a statement over the fewest rows took too long.
    pub(super) fn is_least(&self) -> bool {
        self.0.load(Ordering::Relaxed) <= MIN_ROWS
    }

    pub(super) fn reset(&self) {
        self.0.store(BACKGROUND_ROWS, Ordering::Relaxed);
    }

    fn record_success(&self, rows: u32, took: Duration) {
        let limit = if rows * 2 <= BACKGROUND_ROWS {
            BEARABLE
        } else {
            QUICK
        };
        if took < limit && rows == self.0.load(Ordering::Relaxed) {
            self.0
                .store(rows.saturating_mul(2).min(MAX_ROWS), Ordering::Relaxed);
        }
    }
}
