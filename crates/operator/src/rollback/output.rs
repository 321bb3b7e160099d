//! What a rollback prints.

use bucket_brigade_common::printable::counted;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::classify::{SkipReason, SkippedRow};
use crate::output::{ListWriter, OutputFormat};

#[derive(Serialize)]
struct RollbackSummary {
    run: i64,
    /// False without `--yes`.
    done: bool,
    rolled_back: u64,
    #[serde(rename = "left_alone_by_reason")]
    skipped_by_reason: BTreeMap<SkipReason, u64>,
}

impl fmt::Display for RollbackSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (run, rows) = (self.run, counted(self.rolled_back, "row", "rows"));
        let verb = if self.done { "went" } else { "would go" };
        write!(f, "run {run}: {rows} {verb} back to the old path")?;
        for (reason, count) in &self.skipped_by_reason {
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

pub(super) struct RollbackPrinter {
    list_writer: ListWriter<std::io::Stdout>,
    /// Of pages under way: an output that cannot be written must not end a page between its rows and their copies.
    unprinted: Vec<SkippedRow>,
    summary: RollbackSummary,
}

impl RollbackPrinter {
    pub(super) fn begin_list(format: OutputFormat, run: i64, done: bool) -> anyhow::Result<Self> {
        Ok(Self {
            list_writer: ListWriter::begin_on_stdout(format, "left_alone")?,
            unprinted: Vec::new(),
            summary: RollbackSummary {
                run,
                done,
                rolled_back: 0,
                skipped_by_reason: BTreeMap::new(),
            },
        })
    }

    pub(super) fn count_undone(&mut self, rows: usize) {
        self.summary.rolled_back += u64::try_from(rows).unwrap_or(u64::MAX);
    }

    /// Printed once the page is settled.
    pub(super) fn add_skipped(&mut self, row: SkippedRow) {
        let counts = &mut self.summary.skipped_by_reason;
        *counts.entry(row.reason.clone()).or_default() += 1;
        self.unprinted.push(row);
    }

    pub(super) fn print_skipped(&mut self) -> anyhow::Result<()> {
        for row in self.unprinted.drain(..) {
            self.list_writer.write_item(&row)?;
        }
        Ok(())
    }

    /// Whether no row was left alone.
    pub(super) fn print_summary(mut self) -> anyhow::Result<bool> {
        self.print_skipped()?;
        self.list_writer.write_summary(&self.summary)?;
        Ok(self.summary.skipped_by_reason.is_empty())
    }
}
