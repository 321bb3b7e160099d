//! `feeder failures`: what could not be moved, and why.

use std::fmt;
use std::io::Stdout;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::LedgerRun;
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::{Setting, SettingsProblems, integer_between, setting};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;

use crate::context::CommonArgs;
use crate::output::ListWriter;
use crate::statements::Pages;
use crate::status::{CodeCount, failure_counts};

/// In the order of the table's own key, which is that of the ids as text.
pub(crate) const SELECT_FAILURES: &str = r#"SELECT row_id, path, code, message, permanent, attempts,
        to_char(last_seen AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS last_failed_at
    FROM bucket_brigade.failures
    WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 1000"#;

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
    #[arg(long, value_name = "CODE", value_parser = NonEmptyStringValueParser::new())]
    code: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N", default_value = "100", value_parser = setting(integer_between(1_u32, 10_000_000)))]
    limit: Setting<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

impl fmt::Display for FailedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hope = if self.permanent {
            "for good"
        } else {
            "may pass"
        };
        write!(
            f,
            "\n{}  {}\n    {} ({hope}; attempts: {}, last {}): {}",
            printable(&self.row_id),
            printable(&self.path),
            self.code,
            self.attempts,
            self.last_failed_at,
            printable(&self.message)
        )
    }
}

#[derive(Serialize)]
struct FailuresSummary {
    run: i64,
    codes: Vec<CodeCount>,
    /// Rows that failed and are not listed here.
    not_listed: u64,
}

impl fmt::Display for FailuresSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |one: &CodeCount| format!("{} {}", one.code, one.rows);
        let counts: Vec<String> = self.codes.iter().map(count).collect();
        write!(f, "run {}: {}", self.run, counts.join(", "))
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let limit = args.limit.take(&mut problems);
    let context = args.common.into_context(problems).await?;
    let run = context.open_run().await?;
    let code = args.code.as_deref();
    let mut codes = failure_counts(&run.pool, Some(run.id)).await?;
    codes.retain(|one| code.is_none_or(|code| one.code == code));
    let all: u64 = codes.iter().map(|one| one.rows).sum();
    let mut summary = FailuresSummary {
        run: run.id,
        codes,
        not_listed: 0,
    };
    let mut writer = ListWriter::begin_on_stdout(context.format, "failures")?;
    let listed = list_failures(&run, code, limit, &summary, &mut writer).await?;
    if listed == 0 {
        let with = code.map_or_else(String::new, |code| format!(" with {}", printable(code)));
        writer.write_line(&format!("run {}: no row failed{with}", summary.run))?;
    }
    summary.not_listed = all.saturating_sub(listed);
    if listed > 0 && summary.not_listed > 0 {
        writer.write_line(&format!("\nand {} more: --limit", summary.not_listed))?;
    }
    writer.write_fields(&summary)?;
    Ok(if listed == 0 {
        exit::DONE
    } else {
        exit::ROWS_FAILED
    })
}

/// Writes the first `most` failures, of one code or all, page by page. Returns how many.
async fn list_failures(
    run: &LedgerRun,
    code: Option<&str>,
    most: u32,
    summary: &FailuresSummary,
    writer: &mut ListWriter<Stdout>,
) -> anyhow::Result<u64> {
    let (mut listed, mut pages) = (0, Pages::of_run(&run.pool, run.id, SELECT_FAILURES));
    while let Some(page) = pages.next(|row: &FailedRow| &row.row_id).await? {
        let is_wanted = |row: &FailedRow| code.is_none_or(|code| row.code == code);
        for row in page.into_iter().filter(is_wanted) {
            if listed == u64::from(most) {
                return Ok(listed);
            }
            if listed == 0 {
                writer.write_line(summary)?;
            }
            listed += 1;
            writer.write_item(&row)?;
        }
        if writer.is_closed() {
            break;
        }
    }
    Ok(listed)
}
