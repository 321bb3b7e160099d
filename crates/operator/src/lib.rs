//! The operator's commands, one file or folder each, with their ledger queries; and the live page. A command
//! prints to standard output, as text or with `--json` as one JSON object; logs go to standard error.

pub mod chosen_runs;
pub mod clean;
mod command_cursor;
mod command_throttle;
mod consent;
pub mod context;
pub mod dashboard;
pub mod failures;
pub mod history;
pub mod limit;
mod locks;
mod move_verdict;
mod moved_row;
pub mod output;
mod page_pipeline;
mod path_column;
pub mod pause;
pub mod plan;
pub mod progress_bar;
pub mod report;
pub mod retry;
mod retrying_store;
pub mod rollback;
pub mod runs;
#[cfg(test)]
mod statement_plans;
mod statements;
pub mod status;
pub mod verify;

use std::future::pending;

use bucket_brigade_common::exit;
use bucket_brigade_common::healthcheck::HealthcheckArgs;
use bucket_brigade_common::manual::ManualCommand;
use clap::{Command, Subcommand};
use tokio_util::sync::CancellationToken;

use chosen_runs::RunControlArgs;
use page_pipeline::CommandStopped;
use plan::FeederCheck;

/// The commands beside feeding.
#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// Print what would be done, whether it can be done, and what it would cost; changes nothing
    Plan(plan::Args),
    /// List the runs that the ledger knows, and how far each is
    Runs(runs::Args),
    /// Print the state of the run on one screen: progress, processes, queue, failures
    Status(status::Args),
    /// Serve the live page of all runs at STATUS_ADDR, until Ctrl-C
    Dashboard(dashboard::command::Args),
    /// Pause the whole fleet within two seconds: copies under way are finished, nothing new is begun
    #[command(after_help = pause::PAUSE_HELP)]
    Pause(RunControlArgs),
    /// End a pause
    #[command(after_help = pause::RESUME_HELP)]
    Resume(RunControlArgs),
    /// Bound what the whole fleet does, within two seconds: rows per second, copies in flight
    Limit(limit::Args),
    /// List the rows that failed, and why
    Failures(failures::Args),
    /// Feed rows that failed again, and redrive the dead-letter queue
    Retry(retry::Args),
    /// Check every moved row: its copy is there as recorded, and its source is unchanged
    Verify(verify::Args),
    /// Write one line per row: where it went, when, by whom, or why not
    Report(report::Args),
    /// Set rows back to their old path
    Rollback(rollback::Args),
    /// Remove source objects whose rows were moved and verified, or copies that no row names
    Clean(clean::Args),
    /// Ask the feeder that runs on this machine or in this container for its health
    Healthcheck(HealthcheckArgs),
    #[command(flatten)]
    Manual(ManualCommand),
}

impl OperatorCommand {
    /// Runs it until its end or `stop`, as a command of `program`. Returns the exit code.
    pub async fn run(
        self,
        program: Command,
        feeder: FeederCheck,
        stop: CancellationToken,
    ) -> anyhow::Result<u8> {
        tokio::spawn(statements::watch_stop(stop.clone()));
        let code = self.code_when_stopped();
        let ended = Box::pin(self.run_command(program, feeder, stop.clone()));
        let stopped = async {
            stop.cancelled().await;
            match code {
                Some(code) => code,
                None => pending().await,
            }
        };
        let ended = tokio::select! {
            biased;
            code = stopped => Ok(code),
            ended = ended => match ended {
                Err(error) if error.is::<CommandStopped>() => Ok(exit::STOPPED),
                ended => ended,
            },
        };
        if matches!(ended, Ok(exit::STOPPED)) {
            tracing::warn!("stopped before the end: start the same command again");
        }
        ended
    }

    /// None for those that end themselves, because they have work in hand.
    fn code_when_stopped(&self) -> Option<u8> {
        match self {
            Self::Plan(_) | Self::Verify(_) | Self::Rollback(_) | Self::Clean(_) => None,
            Self::Status(args) if args.is_watching() => Some(exit::DONE),
            Self::Dashboard(_) => Some(exit::DONE),
            _ => Some(exit::STOPPED),
        }
    }

    async fn run_command(
        self,
        program: Command,
        feeder: FeederCheck,
        stop: CancellationToken,
    ) -> anyhow::Result<u8> {
        match self {
            Self::Plan(args) => Box::pin(plan::run(args, feeder, stop)).await,
            Self::Runs(args) => Box::pin(runs::run(args)).await,
            Self::Status(args) => Box::pin(status::run(args)).await,
            Self::Dashboard(args) => Box::pin(dashboard::command::run(args)).await,
            Self::Pause(args) => Box::pin(pause::pause(args)).await,
            Self::Resume(args) => Box::pin(pause::resume(args)).await,
            Self::Limit(args) => Box::pin(limit::run(args)).await,
            Self::Failures(args) => Box::pin(failures::run(args)).await,
            Self::Retry(args) => Box::pin(retry::run(args)).await,
            Self::Verify(args) => Box::pin(verify::run(args, stop)).await,
            Self::Report(args) => Box::pin(report::run(args)).await,
            Self::Rollback(args) => Box::pin(rollback::run(args, stop)).await,
            Self::Clean(args) => Box::pin(clean::run(args, stop)).await,
            Self::Healthcheck(args) => Ok(args.run().await?),
            Self::Manual(command) => command.run(program),
        }
    }
}
