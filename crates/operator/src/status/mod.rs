//! `feeder status`: one screen of what goes on, and why. It costs the database the same however large
//! the migration is: sums over processes and codes, and the attributes of the queue.

mod output;
mod queries;
mod queue;
mod snapshot;
mod state;

use std::cell::RefCell;
use std::fmt::Display;
use std::time::Duration;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::printable::{printable_lines, takes_escapes};
use bucket_brigade_common::settings::{Setting, SettingsProblems, duration_between, setting};
use serde::Serialize;
use tokio::time::sleep;

use super::context::CommonArgs;
use super::output::{OutputFormat, write_to};
pub(crate) use queries::{CodeCount, failure_counts, live_workers};
use snapshot::AllRunsStatus;
pub use snapshot::StatusSnapshot;

/// The cursor to the upper left, and nothing left of what was shown below it.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder status --watch\n  feeder status --all\n\nExit codes: 0 printed; 3 stopped before that; 64 wrong settings, or no such run; 69 the database\ncannot be reached; 70 unexpected error; 77 a right is missing."
)]
pub struct Args {
    /// Go on until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Every run on one screen; needs the database's address alone, and shows the queue where QUEUE_URL names it
    #[arg(long)]
    all: bool,
    /// With --watch: how often
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = setting(duration_between(Duration::from_millis(200), Duration::from_hours(1))))]
    interval: Setting<Duration>,
    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    pub(super) fn is_watching(&self) -> bool {
        self.watch
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let interval = args.interval.take(&mut problems);
    let interval = args.watch.then_some(interval);
    if args.all {
        let settings = args.common.parse(problems)?;
        let pool = RefCell::new(settings.connect_to_ledger().await?);
        let queue = settings.sqs_queue().await;
        let read = async || {
            let mut known = pool.borrow().clone();
            if known.is_none() {
                // The first feeder may have made it meanwhile.
                known = settings.connect_to_ledger().await.ok().flatten();
                pool.borrow_mut().clone_from(&known);
            }
            AllRunsStatus::read(known.as_deref(), queue.as_ref()).await
        };
        return show_status(settings.format, interval, read).await;
    }
    let context = args.common.into_context(problems).await?;
    let run = context.open_run().await?;
    let queue = context.sqs_queue().await?;
    let read = async || StatusSnapshot::read_run(&run.pool, run.id, &queue).await;
    show_status(context.format, interval, read).await
}

/// Prints once, or at each interval.
async fn show_status<T: Display + Serialize>(
    format: OutputFormat,
    interval: Option<Duration>,
    read: impl AsyncFn() -> Result<T, StatementError>,
) -> anyhow::Result<u8> {
    let Some(interval) = interval else {
        format.print(&read().await?)?;
        return Ok(exit::DONE);
    };
    watch_status(format, interval, read).await
}

/// Prints until its reader goes. A database that does not answer is logged, and waited for.
async fn watch_status<T: Display + Serialize>(
    format: OutputFormat,
    interval: Duration,
    read: impl AsyncFn() -> Result<T, StatementError>,
) -> anyhow::Result<u8> {
    let redraws = format == OutputFormat::Text && takes_escapes(&std::io::stdout());
    loop {
        let has_reader = match read().await {
            Ok(view) if redraws => {
                // In one write, so that nothing flickers.
                let screen = format!("{CLEAR_SCREEN}{}\n", printable_lines(&view.to_string()));
                write_to(&mut std::io::stdout(), screen.as_bytes())?
            }
            Ok(view) => format.print_to_reader(&view)?,
            Err(error) => {
                tracing::warn!(%error, "the status cannot be read");
                true
            }
        };
        if !has_reader {
            return Ok(exit::DONE);
        }
        sleep(interval).await;
    }
}
