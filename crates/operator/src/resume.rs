//! `feeder resume`: the end of a pause.

use std::fmt;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::chosen_runs::SteeringArgs;
use crate::history::Operator;

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
    steering: SteeringArgs,
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
    let runs = Box::pin(args.steering.choose(SettingsProblems::default())).await?;
    let resume = async |run| {
        Ok(ResumeOutput {
            run,
            paused: false,
            was_paused: resume_run(&runs.pool, run, &runs.operator).await?,
        })
    };
    runs.print_each(resume).await
}

/// Ends a pause; whether there was one.
pub(crate) async fn resume_run(
    pool: &PgPool,
    run: i64,
    operator: &Operator,
) -> Result<bool, StatementError> {
    let query = sqlx::query_scalar(RESUME_RUN).bind(run);
    let was_paused = with_timeout(query.fetch_one(pool)).await?;
    if was_paused {
        operator.record(pool, run, "resume", None).await;
    }
    Ok(was_paused)
}
