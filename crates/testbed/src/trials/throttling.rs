//! Throttling that does not hurt: consumers against a store that answers 503 above a rate.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::environment::{TrialEnvironment, wait_for};
use super::{print_status, round_share};
use crate::cloud::{CopyLimit, LimitAlgorithm};
use crate::process::ChildProcess;

/// The most of all requests that may be refused.
const MAX_THROTTLED_SHARE: f64 = 0.011;

/// The least of the allowed rate that must be used.
const MIN_USED_SHARE: f64 = 0.85;

/// Messages in the queue: it never runs dry, and yet the local queue, whose receive slows with its
/// depth, stays quick.
const MAX_QUEUE_DEPTH: u64 = 2000;

/// How the store counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LimitAlgorithmArgument {
    /// A bucket that fills steadily and holds a tenth of a second's worth
    Bucket,
    /// So many in each second
    BySecond,
}

#[derive(Debug, Clone, clap::Args)]
pub struct ThrottlingArguments {
    /// Copies per second that the store allows
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Consumer processes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub consumers: u32,
    /// How many seconds the copies take at the allowed rate
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// How the store counts
    #[arg(long, value_enum, default_value_t = LimitAlgorithmArgument::Bucket)]
    pub count: LimitAlgorithmArgument,
}

#[derive(Debug, Serialize)]
pub struct ThrottlingFigures {
    rate: u32,
    consumers: u32,
    count: &'static str,
    images: usize,
    moved: usize,
    requests: u64,
    throttled: u64,
    throttled_share: f64,
    copies_per_second: f64,
    used_share: f64,
    highest_receive_count: u64,
    dead_letters: u64,
    failures: usize,
}

impl ThrottlingFigures {
    /// Whether little was throttled, most of the rate was used, and nothing was lost by it.
    pub fn meets_targets(&self) -> bool {
        self.throttled_share <= MAX_THROTTLED_SHARE
            && self.used_share >= MIN_USED_SHARE
            && self.highest_receive_count == 1
            && (self.dead_letters, self.failures) == (0, 0)
            && self.moved == self.images
    }
}

/// Has as many images moved as take the asked seconds at the allowed rate.
pub async fn run(arguments: &ThrottlingArguments) -> Result<ThrottlingFigures> {
    let mut environment = TrialEnvironment::set_up(5).await?;
    let images = arguments.rate * arguments.seconds;
    print_status(&format!("Seeding {images} images …"));
    environment.add_images(usize::try_from(images)?).await?;
    fill_queue(&mut environment).await?;
    environment.cloud.limit_copies(copy_limit(arguments));
    // The probe's copies would count among the images'.
    let settings = [("CONDITIONAL_COPY", "on")];
    let consumers: Vec<ChildProcess> = (0..arguments.consumers)
        .map(|_| environment.spawn_consumer(&settings))
        .collect::<Result<_>>()?;
    print_status("Moving …");
    while environment.unsent_images() > 0 {
        fill_queue(&mut environment).await?;
    }
    environment.wait_until_drained().await?;
    stop_consumers(consumers).await?;
    collect_figures(&environment, arguments).await
}

/// Waits for room in the queue, and fills it.
async fn fill_queue(environment: &mut TrialEnvironment) -> Result<()> {
    wait_for("room in the queue", async || {
        Ok(environment.queue_depth().await?.visible <= MAX_QUEUE_DEPTH / 2)
    })
    .await?;
    environment
        .send_images(usize::try_from(MAX_QUEUE_DEPTH / 2)?)
        .await
}

async fn stop_consumers(consumers: Vec<ChildProcess>) -> Result<()> {
    for mut consumer in consumers {
        consumer.terminate()?;
        let status = consumer.wait_for_exit().await?;
        ensure!(status.success(), "{status}: {}", consumer.log_tail(30));
    }
    Ok(())
}

fn copy_limit(arguments: &ThrottlingArguments) -> CopyLimit {
    CopyLimit {
        per_second: f64::from(arguments.rate),
        algorithm: match arguments.count {
            LimitAlgorithmArgument::Bucket => LimitAlgorithm::TokenBucket,
            LimitAlgorithmArgument::BySecond => LimitAlgorithm::FixedWindow,
        },
    }
}

async fn collect_figures(
    environment: &TrialEnvironment,
    arguments: &ThrottlingArguments,
) -> Result<ThrottlingFigures> {
    let limit = environment.cloud.copy_limit_counts();
    let per_second = limit.admitted_per_second();
    Ok(ThrottlingFigures {
        rate: arguments.rate,
        consumers: arguments.consumers,
        count: match arguments.count {
            LimitAlgorithmArgument::Bucket => "bucket",
            LimitAlgorithmArgument::BySecond => "by-second",
        },
        images: environment.sent_images(),
        moved: environment.moved_rows().await?,
        requests: limit.requests,
        throttled: limit.throttled,
        throttled_share: round_share(limit.throttled_share()),
        copies_per_second: round_share(per_second),
        used_share: round_share(per_second / f64::from(arguments.rate)),
        highest_receive_count: environment.cloud.highest_receive_count(),
        dead_letters: environment.dead_letters().await?,
        failures: environment.count_ledger_rows("failures").await?,
    })
}
