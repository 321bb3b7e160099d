//! `feeder plan`: what would be done, whether it can be done, and what it would cost. It changes
//! nothing: no ledger is made, no message sent. One probe object is copied, and removed again.

mod acl;
mod check;
mod database;
mod estimate;
mod objects;
mod output;
mod probe;
mod queue;
mod table_inspector;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger;
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::settings::{Setting, SettingsProblems, integer_between, setting};
use serde::Serialize;

use super::context::{CommandContext, CommonArgs};
use check::{CheckVerdict, PlanCheck};
use estimate::{EstimateInput, MigrationEstimate};
use table_inspector::{RowCounts, TableInspector};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder plan --consumers 10\n\nExit codes: 0 it can be done; 1 something would fail, see what says FAIL and its mend, or an\nunexpected error; 64 wrong settings."
)]
pub struct Args {
    /// Estimate for so many consumers
    #[arg(long, value_name = "N", default_value = "4", value_parser = setting(integer_between(1_u32, 10_000)))]
    consumers: Setting<u32>,
    /// Each with so many copies in flight
    #[arg(long, env, value_name = "N", default_value = "64", value_parser = setting(integer_between(1_u32, 4096)))]
    max_concurrency: Setting<u32>,
    /// Check the objects of so many rows
    #[arg(long, value_name = "N", default_value = "5", value_parser = setting(integer_between(1_u32, 1000)))]
    samples: Setting<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Serialize)]
struct MigrationPlan {
    table: String,
    old_prefix: String,
    new_prefix: String,
    source_bucket: String,
    destination_bucket: String,
    /// What would fail.
    failing: usize,
    rows: Option<PlanRowCounts>,
    samples: Vec<SampleRow>,
    checks: Vec<PlanCheck>,
    estimate: Option<MigrationEstimate>,
}

/// Rows by what the rule says of them.
#[derive(Debug, Clone, Copy, Serialize)]
struct PlanRowCounts {
    in_scope: u64,
    moved_already: u64,
    outside: u64,
    /// The share of the table these are estimated from, in per cent; none when all of it was counted.
    estimated_from_percent: Option<u32>,
}

/// One row, and what becomes of it.
#[derive(Debug, Clone, Serialize)]
struct SampleRow {
    id: String,
    old_path: String,
    source_key: String,
    destination_key: String,
    new_path: String,
    /// The size of its object in bytes; none when it cannot be read.
    size_bytes: Option<i64>,
    #[serde(skip)]
    route: MoveRoute,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let consumers = args.consumers.take(&mut problems);
    let concurrency = args.max_concurrency.take(&mut problems);
    let samples = args.samples.take(&mut problems);
    let context = args.common.into_context(problems).await?;
    let queue = context.sqs_queue().await?;
    let plan = build_plan(&context, &queue, consumers, concurrency, samples).await;
    context.print_output(&plan)?;
    Ok(if plan.failing > 0 {
        exit::CHECK_FAILED
    } else {
        exit::DONE
    })
}

async fn build_plan(
    context: &CommandContext,
    queue: &SqsQueue,
    consumers: u32,
    concurrency: u32,
    samples: u32,
) -> MigrationPlan {
    let run = &context.migration.run;
    let mut plan = MigrationPlan {
        table: run.table.table.clone(),
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
    let counts = plan.add_database_checks(context, samples, consumers).await;
    plan.checks.extend(queue::check_queue(queue).await);
    let objects = objects::check_objects(context, &mut plan.samples, &mut plan.checks).await;
    plan.estimate = counts.map(|counts| {
        MigrationEstimate::from_input(&EstimateInput {
            counts,
            consumers,
            concurrency,
            objects,
        })
    });
    let fails = |check: &&PlanCheck| check.verdict == CheckVerdict::Fails;
    plan.failing = plan.checks.iter().filter(fails).count();
    plan
}

impl MigrationPlan {
    async fn add_database_checks(
        &mut self,
        context: &CommandContext,
        samples: u32,
        consumers: u32,
    ) -> Option<RowCounts> {
        let pool = ledger::create_pool(context.migration.database.clone(), 1);
        let inspector = match TableInspector::open(pool, &context.migration.run).await {
            Ok(inspector) => inspector,
            Err(error) => {
                self.checks
                    .push(PlanCheck::from_ledger_error("database", &error));
                return None;
            }
        };
        self.table = inspector.table_name();
        let counts = database::check_database(&inspector, consumers, &mut self.checks).await;
        self.rows = counts.map(|counts| PlanRowCounts {
            in_scope: counts.in_scope,
            moved_already: counts.moved,
            outside: counts.outside,
            estimated_from_percent: counts.sampled_percent,
        });
        let rule = &context.migration.run.rule;
        match inspector.sample_rows(samples).await {
            Ok(rows) => {
                for (id, path) in rows {
                    match rule.route_for(&path) {
                        Ok(route) => self.samples.push(SampleRow::from_route(id, route)),
                        Err(problem) => self.checks.push(PlanCheck::new_warning(
                            "rows",
                            format!("row {id} cannot be moved: {problem}"),
                            "it will be recorded as failed",
                        )),
                    }
                }
            }
            Err(error) => self
                .checks
                .push(PlanCheck::from_ledger_error("rows", &error.into())),
        }
        counts
    }
}

impl SampleRow {
    fn from_route(id: String, route: MoveRoute) -> Self {
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
