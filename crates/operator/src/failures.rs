//! `feeder failures`: what could not be moved, and why.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{CodeCount, FailedRow, TableAccess};
use bucket_brigade_common::settings::{SettingsProblems, integer_between};
use serde::Serialize;

use crate::context::CommonArgs;

/// Its flags and settings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder failures --code NoSuchKey\n\nExit codes: 0 there are none; 1 unexpected error; 2 there are some; 64 wrong settings, or no such\nrun; 69 the database cannot be reached; 77 a right is missing."
)]
pub struct Args {
    /// Those with this code only
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// So many at most [default: 100]
    #[arg(long, value_name = "N")]
    limit: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct FailuresOutput {
    run: i64,
    codes: Vec<CodeCount>,
    failures: Vec<FailedRow>,
    /// Rows that failed and are not listed here.
    not_listed: u64,
}

impl fmt::Display for FailuresOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failures.is_empty() {
            return write!(f, "run {}: no row failed", self.run);
        }
        let counts: Vec<String> = self
            .codes
            .iter()
            .map(|one| format!("{} {}", one.code, one.rows))
            .collect();
        write!(f, "run {}: {}", self.run, counts.join(", "))?;
        for row in &self.failures {
            let hope = if row.permanent {
                "for good"
            } else {
                "may pass"
            };
            write!(
                f,
                "\n\n{}  {}\n    {} ({hope}; attempts: {}, last {}): {}",
                row.row_id, row.path, row.code, row.attempts, row.last_seen, row.message
            )?;
        }
        if self.not_listed > 0 {
            write!(f, "\n\nand {} more: --limit", self.not_listed)?;
        }
        Ok(())
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let limit = problems.parse_value("--limit", args.limit, 100, integer_between(1, 10_000_000));
    let context = args.common.into_context(problems)?;
    let ledger = context.open_ledger(TableAccess::Read).await?;
    let code = args.code.as_deref();
    let failures = ledger.failed_rows(code, limit).await?;
    let mut codes = ledger.failure_counts().await?;
    codes.retain(|one| code.is_none_or(|code| one.code == code));
    let all: u64 = codes.iter().map(|one| one.rows).sum();
    let listed = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    let is_empty = failures.is_empty();
    context.print_output(&FailuresOutput {
        run: ledger.run_id(),
        codes,
        failures,
        not_listed: all.saturating_sub(listed),
    })?;
    Ok(if is_empty {
        exit::DONE
    } else {
        exit::ROWS_FAILED
    })
}
