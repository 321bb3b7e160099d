//! The feeder's own settings.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::http_endpoints::EndpointArgs;
use bucket_brigade_common::ledger::{ApplicationTable, DatabasePool, SecondRun, check_replica_lag};
use bucket_brigade_common::logging::{LogArgs, LogSettings};
use bucket_brigade_common::settings::{
    DatabaseArgs, DatabaseLimits, MigrationArgs, MigrationSettings, Setting, SettingsError,
    SettingsProblems, duration_between, integer_between, parse_percent, setting,
};
use bucket_brigade_common::trace::TraceSettings;
use clap::Parser;

use crate::control::{ControlArgs, ControlSettings};
use crate::spread::{FeedOrder, parse_feed_order};
use crate::sweep::CanarySelection;
use bucket_brigade_operator::OperatorCommand;
use bucket_brigade_operator::dashboard::{DashboardArgs, DashboardSettings};
use bucket_brigade_operator::plan::{CheckFeederSettings, FeederCheck};

/// Feeds the images still to move to the consumers: pages their rows out of Postgres and sends each
/// to the queue, sweep after sweep, until nothing is left. Then it reports the outcome and exits.
///
/// Each setting is an environment variable (also read from a file named .env) or the flag of the same
/// name. Starting it again after any interruption goes on where it stopped.
#[derive(Debug, Parser)]
#[command(
    name = "feeder",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Example:\n  DATABASE_URL=postgres://app:secret@db/app IMAGES_TABLE=images \\\n  QUEUE_URL=https://sqs.eu-central-1.amazonaws.com/123456789012/images \\\n  SOURCE_BUCKET_NAME=old-images DESTINATION_BUCKET_NAME=new-images \\\n  OLD_PREFIX=image/ NEW_PREFIX=avatar/ feeder\n\nExit codes: 0 everything has moved; 2 finished, but some rows could not be moved\n(bucket_brigade.failures says why); 3 stopped by a signal before the end; 64 wrong settings; 66 no\nrow was ever in scope, although rows have paths (see OLD_PREFIX); 69 database or queue cannot be\nreached; 70 unexpected error; 75 another feeder of this run, or another run of its rows, is at work;\n77 a right is missing; 130 second signal."
)]
pub struct Args {
    /// What to do instead of feeding
    #[command(subcommand)]
    pub command: Option<OperatorCommand>,
    /// Feed until nothing is left, then report the outcome and exit (the default)
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    /// Go on without end: when nothing is left, sweep again every WATCH_INTERVAL
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    migration: MigrationArgs,
    #[command(flatten)]
    feeder: FeederArgs,
    #[command(flatten)]
    canary: CanaryArgs,
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
    #[command(flatten)]
    dashboard: DashboardArgs,
    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The feeder")]
struct FeederArgs {
    /// Rows read from the table at a time
    #[arg(long, env, value_name = "N", default_value = "1000", value_parser = setting(integer_between(1_u32, 100_000)))]
    page_size: Setting<u32>,
    /// Messages in the queue above which the feeder waits for the consumers
    #[arg(long, env, value_name = "N", default_value = "20000", value_parser = setting(integer_between(10_u64, 100_000_000)))]
    max_backlog: Setting<u64>,
    /// The order of the rows: id, or spread, in 256 parts of the table at once (spread:N for N), which S3 serves
    /// faster than neighbouring keys
    #[arg(long, env, value_name = "ORDER", default_value = "id", value_parser = setting(parse_feed_order))]
    feed_order: Setting<FeedOrder>,
    /// Begin another run on a column that has one with other settings
    #[arg(long)]
    new_run: bool,
    /// With --watch: the pause after a sweep that found nothing
    #[arg(long, env, value_name = "DURATION", default_value = "30s", value_parser = setting(duration_between(Duration::from_millis(100), Duration::from_hours(24))))]
    watch_interval: Setting<Duration>,
    /// With --watch, where no index says which rows are left: the time for one look at the whole table
    #[arg(long, env, value_name = "DURATION", default_value = "1day", value_parser = setting(duration_between(Duration::from_secs(1), Duration::from_hours(24 * 365))))]
    full_sweep_interval: Setting<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A canary: a part first, then look at what became of it")]
struct CanaryArgs {
    /// Feed at most N rows, wait until they are done, and exit
    #[arg(long, value_name = "N", conflicts_with = "watch", value_parser = setting(integer_between(1, u64::MAX)))]
    limit: Option<Setting<u64>>,
    /// Feed this share of the rows, the same ones each time, wait until they are done, and exit
    #[arg(long, value_name = "PERCENT", conflicts_with = "watch", value_parser = setting(parse_percent))]
    sample: Option<Setting<f64>>,
}

/// Those that the feeder alone has.
#[derive(Clone)]
pub struct FeederSettings {
    /// Whether the run may be another one of its column.
    pub second_run: SecondRun,
    pub options: FeedOptions,
    pub feed_order: FeedOrder,
    pub control: ControlSettings,
    /// When the database counts as slow.
    pub database_limits: DatabaseLimits,
    pub metrics_addr: Option<SocketAddr>,
    pub dashboard: DashboardSettings,
    pub traces: TraceSettings,
}

/// How much at a time, and when to end.
#[derive(Debug, Clone, Copy)]
pub struct FeedOptions {
    /// A part only; none for all rows.
    pub canary: Option<CanarySelection>,
    /// Rows read at a time.
    pub page_size: u32,
    /// Messages in the queue above which the feeder waits.
    pub max_backlog: u64,
    /// The pause after a sweep that found nothing; none to end there.
    pub watch_interval: Option<Duration>,
    /// How long a watch takes for the whole table where no index says which rows are left.
    pub full_sweep_interval: Duration,
}

impl Args {
    pub fn parse_settings(
        self,
    ) -> Result<(MigrationSettings, FeederSettings, LogSettings), SettingsError> {
        let (mut problems, mut own) = <(SettingsProblems, SettingsProblems)>::default();
        let (migration, logs, settings) = self.parse_own(&mut own);
        let logs = logs.parse(&mut problems);
        let migration = migration.parse(&mut problems);
        problems.append(own);
        Ok((problems.finish(migration)?, settings, logs))
    }

    /// For a plan, which reads the others itself.
    pub fn into_check(self) -> FeederCheck {
        let mut problems = SettingsProblems::default();
        let (_, _, settings) = self.parse_own(&mut problems);
        let settings = Box::new(settings);
        FeederCheck { problems, settings }
    }

    fn parse_own(
        self,
        problems: &mut SettingsProblems,
    ) -> (MigrationArgs, LogArgs, FeederSettings) {
        let canary = self.canary.parse(problems);
        let settings = FeederSettings {
            second_run: SecondRun::by_flag(self.feeder.new_run),
            feed_order: self.feeder.feed_order.clone().take(problems),
            options: self.feeder.parse(self.watch, canary, problems),
            control: self.control.parse(problems),
            database_limits: self.database.parse(problems),
            metrics_addr: self.endpoints.parse(problems),
            dashboard: self.dashboard.parse(problems),
            traces: TraceSettings::from_env(problems),
        };
        (self.migration, self.logs, settings)
    }
}

#[async_trait(?Send)]
impl CheckFeederSettings for FeederSettings {
    async fn find_problems(&self, pool: &DatabasePool, table: &ApplicationTable) -> Vec<String> {
        let checks = [self.feed_order.check(table), self.control.check(pool).await];
        let problems = checks.into_iter().filter_map(Result::err);
        let mut problems: Vec<String> = problems.map(|error| error.to_string()).collect();
        if self.database_limits.replica_lag.is_some()
            && let Err(error) = check_replica_lag(pool).await
        {
            problems.push(error.to_string());
        }
        problems
    }
}

impl CanaryArgs {
    fn parse(self, problems: &mut SettingsProblems) -> Option<CanarySelection> {
        let limit = self.limit.map(|limit| limit.take(problems));
        let percent = self.sample.map(|sample| sample.take(problems));
        (limit.is_some() || percent.is_some()).then_some(CanarySelection { limit, percent })
    }
}

impl FeederArgs {
    fn parse(
        self,
        is_watching: bool,
        canary: Option<CanarySelection>,
        problems: &mut SettingsProblems,
    ) -> FeedOptions {
        let interval = self.watch_interval.take(problems);
        FeedOptions {
            canary,
            page_size: self.page_size.take(problems),
            max_backlog: self.max_backlog.take(problems),
            watch_interval: is_watching.then_some(interval),
            full_sweep_interval: self.full_sweep_interval.take(problems),
        }
    }
}
