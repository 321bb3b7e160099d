//! Throttling that does not hurt: consumers against a store that answers 503 above a rate.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::stage::{Stage, wait_for};
use super::{rounded, tell};
use crate::cloud::{CopyLimit, Counting};
use crate::process::Process;

/// The most of all requests that may be refused.
const MOST_THROTTLED: f64 = 0.011;

/// The least of the allowed rate that must be used.
const LEAST_USED: f64 = 0.85;

/// Messages in the queue: it never runs dry, and yet the local queue, whose receive slows with its
/// depth, stays quick.
const BACKLOG: u64 = 2000;

/// How the store counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Count {
    /// A bucket that fills steadily and holds a tenth of a second's worth
    Bucket,
    /// So many in each second
    BySecond,
}

/// What to try.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
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
    #[arg(long, value_enum, default_value_t = Count::Bucket)]
    pub count: Count,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Figures {
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

impl Figures {
    /// Whether little was throttled, most of the rate was used, and nothing was lost by it.
    pub fn meets_targets(&self) -> bool {
        self.throttled_share <= MOST_THROTTLED
            && self.used_share >= LEAST_USED
            && self.highest_receive_count == 1
            && (self.dead_letters, self.failures) == (0, 0)
            && self.moved == self.images
    }
}

/// Has as many images moved as take the asked seconds at the allowed rate.
pub async fn run(arguments: &Arguments) -> Result<Figures> {
    let mut stage = Stage::set_up(5).await?;
    let images = arguments.rate * arguments.seconds;
    tell(&format!("Seeding {images} images …"));
    stage.add_images(usize::try_from(images)?).await?;
    feed(&mut stage).await?;
    stage.cloud.limit_copies(limit(arguments));
    // The probe's copies would count among the images'.
    let settings = [("CONDITIONAL_COPY", "on")];
    let consumers: Vec<Process> = (0..arguments.consumers)
        .map(|_| stage.consumer(&settings))
        .collect::<Result<_>>()?;
    tell("Moving …");
    while stage.unsent() > 0 {
        feed(&mut stage).await?;
    }
    stage.drained().await?;
    dismiss(consumers).await?;
    figures(&stage, arguments).await
}

/// Waits for room in the queue, and fills it.
async fn feed(stage: &mut Stage) -> Result<()> {
    wait_for("room in the queue", async || {
        Ok(stage.queued().await?.visible <= BACKLOG / 2)
    })
    .await?;
    stage.send(usize::try_from(BACKLOG / 2)?).await
}

async fn dismiss(consumers: Vec<Process>) -> Result<()> {
    for mut consumer in consumers {
        consumer.terminate().await?;
        let status = consumer.wait().await?;
        ensure!(status.success(), "{status}: {}", consumer.log_tail(30));
    }
    Ok(())
}

fn limit(arguments: &Arguments) -> CopyLimit {
    CopyLimit {
        per_second: f64::from(arguments.rate),
        counting: match arguments.count {
            Count::Bucket => Counting::Bucket,
            Count::BySecond => Counting::BySecond,
        },
    }
}

async fn figures(stage: &Stage, arguments: &Arguments) -> Result<Figures> {
    let limit = stage.cloud.limit_figures();
    let per_second = limit.admitted_per_second();
    Ok(Figures {
        rate: arguments.rate,
        consumers: arguments.consumers,
        count: match arguments.count {
            Count::Bucket => "bucket",
            Count::BySecond => "by-second",
        },
        images: stage.sent(),
        moved: stage.moved().await?,
        requests: limit.requests,
        throttled: limit.throttled,
        throttled_share: rounded(limit.throttled_share()),
        copies_per_second: rounded(per_second),
        used_share: rounded(per_second / f64::from(arguments.rate)),
        highest_receive_count: stage.cloud.highest_receive_count(),
        dead_letters: stage.dead().await?,
        failures: stage.ledger("failures").await?,
    })
}
