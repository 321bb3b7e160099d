//! The demo: the real feeder and consumers move seeded images on a private Postgres and local S3 and
//! SQS while an application uses them; then everything is checked.

mod crew;
mod progress;
mod report;
mod stage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::checker::full_sweep;
use crate::traffic::{Traffic, TrafficReport};
use crew::Crew;
use progress::Progress;
use report::Report;
use stage::Stage;

/// Between two looks at how far the migration is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longer than a message stays invisible after its consumer was killed.
const DRAIN_WITHIN: Duration = Duration::from_mins(2);

/// Moves seeded images with the real feeder and consumers while an application uses them, on a
/// private Postgres and local S3 and SQS, and checks that nothing was lost.
#[derive(Debug, Clone, Parser)]
#[command(name = "script/demo")]
pub struct Arguments {
    /// Images in scope of the migration.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..))]
    pub images: u32,
    /// Consumer processes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub consumers: u32,
    /// Leave everything running after the run, until Ctrl-C, and print the environment to use it.
    #[arg(long)]
    pub keep: bool,
    /// Print the figures as one JSON object in the last line of standard output; all else goes to
    /// standard error.
    #[arg(long)]
    pub json: bool,
    /// Kill every process once, without warning, when half of the images have moved.
    #[arg(long)]
    pub kill_each_once: bool,
    /// Where the dice for images and traffic start.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs the demo; succeeds only if everything that must hold did.
pub async fn main() -> ExitCode {
    // Ctrl-C needs no handling: the watchdogs clean up after us.
    match run(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::tell(&format!("script/demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    let stage = Stage::set_up(arguments).await?;
    let (traffic, seconds) = migrate(&stage, arguments).await?;
    report::tell("Checking every row and every object …");
    let checker = stage.application.with_s3(stage.cloud.s3_as("checker"));
    let verdict = full_sweep(&checker, &stage.seeded, &traffic.log).await?;
    let report = Report::of(&stage, &verdict, &traffic, seconds).await?;
    report.print(&verdict, &traffic, arguments.json)?;
    if arguments.keep {
        stage.keep().await;
    }
    Ok(report.holds(&verdict))
}

/// The migration from start to end with the traffic beside it, and the seconds it took.
async fn migrate(stage: &Stage, arguments: &Arguments) -> Result<(TrafficReport, f64)> {
    let traffic = Traffic::start(&stage.application, stage.seeded.clone(), &stage.rates()).await?;
    let mut progress = Progress::start(stage).await?;
    let mut crew = Crew::start(stage, arguments.consumers)?;
    let mut to_be_killed = arguments.kill_each_once;
    while !crew.feeder_is_done()? {
        crew.check_consumers()?;
        progress.look(&traffic).await?;
        traffic.allow_writes(stage.writes_by(progress.moved()));
        if to_be_killed && progress.is_half_way() {
            to_be_killed = false;
            crew.kill_each_once().await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    drain(stage, &mut crew).await?;
    let seconds = progress.finish(&traffic).await?;
    let report = traffic.stop().await;
    crew.dismiss().await?;
    Ok((report, seconds))
}

/// Until the queue is empty: failed images are on their way to the dead-letter queue.
async fn drain(stage: &Stage, crew: &mut Crew<'_>) -> Result<()> {
    let begun = Instant::now();
    while stage.queue_depth().await?.total() > 0 {
        crew.check_consumers()?;
        if begun.elapsed() > DRAIN_WITHIN {
            bail!("the queue is not empty {DRAIN_WITHIN:?} after the feeder ended");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// A line on the terminal or in a log, as an error of writing it is an error of the demo.
fn write_out(text: &str) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}
