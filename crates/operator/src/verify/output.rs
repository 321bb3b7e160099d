//! What a complete verification prints: what is wrong, row by row, and the numbers.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::printable::{counted, printable};
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::queries::{SELECT_MISMATCHES, finish_verification};
use super::verification::{VerificationCounts, VerificationMismatch, VerificationSpec};
use crate::output::{ListWriter, OutputFormat};
use crate::page_pipeline::until_stopped;
use crate::statements::Pages;

impl fmt::Display for VerificationMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerificationMismatch {
            id,
            path,
            code,
            message,
        } = self;
        let [id, path, message] = [id, path, message].map(|text| printable(text));
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
            intact,
            outdated,
            recopied,
            table_rows,
            table_outside,
        } = self.numbers;
        let moves = counted(checked, "move", "moves");
        write!(f, "run {}: {moves} looked at", self.run)?;
        if self.sample_percent < 100.0 {
            write!(f, " (a sample of {} %)", self.sample_percent)?;
        }
        write!(
            f,
            ", {intact} sound, {outdated} changed by the application since"
        )?;
        if self.spec.recopies {
            write!(f, ", {recopied} copied anew")?;
        }
        if self.spec.is_full {
            write!(
                f,
                "; {} of the table, {table_outside} outside the path rule",
                counted(table_rows, "row", "rows")
            )?;
        }
        let mismatches = counted(self.mismatched, "mismatch", "mismatches");
        write!(f, "; {mismatches}")
    }
}

/// So many, and no other, are not each to blame.
const MANY_OBJECTS: u64 = 10;

/// Returns the exit code.
pub(super) async fn finish_and_print(
    format: OutputFormat,
    ledger: &PostgresLedger,
    spec: VerificationSpec,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    let mut list_writer = ListWriter::begin_on_stdout(format, "mismatches")?;
    let mut pages = Pages::new(ledger, SELECT_MISMATCHES);
    let (mut mismatched, mut unreadable) = (0, 0);
    loop {
        let page = pages.next(|one: &VerificationMismatch| &one.id);
        let page = match until_stopped(stop, page).await {
            Err(error) => {
                list_writer.write_fields(&json!({ "run": ledger.run_id() }))?;
                return Err(error);
            }
            Ok(Some(page)) => page,
            Ok(None) => break,
        };
        for mismatch in page {
            mismatched += 1;
            unreadable += u64::from(mismatch.code == "Unreadable");
            list_writer.write_item(&mismatch)?;
        }
        // What it would have seen ends with the reader.
        if list_writer.is_closed() {
            break;
        }
    }
    // Stopped before, the same command goes on here.
    let numbers = finish_verification(ledger).await?;
    let is_closed = list_writer.is_closed();
    list_writer.write_summary(&VerificationSummary {
        run: ledger.run_id(),
        sample_percent: spec.sample_percent,
        numbers,
        mismatched,
        spec,
    })?;
    if !is_closed && unreadable == mismatched && unreadable >= MANY_OBJECTS && numbers.intact == 0 {
        tracing::error!(
            "no object could be read: is it the store that responds? check AWS_ENDPOINT_URL_S3, the rights and the network, and use --anew"
        );
        return Ok(exit::UNAVAILABLE);
    }
    Ok(if mismatched == 0 {
        exit::DONE
    } else {
        exit::CHECK_FAILED
    })
}
