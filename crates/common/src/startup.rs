//! What both binaries do before and after their own work: `.env`, flags, logs, signals, exit codes.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogError;
use crate::exit;
use crate::ledger::LedgerError;
use crate::preflight::PreflightError;
use crate::queue::QueueError;
use crate::settings::SettingsError;

/// Background tasks get this long to end once the work is over.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

/// How many threads the work is spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One: waking another thread costs more than most of what a message needs. A fifth less CPU per image,
    /// and still more copies a second than S3 allows in one prefix; beyond that there are more processes.
    One,
    /// As many as there are processors: as fast as it can be.
    PerProcessor,
}

/// The environment variable by which tokio is told otherwise.
const TOLD_THREADS: &str = "TOKIO_WORKER_THREADS";

/// Parses the arguments and runs `work` until it ends, with a token that the first SIGTERM or SIGINT
/// cancels. A second signal ends the process at once: the queue gives back what was in hand.
pub fn run<A, F>(threads: Threads, work: impl FnOnce(A, CancellationToken) -> F) -> ExitCode
where
    A: Parser,
    F: Future<Output = anyhow::Result<u8>>,
{
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => {
            return fail(&anyhow::anyhow!(".env: {}", unread(&error)), exit::SETTINGS);
        }
        _ => {}
    }
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    match runtime(threads) {
        Ok(runtime) => {
            let code = runtime.block_on(supervise(args, work));
            runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
            code
        }
        Err(error) => fail(&error.into(), exit::UNEXPECTED),
    }
}

fn runtime(threads: Threads) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if threads == Threads::One && std::env::var_os(TOLD_THREADS).is_none() {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

/// Why `.env` cannot be read, without the line at fault: it may hold a password.
fn unread(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(line, _) => format!(
            "a line cannot be read, that of {}: quote a value that holds a space, # or $ with '",
            line.split_once('=')
                .map_or("no NAME=value", |(name, _)| name.trim())
        ),
        other => other.to_string(),
    }
}

async fn supervise<A, F>(args: A, work: impl FnOnce(A, CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<u8>>,
{
    let stop = CancellationToken::new();
    match listen() {
        Ok(signals) => drop(tokio::spawn(watch_signals(signals, stop.clone()))),
        Err(error) => return fail(&error.into(), exit::UNEXPECTED),
    }
    match work(args, stop).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = exit_code(&error);
            fail(&error, code)
        }
    }
}

fn listen() -> std::io::Result<[Signal; 2]> {
    Ok([
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ])
}

async fn watch_signals([mut terminate, mut interrupt]: [Signal; 2], stop: CancellationToken) {
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            tracing::warn!("second signal: ending at once, the queue gives back what was in hand");
            std::process::exit(i32::from(exit::KILLED));
        }
        tracing::info!("stopping: finishing what is in hand (a second signal ends at once)");
        stop.cancel();
    }
}

/// Help and version are no errors; anything else is a wrong setting.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when even this cannot be printed.
    drop(error.print());
    ExitCode::from(if error.use_stderr() {
        exit::SETTINGS
    } else {
        exit::DONE
    })
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a process, also when logs are off"
)]
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

/// The documented exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<SettingsError>() {
        exit::SETTINGS
    } else if let Some(error) = error.downcast_ref::<LedgerError>() {
        error.exit_code()
    } else if let Some(error) = error.downcast_ref::<PreflightError>() {
        error.exit_code()
    } else if error.is::<CatalogError>() {
        exit::UNAVAILABLE
    } else if let Some(error) = error.downcast_ref::<QueueError>() {
        match error {
            QueueError::Refused { .. } => exit::NO_PERMISSION,
            QueueError::Unavailable { .. } => exit::UNAVAILABLE,
        }
    } else {
        exit::UNEXPECTED
    }
}

/// A name for this process in the ledger: its role, its host, and a suffix that no restart repeats.
pub fn process_name(role: &str) -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "local".into());
    format!("{role}-{host}-{:08x}", fastrand::u32(..))
}
