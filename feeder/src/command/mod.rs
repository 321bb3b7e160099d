//! What an operator asks and tells: one file per command. Each answers on standard output, as text or
//! with `--json` as one JSON object; logs go to standard error.

pub mod answer;
pub mod context;
mod limit;
mod pause;
mod resume;

use clap::Subcommand;
use tokio_util::sync::CancellationToken;

/// The commands beside feeding.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pause the whole fleet within two seconds: what is in hand is finished, nothing new is begun
    Pause(pause::Args),
    /// End a pause
    Resume(resume::Args),
    /// Bound what the whole fleet does, within two seconds: rows per second, copies in flight
    Limit(limit::Args),
}

impl Command {
    /// Runs it until its end or `stop`. Returns the exit code.
    ///
    /// # Errors
    /// What keeps it from running, before anything is touched.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<u8> {
        // The commands of an instant have no use for the stop.
        let _ = stop;
        match self {
            Self::Pause(args) => pause::run(args).await,
            Self::Resume(args) => resume::run(args).await,
            Self::Limit(args) => limit::run(args).await,
        }
    }
}
