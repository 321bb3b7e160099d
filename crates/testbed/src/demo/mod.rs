//! The demo: the real feeder and consumers move seeded images on a private Postgres and local S3 and
//! SQS while an application uses them; then everything is checked.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use crate::cloud::CloudOptions;
use crate::run::{
    EXIT_SOME_FAILED, EnvironmentOptions, ProcessGroup, ProgressPrinter, RunEnvironment, RunReport,
    print_report, print_status, print_violations,
};
use crate::traffic::{Traffic, TrafficReport};

/// Between two looks at how far the migration is.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longer than a message stays invisible after its consumer was killed.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(2);

/// Moves seeded images with the real feeder and consumers while an application uses them, on a
/// private Postgres and local S3 and SQS, and checks that nothing was lost.
#[derive(Debug, Clone, Parser)]
#[command(name = "script/demo")]
pub struct DemoArguments {
    /// Images in scope of the migration.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..))]
    pub images: u32,
    /// Columns to migrate, each a run of its own with so many images, from one queue by one fleet: one to three, in
    /// two tables.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3))]
    pub columns: u32,
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
    /// Seed of the random numbers for images and traffic.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs the demo; succeeds only if everything that must hold did.
pub async fn main() -> ExitCode {
    // Ctrl-C needs no handling: the watchdogs clean up after us.
    match run(&DemoArguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_status(&format!("script/demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &DemoArguments) -> Result<bool> {
    let environment = RunEnvironment::set_up(&EnvironmentOptions {
        images: arguments.images,
        largest_bytes: None,
        odd_keys: true,
        has_tags: true,
        seed: arguments.seed,
        columns: arguments.columns,
        has_companions: false,
        cloud: CloudOptions::default(),
    })
    .await?;
    let (traffic, seconds) = run_migration(&environment, arguments).await?;
    print_status("Checking every row and every object …");
    let verdict = environment.check_runs(&traffic.log).await?;
    let report = RunReport::collect(&environment, &verdict, &traffic, seconds).await?;
    print_violations(&[&verdict.violations[..], &traffic.broken_read_details].concat());
    let holds = report.has_passed(&verdict);
    print_report(
        &report.render_table(),
        holds,
        arguments.json.then_some(&report),
    )?;
    if arguments.keep {
        environment.keep_running().await;
    }
    Ok(holds)
}

/// The migration from start to end with the traffic beside it, and the seconds it took.
async fn run_migration(
    environment: &RunEnvironment,
    arguments: &DemoArguments,
) -> Result<(TrafficReport, f64)> {
    let traffic = Traffic::start(
        &environment.application,
        environment.seeded.clone(),
        &environment.traffic_rates(),
    )
    .await?;
    let mut progress = ProgressPrinter::start(environment).await?;
    let mut processes = ProcessGroup::start(environment, arguments.consumers)?;
    let mut to_be_killed = arguments.kill_each_once;
    while !feeder_is_done(&mut processes)? {
        check_consumers(&mut processes)?;
        progress.poll_ledger(&traffic).await?;
        traffic.allow_writes(environment.allowed_writes(progress.moved_rows()));
        if to_be_killed && progress.is_half_way() {
            to_be_killed = false;
            print_status("\nKilling the feeder and every consumer, and starting them again …");
            processes.restart_all().await?;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    wait_until_drained(environment, &mut processes).await?;
    let seconds = progress.finish(&traffic).await?;
    let report = traffic.stop().await;
    stop_consumers(&mut processes).await?;
    Ok((report, seconds))
}

/// Whether every feeder has ended well.
fn feeder_is_done(processes: &mut ProcessGroup<'_>) -> Result<bool> {
    let mut is_done = true;
    for run in 0..processes.feeder_count() {
        match processes.feeder_exit_status(run)? {
            None => is_done = false,
            Some(status) if status.success() || status.code() == Some(EXIT_SOME_FAILED) => {}
            Some(status) => {
                let log = processes.feeder_log(run);
                bail!("a feeder failed ({status}):\n{log}")
            }
        }
    }
    Ok(is_done)
}

/// Fails if a consumer has ended.
fn check_consumers(processes: &mut ProcessGroup<'_>) -> Result<()> {
    match processes.exited_consumers()?.first() {
        None => Ok(()),
        Some((n, status)) => {
            let log = processes.consumer_log(*n);
            bail!("a consumer ended early ({status}):\n{log}")
        }
    }
}

/// Every consumer must end with success when it is asked to.
async fn stop_consumers(processes: &mut ProcessGroup<'_>) -> Result<()> {
    for (n, status) in processes.stop_consumers().await? {
        ensure!(
            status.success(),
            "a consumer ended badly ({status}):\n{}",
            processes.consumer_log(n)
        );
    }
    Ok(())
}

/// Until the queue is empty: failed images are on their way to the dead-letter queue.
async fn wait_until_drained(
    environment: &RunEnvironment,
    processes: &mut ProcessGroup<'_>,
) -> Result<()> {
    let begun = Instant::now();
    while environment.queue_depth().await?.total() > 0 {
        check_consumers(processes)?;
        if begun.elapsed() > DRAIN_TIMEOUT {
            bail!("the queue is not empty {DRAIN_TIMEOUT:?} after the feeder ended");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
