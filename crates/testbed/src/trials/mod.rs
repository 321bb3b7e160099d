//! Trials: the real consumers under one kind of strain at a time, with figures.

mod environment;
pub mod shutdown;
pub mod throttling;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Puts real consumers under one kind of strain, on a private Postgres and local S3 and SQS, and
/// prints figures. Exit code 0 only when the targets are met.
#[derive(Debug, Parser)]
#[command(name = "script/chaos")]
struct TrialsArguments {
    #[command(subcommand)]
    trial: TrialCommand,
}

#[derive(Debug, Subcommand)]
enum TrialCommand {
    /// Consumers against a store that refuses copies above a rate
    Throttling {
        #[command(flatten)]
        arguments: throttling::ThrottlingArguments,
        /// Print the figures as one JSON object in the last line of standard output
        #[arg(long)]
        json: bool,
    },
    /// SIGTERM to a consumer under load, again and again
    Shutdown {
        #[command(flatten)]
        arguments: shutdown::ShutdownArguments,
        /// Print the figures as one JSON object in the last line of standard output
        #[arg(long)]
        json: bool,
    },
}

/// Runs a trial; succeeds only if its targets were met.
pub async fn main() -> ExitCode {
    // Ctrl-C needs no handling: the watchdogs clean up after us.
    match run(TrialsArguments::parse().trial).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_status(&format!("script/chaos: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(trial: TrialCommand) -> Result<bool> {
    match trial {
        TrialCommand::Throttling { arguments, json } => {
            let figures = throttling::run(&arguments).await?;
            print_figures(&figures, json)?;
            Ok(figures.meets_targets())
        }
        TrialCommand::Shutdown { arguments, json } => {
            let figures = shutdown::run(&arguments).await?;
            print_figures(&figures, json)?;
            Ok(figures.meets_targets())
        }
    }
}

/// On one line for machines, on one line each for people.
fn print_figures(figures: &impl Serialize, json: bool) -> Result<()> {
    let text = if json {
        serde_json::to_string(figures)?
    } else {
        serde_json::to_string_pretty(figures)?
    };
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn print_status(text: &str) {
    // Nothing is left to do when even this cannot be printed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A share to a hundredth of a per cent.
fn round_share(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0
}
