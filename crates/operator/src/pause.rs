//! `feeder pause`: nothing new is begun, by the feeder nor by any consumer, until `feeder resume`.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, TableAccess, with_timeout};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;

use crate::context::CommonArgs;

const PAUSE_RUN: &str = "UPDATE bucket_brigade.run
    SET paused = true, paused_by = $2, pause_reason = $3, paused_at = now() WHERE id = $1";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder pause --reason 'release 4.2 goes out'\n\nExit codes: 0 paused; 1 unexpected error; 64 wrong settings, or no such run; 69 the database cannot be reached; 77 a right is missing."
)]
pub struct Args {
    /// Why, as `feeder status` prints it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who pauses [default: USER@HOSTNAME]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
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
    let context = args
        .common
        .into_context(SettingsProblems::default())
        .await?;
    let ledger = context.open_ledger(TableAccess::Read).await?;
    let by = args.by.unwrap_or_else(default_operator_name);
    pause_run(&ledger, &by, args.reason.as_deref()).await?;
    context.print_output(&PauseOutput {
        run: ledger.run_id(),
        paused: true,
        by,
        reason: args.reason,
    })?;
    Ok(exit::DONE)
}

/// Pauses the fleet. `by` and `reason` are what `status` prints. Pausing twice changes these, and stops
/// commands that were started during the first pause.
pub(crate) async fn pause_run(
    ledger: &PostgresLedger,
    by: &str,
    reason: Option<&str>,
) -> Result<(), StatementError> {
    let query = sqlx::query(PAUSE_RUN).bind(ledger.run_id());
    let query = query.bind(by).bind(reason);
    with_timeout(query.execute(ledger.pool())).await.map(drop)
}

/// The user who is logged in, as far as the environment says.
fn default_operator_name() -> String {
    let of = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let user = of("USER")
        .or_else(|| of("LOGNAME"))
        .unwrap_or_else(|| "an operator".into());
    match of("HOSTNAME") {
        Some(host) => format!("{user}@{host}"),
        None => user,
    }
}
