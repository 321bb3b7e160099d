//! The answer of a complete verification: what is wrong, row by row, and the numbers.

use std::fmt;

use bucket_brigade_common::ledger::{
    PostgresLedger, VerificationCounts, VerificationMismatch, VerificationSpec,
};
use serde::Serialize;

use crate::list_writer::ListWriter;
use crate::output::OutputFormat;

const PAGE_ROWS: i64 = 1000;

#[derive(Serialize)]
struct MismatchLine(VerificationMismatch);

impl fmt::Display for MismatchLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerificationMismatch {
            id,
            path,
            code,
            message,
        } = &self.0;
        write!(f, "{code}  row {id}  {path}: {message}")
    }
}

#[derive(Serialize)]
struct VerificationSummary {
    run: i64,
    sample_percent: f64,
    #[serde(flatten)]
    numbers: VerificationCounts,
    mismatched: u64,
    #[serde(skip)]
    spec: VerificationSpec,
}

impl fmt::Display for VerificationSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerificationCounts {
            checked,
            sound,
            outdated,
            recopied,
            table_rows,
            table_outside,
        } = self.numbers;
        write!(f, "run {}: {checked} moves looked at", self.run)?;
        if self.sample_percent < 100.0 {
            write!(f, " (a sample of {} %)", self.sample_percent)?;
        }
        write!(
            f,
            ", {sound} sound, {outdated} changed by the application since"
        )?;
        if self.spec.recopies {
            write!(f, ", {recopied} copied anew")?;
        }
        if self.spec.is_full {
            write!(
                f,
                "; {table_rows} rows of the table, {table_outside} outside the path rule"
            )?;
        }
        write!(f, "; {} mismatches", self.mismatched)
    }
}

/// Writes the answer; whether everything is as it should be.
///
/// # Errors
/// The database does not answer, or standard output cannot be written.
pub(super) async fn finish_and_print(
    format: OutputFormat,
    ledger: &PostgresLedger,
    spec: VerificationSpec,
) -> anyhow::Result<bool> {
    let numbers = ledger.finish_verification().await?;
    let mut listing = ListWriter::begin_on_stdout(format, "mismatches")?;
    let (mut after, mut mismatched) = (None, 0);
    loop {
        let page = ledger.list_mismatches(after.as_deref(), PAGE_ROWS).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        for mismatch in page {
            mismatched += 1;
            listing.write_item(&MismatchLine(mismatch))?;
        }
    }
    listing.write_summary(&VerificationSummary {
        run: ledger.run_id(),
        sample_percent: spec.sample_percent,
        numbers,
        mismatched,
        spec,
    })?;
    Ok(mismatched == 0)
}
