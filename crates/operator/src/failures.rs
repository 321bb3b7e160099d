//! `feeder failures`: what could not be moved, and why.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, TableAccess, with_timeout};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::{Setting, SettingsProblems, integer_between, setting};
use serde::Serialize;

use crate::context::CommonArgs;
use crate::status::{CodeCount, failure_counts};

/// `$1` run, `$2` code or null for all, `$3` how many. In the order of the table's own key, which is that
/// of the ids as text.
const SELECT_FAILURES: &str = r#"SELECT row_id, path, code, message, permanent, attempts,
        to_char(last_seen AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS last_failed_at
    FROM bucket_brigade.failures
    WHERE run_id = $1 AND ($2::text IS NULL OR code = $2) ORDER BY row_id LIMIT $3"#;

/// A row that could not be moved.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
struct FailedRow {
    row_id: String,
    /// The path it was fed with.
    path: String,
    code: String,
    message: String,
    permanent: bool,
    attempts: i64,
    /// In UTC.
    #[serde(rename = "last_seen")]
    last_failed_at: String,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder failures --code NoSuchKey\n\nExit codes: 0 there are none; 2 there are some; 64 wrong settings, or no such run; 69 the database\ncannot be reached; 70 unexpected error; 77 a right is missing."
)]
pub struct Args {
    /// Those with this code only
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N", default_value = "100", value_parser = setting(integer_between(1_u32, 10_000_000)))]
    limit: Setting<u32>,
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
                printable(&row.row_id),
                printable(&row.path),
                row.code,
                row.attempts,
                row.last_failed_at,
                printable(&row.message)
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
    let limit = args.limit.take(&mut problems);
    let context = args.common.into_context(problems).await?;
    let ledger = context.open_ledger(TableAccess::Read).await?;
    let code = args.code.as_deref();
    let failures = failed_rows(&ledger, code, limit).await?;
    let mut codes = failure_counts(&ledger).await?;
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

/// The first `most` failures, of one code or all.
async fn failed_rows(
    ledger: &PostgresLedger,
    code: Option<&str>,
    most: u32,
) -> Result<Vec<FailedRow>, StatementError> {
    let query = sqlx::query_as(SELECT_FAILURES).bind(ledger.run_id());
    let query = query.bind(code).bind(i64::from(most));
    with_timeout(query.fetch_all(ledger.pool())).await
}
