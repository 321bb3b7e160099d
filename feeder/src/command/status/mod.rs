//! `feeder status`: one screen of what goes on, and why. It costs the database the same however large
//! the migration is: sums over processes and codes, and a look at the queue.

mod show;
mod state;
mod view;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{Access, Ledger};
use bucket_brigade_common::settings::{Problems, positive};
use bucket_brigade_common::sqs::SqsQueue;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::answer::Format;
use super::context::{CommonArgs, Context};
pub(super) use show::grouped;
pub(crate) use view::View;

/// The cursor to the upper left, and nothing left of what was shown below it.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Its flags and settings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder status --watch\n\nExit codes: 0 told; 1 unexpected error; 64 wrong settings, or no such run; 69 the database cannot\nbe reached; 77 a right is missing."
)]
pub struct Args {
    /// Go on telling until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// With --watch: how often [default: 2s]
    #[arg(long, value_name = "DURATION")]
    interval: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let mut problems = Problems::default();
    let interval = problems.parsed(
        "--interval",
        args.interval,
        Duration::from_secs(2),
        positive(Duration::from_millis(200), Duration::from_hours(1)),
    );
    let context = args.common.context(problems)?;
    let ledger = context.ledger(Access::Read).await?;
    let queue = context.queue().await;
    if !args.watch {
        context.answer(&View::read(&ledger, &queue).await?)?;
        return Ok(exit::DONE);
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(exit::DONE),
        error = watch(&context, &ledger, &queue, interval) => error,
    }
}

/// Tells for ever. A database that does not answer is told, and waited for.
async fn watch(
    context: &Context,
    ledger: &Ledger,
    queue: &SqsQueue,
    interval: Duration,
) -> anyhow::Result<u8> {
    let redraws = context.format == Format::Text && std::io::stdout().is_terminal();
    loop {
        match View::read(ledger, queue).await {
            Ok(view) if redraws => redraw(&view)?,
            Ok(view) => context.answer(&view)?,
            Err(error) => tracing::warn!(%error, "the status cannot be read"),
        }
        sleep(interval).await;
    }
}

/// In one write, so that nothing flickers.
fn redraw(view: &View) -> anyhow::Result<()> {
    let mut screen = String::from(REDRAW);
    // Writing to a string cannot fail.
    let _ = writeln!(screen, "{view}");
    let mut out = std::io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    Ok(out.flush()?)
}
