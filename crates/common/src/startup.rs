//! What both binaries do before and after their own work: `.env`, flags, logs, signals, exit codes.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::future::select_all;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::aws::error_chain;
use crate::ledger::LedgerError;
use crate::ledger::move_ledger::StatementError;
use crate::object_store::StoreError;
use crate::panics;
use crate::preflight::PreflightError;
use crate::printable::printable_lines;
use crate::queue::QueueError;
use crate::settings::{SettingsError, read_dotenv};
use crate::{exit, logging};

/// Background tasks get this long to end once the work is over.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Wrappers such as `timeout` send a signal to the process and to its group: it arrives twice.
const SAME_SIGNAL: Duration = Duration::from_millis(300);

/// What a signal does waits so long for its line in the log.
const LOG_LIMIT: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerThreads {
    /// One: waking another thread costs more than most of what a message needs, and one makes more copies
    /// a second than S3 allows in one prefix. Beyond that there are more processes.
    One,
    PerProcessor,
}

/// tokio's own variable.
const WORKER_THREADS_VARIABLE: &str = "TOKIO_WORKER_THREADS";

/// Parses the arguments and runs `work` until it ends, with a token that the first SIGTERM, SIGINT or SIGHUP
/// cancels. A second signal ends the process at once: the queue gives back what was in hand.
pub fn run<A, F>(threads: WorkerThreads, work: impl FnOnce(A, CancellationToken) -> F) -> ExitCode
where
    A: Parser,
    F: Future<Output = anyhow::Result<u8>>,
{
    panics::exit_on_panic();
    match read_dotenv() {
        Ok(warnings) => warnings.iter().for_each(|text| print_line("warning", text)),
        Err(error) => return print_error(&error, exit::INVALID_SETTINGS),
    }
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) => return print_usage(&error),
    };
    match build_runtime(threads) {
        Ok(runtime) => {
            let code = runtime.block_on(run_with_signals(args, work));
            runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
            code
        }
        Err(error) => print_error(&error.into(), exit::UNEXPECTED),
    }
}

fn build_runtime(threads: WorkerThreads) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if threads == WorkerThreads::One && std::env::var_os(WORKER_THREADS_VARIABLE).is_none() {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

async fn run_with_signals<A, F>(args: A, work: impl FnOnce(A, CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<u8>>,
{
    let stop = CancellationToken::new();
    if let Err(error) = spawn_signal_thread(stop.clone()) {
        return print_error(&error.into(), exit::UNEXPECTED);
    }
    let ended = work(args, stop).await;
    logging::end_logging();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = exit_code(&error);
            print_error(&error, code)
        }
    }
}

/// Where nobody reads the log, what writes to it stands still, and with it a worker thread.
fn spawn_signal_thread(stop: CancellationToken) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let signals = {
        let _entered = runtime.enter();
        listen_for_signals()?
    };
    let watching = move || runtime.block_on(watch_signals(signals, stop));
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watching)?;
    Ok(())
}

/// Those that ask for an end. A terminal that is closed does, too, unless `nohup` has the process ignore it.
fn listen_for_signals() -> std::io::Result<Vec<(SignalKind, Signal)>> {
    let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
    if !is_hangup_ignored() {
        kinds.push(SignalKind::hangup());
    }
    let listen = |kind| signal(kind).map(|signal| (kind, signal));
    kinds.into_iter().map(listen).collect()
}

fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = SignalKind::hangup().as_raw_value() - 1;
    mask.is_some_and(|mask| mask >> bit & 1 == 1)
}

async fn watch_signals(mut signals: Vec<(SignalKind, Signal)>, stop: CancellationToken) {
    let mut first = None;
    loop {
        let received = signals.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        let (kind, ..) = select_all(received).await;
        if let Some((of_kind, at)) = first {
            if kind == of_kind && Instant::elapsed(&at) < SAME_SIGNAL {
                continue;
            }
            log_within_limit(|| {
                tracing::warn!(
                    "second signal: ending at once, the queue gives back what was in hand"
                );
                logging::end_logging();
            });
            std::process::exit(i32::from(exit::KILLED));
        }
        first = Some((kind, Instant::now()));
        log_within_limit(|| {
            tracing::info!("stopping: finishing what is in hand (a second signal ends at once)");
        });
        stop.cancel();
    }
}

fn log_within_limit(log: fn()) {
    let Ok(logging) = std::thread::Builder::new().spawn(log) else {
        return;
    };
    let limit = Instant::now() + LOG_LIMIT;
    while !logging.is_finished() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Help and version are no errors; anything else is a wrong setting.
fn print_usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when even this cannot be printed.
    drop(error.print());
    ExitCode::from(if error.use_stderr() {
        exit::INVALID_SETTINGS
    } else {
        exit::DONE
    })
}

/// The last message of a process, also when logs are off.
fn print_error(error: &anyhow::Error, code: u8) -> ExitCode {
    print_line("error", &error_chain(&**error));
    ExitCode::from(code)
}

/// A closed standard error does not change the exit code.
fn print_line(kind: &str, message: &str) {
    let message = printable_lines(message);
    drop(writeln!(std::io::stderr(), "{kind}: {message}"));
}

pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<SettingsError>() {
        exit::INVALID_SETTINGS
    } else if let Some(error) = error.downcast_ref::<LedgerError>() {
        error.exit_code()
    } else if let Some(error) = error.downcast_ref::<PreflightError>() {
        error.exit_code()
    } else if let Some(refusal) = error.downcast_ref::<exit::CommandError>() {
        refusal.code
    } else if let Some(error) = error.downcast_ref::<StoreError>() {
        match error {
            StoreError::Denied { .. } => exit::NO_PERMISSION,
            _ => exit::UNAVAILABLE,
        }
    } else if let Some(error) = error.downcast_ref::<StatementError>() {
        if error.is_denied() {
            exit::NO_PERMISSION
        } else {
            exit::UNAVAILABLE
        }
    } else if let Some(error) = error.downcast_ref::<QueueError>() {
        match error {
            _ if error.is_about_missing_queue() => exit::INVALID_SETTINGS,
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
    // It is part of an index's key.
    let host: String = host.chars().take(100).collect();
    format!("{role}-{host}-{:08x}", fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::panics::contain_panic;

    /// Takes what the test harness is started with.
    #[derive(Parser)]
    struct AnyArgs {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _rest: Vec<String>,
    }

    /// Not a test: the process that the test below starts.
    #[test]
    #[ignore = "ends its process"]
    fn panicking_process() {
        run(WorkerThreads::One, async |_: AnyArgs, _| {
            let defect = async {
                tokio::task::yield_now().await;
                panic!("defect {}", 1)
            };
            let contained: Result<(), String> = contain_panic(defect).await;
            eprintln!("contained: {contained:?}");
            drop(tokio::spawn(async { panic!("defect 2") }));
            std::future::pending().await
        });
    }

    #[test]
    fn a_contained_panic_ends_no_process_and_one_in_any_task_does() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture"]);
        command.arg("startup::tests::panicking_process");
        let output = command.stdin(Stdio::null()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{log}");
        let place = "contained: Err(\"panicked at crates/common/src/startup.rs:";
        assert!(log.contains(place), "{log}");
        assert!(
            log.contains(": defect 1\")") && log.contains("defect 2"),
            "{log}"
        );
    }

    #[test]
    fn errors_that_nothing_foresaw_are_not_findings() {
        let error = anyhow::Error::from(std::io::Error::other("no space left"));
        assert_eq!(exit_code(&error), exit::UNEXPECTED);
        assert_ne!(exit::UNEXPECTED, exit::CHECK_FAILED);
    }
}
