//! The answer of a rollback.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::classify::SkipReason;
use super::undo::RollbackRun;

#[derive(Serialize)]
struct RollbackSummary {
    run: i64,
    /// False when it only told what would happen.
    done: bool,
    rolled_back: u64,
    left_alone_by_reason: BTreeMap<SkipReason, u64>,
}

impl fmt::Display for RollbackSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (run, rows) = (self.run, self.rolled_back);
        let verb = if self.done { "went" } else { "would go" };
        write!(f, "run {run}: {rows} rows {verb} back to their old path")?;
        for (reason, count) in &self.left_alone_by_reason {
            write!(f, "\n  {count} left alone: {}", reason.as_text())?;
        }
        if !self.done {
            return write!(f, "\nNothing was changed. To do it, add --yes.");
        }
        write!(
            f,
            "\nA feeder of this run would move them again: do not start it before you want that."
        )
    }
}

impl RollbackRun<'_> {
    /// Writes the answer; whether nothing was left alone.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn print_summary(&mut self, done: bool) -> anyhow::Result<bool> {
        let is_whole = self.skipped.is_empty();
        if let Some(listing) = self.list_writer.take() {
            listing.write_summary(&RollbackSummary {
                run: self.ledger.run_id(),
                done,
                rolled_back: self.undone_rows,
                left_alone_by_reason: std::mem::take(&mut self.skipped),
            })?;
        }
        Ok(is_whole)
    }
}
