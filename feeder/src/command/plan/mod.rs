//! `feeder plan`: what would be done, whether it can be done, and what it would cost. It changes
//! nothing: no ledger is made, no message sent. One probe object is copied, and removed again.

mod check;
mod database;
mod estimate;
mod objects;
mod probe;
mod queue;
mod show;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{self, RowCounts, Survey};
use bucket_brigade_common::path_rule::Route;
use bucket_brigade_common::settings::{Problems, whole};
use serde::Serialize;

use super::context::{CommonArgs, Context};
use check::{Check, Verdict};
use estimate::{Basis, Estimate};

/// Its flags and settings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder plan --consumers 10\n\nExit codes: 0 it can be done; 1 something would fail, see what says FAIL and its mend, or an\nunexpected error; 64 wrong settings."
)]
pub struct Args {
    /// Estimate for so many consumers [default: 4]
    #[arg(long, value_name = "N")]
    consumers: Option<String>,
    /// Each with so many copies in flight [default: 64]
    #[arg(long, env = "MAX_CONCURRENCY", value_name = "N")]
    max_concurrency: Option<String>,
    /// Look at the objects of so many rows [default: 5]
    #[arg(long, value_name = "N")]
    samples: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Everything that is told.
#[derive(Debug, Serialize)]
struct Plan {
    table: String,
    old_prefix: String,
    new_prefix: String,
    source_bucket: String,
    destination_bucket: String,
    /// What would fail.
    failing: usize,
    rows: Option<Rows>,
    samples: Vec<Sample>,
    checks: Vec<Check>,
    estimate: Option<Estimate>,
}

/// Rows by what the rule says of them.
#[derive(Debug, Clone, Copy, Serialize)]
struct Rows {
    in_scope: u64,
    moved_already: u64,
    outside: u64,
    /// The share of the table these are estimated from, in per cent; none when all of it was counted.
    estimated_from_percent: Option<u32>,
}

/// One row, and what becomes of it.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    id: String,
    old_path: String,
    source_key: String,
    destination_key: String,
    new_path: String,
    /// The size of its object in bytes; none when it cannot be read.
    size_bytes: Option<i64>,
    #[serde(skip)]
    route: Route,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = Problems::default();
    let consumers = problems.parsed("--consumers", args.consumers, 4, whole(1, 10_000));
    let concurrency = problems.parsed("MAX_CONCURRENCY", args.max_concurrency, 64, whole(1, 4096));
    let samples = problems.parsed("--samples", args.samples, 5, whole(1, 1000));
    let context = args.common.context(problems)?;
    let plan = draw_up(&context, consumers, concurrency, samples).await;
    context.answer(&plan)?;
    Ok(if plan.failing > 0 {
        exit::FOUND_WRONG
    } else {
        exit::DONE
    })
}

async fn draw_up(context: &Context, consumers: u32, concurrency: u32, samples: u32) -> Plan {
    let run = &context.migration.run;
    let mut plan = Plan {
        table: run.table.table.to_string(),
        old_prefix: run.rule.old_prefix().to_owned(),
        new_prefix: run.rule.new_prefix().to_owned(),
        source_bucket: run.source_bucket.clone(),
        destination_bucket: run.destination_bucket.clone(),
        failing: 0,
        rows: None,
        samples: Vec::new(),
        checks: Vec::new(),
        estimate: None,
    };
    let counts = plan.look_at_database(context, samples, consumers).await;
    plan.checks
        .extend(queue::check(&context.queue().await).await);
    let looked = objects::check(context, &mut plan.samples, &mut plan.checks).await;
    plan.estimate = counts.map(|counts| {
        Estimate::of(&Basis {
            counts,
            consumers,
            concurrency,
            objects: looked,
        })
    });
    let fails = |check: &&Check| check.verdict == Verdict::Fails;
    plan.failing = plan.checks.iter().filter(fails).count();
    plan
}

impl Plan {
    async fn look_at_database(
        &mut self,
        context: &Context,
        samples: u32,
        consumers: u32,
    ) -> Option<RowCounts> {
        let pool = ledger::pool(context.migration.database.clone(), 1);
        let survey = match Survey::open(pool, &context.migration.run).await {
            Ok(survey) => survey,
            Err(error) => {
                self.checks.push(Check::of_ledger("database", &error));
                return None;
            }
        };
        self.table = survey.table_name();
        let counts = database::check(&survey, consumers, &mut self.checks).await;
        self.rows = counts.map(|counts| Rows {
            in_scope: counts.in_scope,
            moved_already: counts.moved,
            outside: counts.outside,
            estimated_from_percent: counts.sampled_percent,
        });
        let rule = &context.migration.run.rule;
        match survey.some_rows(samples).await {
            Ok(rows) => {
                for (id, path) in rows {
                    match rule.route(&path) {
                        Ok(route) => self.samples.push(Sample::of(id.to_string(), route)),
                        Err(problem) => self.checks.push(Check::warns(
                            "rows",
                            format!("row {id} cannot be moved: {problem}"),
                            "it will be recorded as failed",
                        )),
                    }
                }
            }
            Err(error) => self.checks.push(Check::of_ledger("rows", &error)),
        }
        counts
    }
}

impl Sample {
    fn of(id: String, route: Route) -> Self {
        Self {
            id,
            old_path: route.old_path.clone(),
            source_key: route.source_key.clone(),
            destination_key: route.destination_key.clone(),
            new_path: route.new_path.clone(),
            size_bytes: None,
            route,
        }
    }
}
