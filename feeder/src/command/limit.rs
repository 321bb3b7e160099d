//! `feeder limit`: how much the whole fleet may do at most.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{Access, Limits};
use bucket_brigade_common::settings::{Problems, whole};
use serde::Serialize;

use super::context::CommonArgs;

/// Copies in flight that can be asked for at most.
pub(crate) const MOST_COPIES: u32 = 1_000_000;

/// Its flags and settings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder limit --rate 500\n  feeder limit --concurrency 200\n  feeder limit none\n\nExit codes: 0 the limits stand; 1 unexpected error; 64 wrong settings, or no such run; 69 the\ndatabase cannot be reached; 77 a right is missing."
)]
pub struct Args {
    /// Rows per second at most
    #[arg(long, value_name = "N", required_unless_present_any = ["concurrency", "lift"])]
    rate: Option<String>,
    /// Copies in flight at most
    #[arg(long, value_name = "N")]
    concurrency: Option<String>,
    /// End both limits
    #[arg(value_name = "none", value_parser = ["none"], conflicts_with_all = ["rate", "concurrency"])]
    lift: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct Limited {
    run: i64,
    #[serde(flatten)]
    limits: Limits,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { rate, concurrency } = self.limits;
        write!(f, "run {}: ", self.run)?;
        match (rate, concurrency) {
            (None, None) => return write!(f, "no limits"),
            (Some(rate), None) => write!(f, "at most {rate} rows per second")?,
            (None, Some(most)) => write!(f, "at most {most} copies in flight")?,
            (Some(rate), Some(most)) => write!(
                f,
                "at most {rate} rows per second and {most} copies in flight"
            )?,
        }
        write!(f, " in the whole fleet, within two seconds")
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = Problems::default();
    let asked = Limits {
        rate: problems.parsed("--rate", args.rate, None, |text| rate(text).map(Some)),
        concurrency: problems.parsed("--concurrency", args.concurrency, None, |text| {
            whole(1, MOST_COPIES)(text).map(Some)
        }),
    };
    let context = args.common.context(problems)?;
    let ledger = context.ledger(Access::Read).await?;
    let limits = ledger.limit(args.lift.is_some(), asked).await?;
    context.answer(&Limited {
        run: ledger.run_id(),
        limits,
    })?;
    Ok(exit::DONE)
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if is_rate(rate) => Ok(rate),
        _ => Err("is not a number of rows per second, at least 0.001".into()),
    }
}

/// Whether it can be kept.
pub(crate) fn is_rate(rate: f64) -> bool {
    (0.001..=1e9).contains(&rate)
}
