//! `feeder pause`: nothing new is begun, by the feeder nor by any consumer, until `feeder resume`.

use std::fmt;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{LedgerError, ensure_no_rival, with_timeout};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::chosen_runs::RunControlArgs;
use crate::history::Operator;

const PAUSE_RUN: &str = "UPDATE bucket_brigade.run
    SET paused = true, paused_by = $2, pause_reason = $3, paused_at = now() WHERE id = $1";

pub(super) const PAUSE_HELP: &str = "Examples:\n  feeder pause --reason 'release 4.2 goes out'\n  feeder pause --all\n\nExit codes: 0 paused; 64 wrong settings, or no such run; 69 the database cannot be reached; 70\nunexpected error; 77 a right is missing.";

#[derive(Serialize)]
struct PauseOutput {
    run: i64,
    paused: bool,
    by: String,
    reason: Option<String>,
}

impl fmt::Display for PauseOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, by, .. } = self;
        write!(f, "run {run} is paused by {}", printable(by))?;
        if let Some(reason) = &self.reason {
            write!(f, " ({})", printable(reason))?;
        }
        write!(
            f,
            ": within two seconds nothing new is begun; copies under way are finished"
        )
    }
}

pub(super) async fn pause(args: RunControlArgs) -> anyhow::Result<u8> {
    let runs = Box::pin(args.choose(SettingsProblems::default())).await?;
    let pause = async |run| {
        pause_run(&runs.pool, run, &runs.operator).await?;
        Ok(PauseOutput {
            run,
            paused: true,
            by: runs.operator.by.clone(),
            reason: runs.operator.reason.clone(),
        })
    };
    runs.print_each(pause).await
}

/// Pauses the fleet. Who and why is what `status` prints. Pausing twice changes these, and stops
/// commands that were started during the first pause.
pub async fn pause_run(pool: &PgPool, run: i64, operator: &Operator) -> Result<(), StatementError> {
    let query = sqlx::query(PAUSE_RUN).bind(run);
    let query = query.bind(&operator.by).bind(&operator.reason);
    with_timeout(query.execute(pool)).await?;
    operator.record(pool, run, "pause", None).await;
    Ok(())
}

const RESUME_RUN: &str = "UPDATE bucket_brigade.run r
    SET paused = false, paused_by = NULL, pause_reason = NULL, paused_at = NULL
    FROM (SELECT id, paused FROM bucket_brigade.run WHERE id = $1 FOR UPDATE) before
    WHERE r.id = before.id RETURNING before.paused";

pub(super) const RESUME_HELP: &str = "Example:\n  feeder resume\n\nExit codes: 0 not paused any more; 64 wrong settings, no such run, or one whose paths mean other objects\nby now; 69 the database cannot be reached; 70 unexpected error; 75 another run is at work on its rows; 77 a\nright is missing. With --all what may not go on stays paused.";

#[derive(Serialize)]
struct ResumeOutput {
    run: i64,
    paused: bool,
    was_paused: bool,
    /// Why it may not go on.
    refused: Option<String>,
}

impl fmt::Display for ResumeOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.run;
        match self.refused.as_deref().map(printable) {
            Some(why) => write!(f, "run {run} is not resumed: {why}"),
            None if self.was_paused => write!(f, "run {run} is resumed"),
            None => write!(f, "run {run} was not paused"),
        }
    }
}

pub(super) async fn resume(args: RunControlArgs) -> anyhow::Result<u8> {
    let mut runs = Box::pin(args.choose(SettingsProblems::default())).await?;
    // Of two that have the same rows the newer one goes on.
    runs.runs.reverse();
    // One that failed may be that newer one.
    runs.ends_with_failure = true;
    let resume = async |run| {
        let refused = match ensure_no_rival(&runs.pool, run).await {
            Ok(()) => None,
            Err(error) if runs.is_all && is_refusal(&error) => Some(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let was_paused = match refused {
            None => resume_run(&runs.pool, run, &runs.operator).await?,
            Some(_) => is_paused(&runs.pool, run).await?,
        };
        Ok(ResumeOutput {
            run,
            paused: was_paused && refused.is_some(),
            was_paused,
            refused,
        })
    };
    runs.print_each(resume).await
}

/// A reason to leave a run paused, and no failure.
pub(crate) fn is_refusal(error: &LedgerError) -> bool {
    matches!(
        error,
        LedgerError::SharedRows { .. } | LedgerError::SplitPaths { .. }
    )
}

async fn is_paused(pool: &PgPool, run: i64) -> Result<bool, StatementError> {
    let query = sqlx::query_scalar("SELECT paused FROM bucket_brigade.run WHERE id = $1");
    with_timeout(query.bind(run).fetch_one(pool)).await
}

/// Whether there was one.
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
