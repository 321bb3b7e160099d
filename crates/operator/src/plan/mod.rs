//! `feeder plan`: what would be done, whether it can be done, and what it would cost. It changes
//! nothing: no ledger is made, no message sent. One probe object is copied, and removed again.

mod check;
mod companions;
mod database;
mod estimate;
mod neighbours;
mod objects;
mod output;
mod ownership;
mod probe;
mod queue;
mod recorded_run;
mod rehearsal;
mod routes;
mod table_inspector;

use async_trait::async_trait;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{
    ApplicationTable, DatabasePool, RunSpec, SecondRun, create_pool,
};
use bucket_brigade_common::object_store::s3::S3Bucket;
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::settings::{
    Setting, SettingsProblems, integer_between, optional, setting,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::context::{CommandContext, CommonArgs};
use super::page_pipeline::until_stopped;
use check::PlanChecks;
use estimate::{MigrationEstimate, ObjectFacts};
use objects::SampledObjects;
use rehearsal::Rehearsal;
use routes::RoutedRows;
use table_inspector::{RowCounts, TableInspector};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder plan --consumers 10\n\nExit codes: 0 it can be done; 1 something would fail, see what says FAIL and its remedy; 3 stopped by\na signal; 64 wrong settings, or no such run (RUN_NAME); 69 the database cannot be reached (RUN_NAME); 70\nunexpected error."
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
    /// Plan another run of a column that has one with other settings
    #[arg(long)]
    new_run: bool,
    /// Try the update of some rows as this role, the consumers', which ours must be a member of
    #[arg(long, value_name = "ROLE")]
    as_role: Option<String>,
    /// The application's profile: read one copy back with its credentials
    #[arg(long, env, value_name = "PROFILE", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    application_profile: Setting<Option<String>>,
    #[command(flatten)]
    common: CommonArgs,
}

/// The settings that the feeder alone has.
pub struct FeederCheck {
    /// Those that cannot be read.
    pub problems: SettingsProblems,
    pub settings: Box<dyn CheckFeederSettings>,
}

#[async_trait(?Send)]
pub trait CheckFeederSettings {
    /// Which the feeder would refuse, by the database and the table.
    async fn find_problems(&self, pool: &DatabasePool, table: &ApplicationTable) -> Vec<String>;
}

/// Rows whose update is tried.
const REHEARSED_ROWS: usize = 100;

struct PlanSpec {
    consumers: u32,
    concurrency: u32,
    samples: usize,
    role: Option<String>,
    second_run: SecondRun,
    /// The destination, by the application's profile.
    application: Option<S3Bucket>,
    feeder: Box<dyn CheckFeederSettings>,
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
    rows: Option<RowCounts>,
    samples: Vec<SampleRow>,
    checks: PlanChecks,
    estimate: Option<MigrationEstimate>,
}

#[derive(Debug, Clone, Serialize)]
struct SampleRow {
    id: String,
    #[serde(flatten)]
    route: MoveRoute,
    /// The size of its object in bytes; none when it cannot be read.
    size_bytes: Option<i64>,
    /// Whether there is surely none.
    #[serde(skip)]
    is_missing: bool,
}

pub(super) async fn run(
    args: Args,
    feeder: FeederCheck,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let mut problems = feeder.problems;
    let samples = args.samples.take(&mut problems);
    let profile = args.application_profile.take(&mut problems);
    let mut spec = PlanSpec {
        consumers: args.consumers.take(&mut problems),
        concurrency: args.max_concurrency.take(&mut problems),
        samples: usize::try_from(samples).unwrap_or(usize::MAX),
        role: args.as_role,
        second_run: SecondRun::by_flag(args.new_run),
        application: None,
        feeder: feeder.settings,
    };
    let context = until_stopped(&stop, args.common.into_context(problems)).await?;
    if let Some(profile) = profile {
        let opened = context.open_destination_as("APPLICATION_PROFILE", &profile);
        spec.application = Some(until_stopped(&stop, opened).await?);
    }
    let queue = context.sqs_queue().await?;
    let plan = Box::pin(build_plan(&context, &queue, &spec, &stop)).await;
    let Some(plan) = plan else {
        tracing::info!("nothing was changed");
        return Ok(exit::STOPPED);
    };
    context.format.print(&plan)?;
    Ok(if plan.failing > 0 {
        exit::CHECK_FAILED
    } else {
        exit::DONE
    })
}

/// None where a signal ended it.
async fn build_plan(
    context: &CommandContext,
    queue: &SqsQueue,
    spec: &PlanSpec,
    stop: &CancellationToken,
) -> Option<MigrationPlan> {
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
        checks: PlanChecks::default(),
        estimate: None,
    };
    // Boxed, or the whole command is one type that is too deep for the compiler.
    let opened = stop.run_until_cancelled(Box::pin(plan.open_table(context)));
    let inspector = opened.await?;
    let checking = Box::pin(plan.check_all(context, queue, inspector.as_ref(), spec));
    let looked = stop.run_until_cancelled(checking).await;
    if let (None, Some(inspector)) = (&looked, &inspector)
        && let Err(error) = inspector.cancel_statement().await
    {
        tracing::debug!(%error, "the statement under way ends a little later");
    }
    // Not to be stopped before the probe is removed.
    let objects = match looked? {
        Some(sampled) => {
            let application = spec.application.as_ref();
            sampled.probe(context, application, &mut plan.checks).await
        }
        None => ObjectFacts::default(),
    };
    plan.estimate = plan.rows.map(|counts| {
        let copies = 1 + run.rule.companions().count();
        MigrationEstimate::new(
            &counts,
            &objects,
            copies,
            (spec.consumers, spec.concurrency),
        )
    });
    plan.failing = plan.checks.count_failing();
    Some(plan)
}

impl MigrationPlan {
    async fn open_table(&mut self, context: &CommandContext) -> Option<TableInspector> {
        let pool = create_pool(context.migration.database.clone(), 1);
        match TableInspector::open(pool, &context.migration.run).await {
            Ok(inspector) => {
                self.table.clone_from(&inspector.table.name);
                self.row_filter = inspector.table.filter_text().map(ToOwned::to_owned);
                Some(inspector)
            }
            Err(error) => {
                self.checks.fail_by_ledger("database", &error);
                None
            }
        }
    }

    /// All that is only read. None where the buckets cannot be used.
    async fn check_all(
        &mut self,
        context: &CommandContext,
        queue: &SqsQueue,
        inspector: Option<&TableInspector>,
        spec: &PlanSpec,
    ) -> Option<SampledObjects> {
        if let Some(inspector) = inspector {
            let run = &context.migration.run;
            if let Err(error) = self.check_database(inspector, run, spec).await {
                self.rows = None;
                self.checks.fail_by_ledger("database", &error.into());
            }
        }
        let (samples, checks) = (&mut self.samples, &mut self.checks);
        queue::check_queue(queue, checks).await;
        objects::sample_objects(context, inspector, samples, checks).await
    }

    async fn check_database(
        &mut self,
        inspector: &TableInspector,
        run: &RunSpec,
        spec: &PlanSpec,
    ) -> Result<(), sqlx::Error> {
        let checks = &mut self.checks;
        let TableInspector { pool, table, .. } = inspector;
        for problem in spec.feeder.find_problems(pool, table).await {
            checks.fail_by("settings", &problem);
        }
        let server = inspector.server_info().await?;
        let recorded = database::check_server(inspector, run, &server, spec, checks).await?;
        let counts = database::check_rows(inspector, checks).await;
        self.rows = counts;
        if counts.is_none_or(|counts| counts.sampled_percent.is_some()) {
            database::check_statistics(inspector, checks).await?;
        }
        if let Some(counts) = counts.filter(|counts| counts.in_scope > 0) {
            database::check_feed_index(inspector, counts, checks).await?;
        }
        let nothing_left = recorded.as_ref().and_then(|run| run.nothing_left.as_ref());
        let most = spec.samples.max(REHEARSED_ROWS);
        let mut rows = inspector.sample_rows(most, nothing_left.is_none()).await?;
        if let Some(recorded) = &recorded {
            // They would be fed after a retry alone, and are no sample of the others.
            let failed = recorded.failed_among(&inspector.pool, &rows).await?;
            rows.retain(|(id, _)| !failed.contains(id));
            if rows.is_empty() && !failed.is_empty() {
                let mend = "see why with feeder failures, then feeder retry";
                checks.warn("rows", "all that are left have failed", mend);
                return Ok(());
            }
        }
        if rows.is_empty() && counts.is_none_or(|counts| counts.in_scope == 0) {
            database::check_empty_scope(inspector, recorded.as_ref(), checks).await;
            return Ok(());
        }
        let routed = RoutedRows::from_rows(&run.rule, rows);
        routed.check(&run.rule, checks);
        let samples = routed.rows.iter().take(spec.samples).cloned();
        let samples = samples.map(|(id, route)| SampleRow {
            id,
            route,
            size_bytes: None,
            is_missing: false,
        });
        self.samples = samples.collect();
        database::check_lengths(inspector, checks).await?;
        let can_be_updated = database::check_publications(inspector, checks).await?;
        if can_be_updated && (server.may_update || spec.role.is_some()) {
            let rehearsal = Rehearsal {
                inspector,
                user: &server.user,
                role: spec.role.as_deref(),
            };
            rehearsal.check(&routed.rows, checks).await;
        }
        Ok(())
    }
}
