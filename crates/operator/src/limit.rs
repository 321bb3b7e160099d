//! `feeder limit`: how much the whole fleet may do at most.

use std::fmt;

use bucket_brigade_common::ledger::fleet_control::format_limits;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use bucket_brigade_common::settings::{Setting, SettingsProblems, integer_between, setting};
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::chosen_runs::RunControlArgs;
use crate::history::Operator;

pub(crate) const MAX_COPIES_IN_FLIGHT: i32 = 1_000_000;

const UPDATE_LIMITS: &str = "UPDATE bucket_brigade.run
    SET rate_limit = CASE WHEN $2 THEN NULL ELSE coalesce($3, rate_limit) END,
        concurrency_limit = CASE WHEN $2 THEN NULL ELSE coalesce($4, concurrency_limit) END
    WHERE id = $1 RETURNING rate_limit, concurrency_limit";

/// How much the whole fleet may do at most; none for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, sqlx::FromRow)]
pub(crate) struct RequestedLimits {
    #[sqlx(rename = "rate_limit")]
    pub(crate) rate: Option<f64>,
    #[sqlx(rename = "concurrency_limit")]
    pub(crate) concurrency: Option<i32>,
}

impl RequestedLimits {
    pub(crate) fn describe(self) -> Option<String> {
        format_limits(self.rate, self.concurrency)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder limit --rate 500\n  feeder limit --concurrency 200\n  feeder limit none\n\nExit codes: 0 the limits stand; 64 wrong settings, or no such run; 69 the database cannot be\nreached; 70 unexpected error; 77 a right is missing."
)]
pub struct Args {
    /// Rows per second at most
    #[arg(long, value_name = "N", value_parser = setting(parse_rate))]
    rate: Option<Setting<f64>>,
    /// Copies in flight at most
    #[arg(long, value_name = "N", value_parser = setting(integer_between(1, MAX_COPIES_IN_FLIGHT)))]
    concurrency: Option<Setting<i32>>,
    /// End both limits
    #[arg(value_name = "none", value_parser = ["none"], conflicts_with_all = ["rate", "concurrency"])]
    lift: Option<String>,
    #[command(flatten)]
    control: RunControlArgs,
}

#[derive(Serialize)]
struct LimitOutput {
    run: i64,
    #[serde(flatten)]
    limits: RequestedLimits,
}

impl fmt::Display for LimitOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.run;
        match self.limits.describe() {
            None => write!(f, "run {run}: no limits"),
            Some(limits) => write!(
                f,
                "run {run}: at most {limits} in the whole fleet, within two seconds"
            ),
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let asked = RequestedLimits {
        rate: args.rate.map(|rate| rate.take(&mut problems)),
        concurrency: args.concurrency.map(|most| most.take(&mut problems)),
    };
    let lift = args.lift.is_some();
    if !lift && asked == RequestedLimits::default() {
        problems.add("limit", "give --rate N, --concurrency N, or none");
    }
    let runs = Box::pin(args.control.choose(problems)).await?;
    let limit = async |run| {
        let limits = set_limits(&runs.pool, run, lift, asked, &runs.operator).await?;
        Ok(LimitOutput { run, limits })
    };
    runs.print_each(limit).await
}

/// Sets the limits that are given, or ends both with `lift`. Returns those that hold.
pub(crate) async fn set_limits(
    pool: &PgPool,
    run: i64,
    lift: bool,
    asked: RequestedLimits,
    operator: &Operator,
) -> Result<RequestedLimits, StatementError> {
    let query = sqlx::query_as(UPDATE_LIMITS).bind(run);
    let query = query.bind(lift).bind(asked.rate).bind(asked.concurrency);
    let limits: RequestedLimits = with_timeout(query.fetch_one(pool)).await?;
    let details = limits.describe().unwrap_or_else(|| "none".into());
    operator.record(pool, run, "limit", Some(&details)).await;
    Ok(limits)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if is_valid_rate(rate) => Ok(rate),
        _ => Err("is not a number of rows per second, at least 0.001".into()),
    }
}

/// Whether it can be kept.
pub(crate) fn is_valid_rate(rate: f64) -> bool {
    (0.001..=1e9).contains(&rate)
}
