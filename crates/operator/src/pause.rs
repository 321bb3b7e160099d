//! `feeder pause`: nothing new is begun, by the feeder nor by any consumer, until `feeder resume`.

use std::fmt;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::chosen_runs::SteeringArgs;
use crate::history::Operator;

const PAUSE_RUN: &str = "UPDATE bucket_brigade.run
    SET paused = true, paused_by = $2, pause_reason = $3, paused_at = now() WHERE id = $1";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder pause --reason 'release 4.2 goes out'\n  feeder pause --all\n\nExit codes: 0 paused; 64 wrong settings, or no such run; 69 the database cannot be reached; 70\nunexpected error; 77 a right is missing."
)]
pub struct Args {
    #[command(flatten)]
    steering: SteeringArgs,
}

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

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let runs = Box::pin(args.steering.choose(SettingsProblems::default())).await?;
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
