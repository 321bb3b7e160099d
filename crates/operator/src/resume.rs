//! `feeder resume`: the end of a pause.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, TableAccess, with_timeout};
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;

use crate::context::CommonArgs;

const RESUME_RUN: &str = "UPDATE bucket_brigade.run r
    SET paused = false, paused_by = NULL, pause_reason = NULL, paused_at = NULL
    FROM (SELECT id, paused FROM bucket_brigade.run WHERE id = $1 FOR UPDATE) before
    WHERE r.id = before.id RETURNING before.paused";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder resume\n\nExit codes: 0 not paused any more; 64 wrong settings, or no such run; 69 the database cannot be\nreached; 70 unexpected error; 77 a right is missing."
)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct ResumeOutput {
    run: i64,
    paused: bool,
    was_paused: bool,
}

impl fmt::Display for ResumeOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.run;
        if self.was_paused {
            write!(f, "run {run} goes on")
        } else {
            write!(f, "run {run} was not paused")
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let context = args
        .common
        .into_context(SettingsProblems::default())
        .await?;
    let ledger = context.open_ledger(TableAccess::Read).await?;
    let was_paused = resume_run(&ledger).await?;
    context.print_output(&ResumeOutput {
        run: ledger.run_id(),
        paused: false,
        was_paused,
    })?;
    Ok(exit::DONE)
}

/// Ends a pause; whether there was one.
pub(crate) async fn resume_run(ledger: &PostgresLedger) -> Result<bool, StatementError> {
    let query = sqlx::query_scalar(RESUME_RUN).bind(ledger.run_id());
    with_timeout(query.fetch_one(ledger.pool())).await
}
