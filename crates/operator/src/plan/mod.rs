//! `feeder plan`: what would be done, whether it can be done, and what it would cost. It changes
//! nothing: no ledger is made, no message sent. One probe object is copied, and removed again.

mod acl;
mod check;
mod database;
mod estimate;
mod ledger;
mod neighbours;
mod objects;
mod output;
mod probe;
mod queue;
mod rehearsal;
mod routes;
mod table_inspector;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{RunSpec, create_pool};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::settings::{Setting, SettingsProblems, integer_between, setting};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::context::{CommandContext, CommonArgs};
use check::{CheckVerdict, PlanCheck};
use estimate::{EstimateInput, MigrationEstimate};
use rehearsal::Rehearsal;
use routes::RoutedRows;
use table_inspector::{RowCounts, TableInspector};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder plan --consumers 10\n\nExit codes: 0 it can be done; 1 something would fail, see what says FAIL and its mend; 3 stopped by\na signal; 64 wrong settings; 70 unexpected error."
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
    /// Try the update of some rows as this role, the consumers', which ours must be a member of
    #[arg(long, value_name = "ROLE")]
    as_role: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Rows whose update is tried.
const REHEARSED_ROWS: usize = 100;

/// What a plan is asked for.
struct PlanSpec {
    consumers: u32,
    concurrency: u32,
    samples: usize,
    role: Option<String>,
}

/// A signal ended it.
struct PlanStopped;

async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, PlanStopped> {
    // Boxed, or the whole command is one type that is too deep for the compiler.
    let work = stop.run_until_cancelled(Box::pin(work)).await;
    work.ok_or(PlanStopped)
}

#[derive(Debug, Serialize)]
struct MigrationPlan {
    table: String,
    old_prefix: String,
    new_prefix: String,
    source_bucket: String,
    destination_bucket: String,
    /// Which rows with the old prefix are to move; none for all.
    row_filter: Option<String>,
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

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let samples = args.samples.take(&mut problems);
    let spec = PlanSpec {
        consumers: args.consumers.take(&mut problems),
        concurrency: args.max_concurrency.take(&mut problems),
        samples: usize::try_from(samples).unwrap_or(usize::MAX),
        role: args.as_role,
    };
    let context = args.common.into_context(problems).await?;
    let queue = context.sqs_queue().await?;
    let Ok(plan) = build_plan(&context, &queue, &spec, &stop).await else {
        tracing::warn!("stopped before the end; nothing was changed");
        return Ok(exit::STOPPED);
    };
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
    spec: &PlanSpec,
    stop: &CancellationToken,
) -> Result<MigrationPlan, PlanStopped> {
    let run = &context.migration.run;
    let mut plan = MigrationPlan {
        table: run.table.table.clone(),
        old_prefix: run.rule.old_prefix().to_owned(),
        new_prefix: run.rule.new_prefix().to_owned(),
        source_bucket: run.source_bucket.clone(),
        destination_bucket: run.destination_bucket.clone(),
        row_filter: run.options.row_filter.clone(),
        failing: 0,
        rows: None,
        samples: Vec::new(),
        checks: Vec::new(),
        estimate: None,
    };
    let counts = plan.add_database_checks(context, spec, stop).await?;
    let checks = unless_stopped(stop, queue::check_queue(queue)).await?;
    plan.checks.extend(checks);
    let objects =
        objects::check_objects(context, stop, &mut plan.samples, &mut plan.checks).await?;
    plan.estimate = counts.map(|counts| {
        MigrationEstimate::from_input(&EstimateInput {
            counts,
            consumers: spec.consumers,
            concurrency: spec.concurrency,
            objects,
            copies_per_row: 1 + run.rule.companions().count(),
        })
    });
    let fails = |check: &&PlanCheck| check.verdict == CheckVerdict::Fails;
    plan.failing = plan.checks.iter().filter(fails).count();
    Ok(plan)
}

impl MigrationPlan {
    async fn add_database_checks(
        &mut self,
        context: &CommandContext,
        spec: &PlanSpec,
        stop: &CancellationToken,
    ) -> Result<Option<RowCounts>, PlanStopped> {
        let pool = create_pool(context.migration.database.clone(), 1);
        let run = &context.migration.run;
        let inspector = match unless_stopped(stop, TableInspector::open(pool, run)).await? {
            Ok(inspector) => inspector,
            Err(error) => {
                let check = PlanCheck::from_ledger_error("database", &error);
                self.checks.push(check);
                return Ok(None);
            }
        };
        self.table = inspector.table_name();
        self.row_filter = inspector.table().filter_text().map(ToOwned::to_owned);
        match unless_stopped(stop, self.check_database(&inspector, run, spec)).await {
            Ok(Ok(counts)) => Ok(counts),
            Ok(Err(error)) => {
                let check = PlanCheck::from_ledger_error("database", &error.into());
                self.checks.push(check);
                Ok(None)
            }
            Err(stopped) => {
                if let Err(error) = inspector.cancel_statement().await {
                    tracing::debug!(%error, "the statement under way ends a little later");
                }
                Err(stopped)
            }
        }
    }

    async fn check_database(
        &mut self,
        inspector: &TableInspector,
        run: &RunSpec,
        spec: &PlanSpec,
    ) -> Result<Option<RowCounts>, sqlx::Error> {
        let server = inspector.server_info().await?;
        let fleet = (spec.consumers, spec.role.as_deref());
        let progress =
            database::check_server(inspector, run, &server, fleet, &mut self.checks).await?;
        let counts = database::check_rows(inspector, &mut self.checks).await;
        self.rows = counts.map(PlanRowCounts::from_counts);
        if let Some(counts) = counts.filter(|counts| counts.in_scope > 0) {
            self.checks
                .push(database::check_feed_index(inspector, counts).await?);
        }
        let rows = inspector
            .sample_rows(spec.samples.max(REHEARSED_ROWS))
            .await?;
        if rows.is_empty() && counts.is_none_or(|counts| counts.in_scope == 0) {
            let check = database::check_empty_scope(inspector, progress).await;
            self.checks.push(check);
        }
        let routed = RoutedRows::from_rows(&run.rule, rows);
        self.checks.extend(routed.checks(&run.rule));
        let samples = routed.rows.iter().take(spec.samples).cloned();
        self.samples = samples.map(SampleRow::from_route).collect();
        self.checks
            .extend(database::check_lengths(inspector).await?);
        let unpublishable = database::check_publications(inspector).await?;
        if unpublishable.is_none() && (server.may_update || spec.role.is_some()) {
            let rehearsal = Rehearsal {
                inspector,
                user: &server.user,
                role: spec.role.as_deref(),
            };
            self.checks.extend(rehearsal.check(&routed.rows).await);
        }
        self.checks.extend(unpublishable);
        Ok(counts)
    }
}

impl PlanRowCounts {
    fn from_counts(counts: RowCounts) -> Self {
        Self {
            in_scope: counts.in_scope,
            moved_already: counts.moved,
            outside: counts.outside,
            estimated_from_percent: counts.sampled_percent,
        }
    }
}

impl SampleRow {
    fn from_route((id, route): (String, MoveRoute)) -> Self {
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
