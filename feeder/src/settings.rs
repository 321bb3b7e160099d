//! The feeder's own settings.

use std::net::SocketAddr;
use std::time::Duration;

use bucket_brigade_common::http_endpoints::EndpointArgs;
use bucket_brigade_common::logging::{LogArgs, LogSettings};
use bucket_brigade_common::settings::{
    DatabaseArgs, DatabaseLimits, MigrationArgs, MigrationSettings, SettingsError,
    SettingsProblems, duration_between, integer_between,
};
use bucket_brigade_common::trace::TraceSettings;
use clap::Parser;

use crate::canary::CanarySelection;
use bucket_brigade_operator::OperatorCommand;
use bucket_brigade_operator::dashboard::{DashboardArgs, DashboardSettings};

/// Feeds the images still to move to the consumers: pages their rows out of Postgres and sends each
/// to the queue, sweep after sweep, until nothing is left. Then it tells the outcome and exits.
///
/// Each setting is an environment variable (also read from a file named .env) or the flag of the same
/// name. Starting it again after any interruption goes on where it stopped.
#[derive(Debug, Parser)]
#[command(
    name = "feeder",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Example:\n  DATABASE_URL=postgres://app:secret@db/app IMAGES_TABLE=images \\\n  QUEUE_URL=https://sqs.eu-central-1.amazonaws.com/123456789012/images \\\n  SOURCE_BUCKET_NAME=old-images DESTINATION_BUCKET_NAME=new-images \\\n  OLD_PREFIX=image/ NEW_PREFIX=avatar/ feeder\n\nExit codes: 0 everything has moved; 1 unexpected error; 2 finished, but some rows could not be\nmoved (bucket_brigade.failures says why); 3 stopped by a signal before the end; 64 wrong settings;\n69 database or queue cannot be reached; 75 another feeder of this run is at work; 77 a right is\nmissing; 130 second signal."
)]
pub struct Args {
    /// What to do instead of feeding
    #[command(subcommand)]
    pub command: Option<OperatorCommand>,
    /// Feed until nothing is left, then tell the outcome and exit (the default)
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    /// Go on for ever: when nothing is left, look again every WATCH_INTERVAL
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    migration: MigrationArgs,
    #[command(flatten)]
    feeder: FeederArgs,
    #[command(flatten)]
    canary: CanaryArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    observe: EndpointArgs,
    #[command(flatten)]
    dashboard: DashboardArgs,
    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The feeder")]
struct FeederArgs {
    /// Rows read from the table at a time [default: 1000]
    #[arg(long, env = "PAGE_SIZE", value_name = "N")]
    page_size: Option<String>,
    /// Messages in the queue above which the feeder waits for the consumers [default: 20000]
    #[arg(long, env = "MAX_BACKLOG", value_name = "N")]
    max_backlog: Option<String>,
    /// With --watch: the pause after a sweep that found nothing [default: 30s]
    #[arg(long, env = "WATCH_INTERVAL", value_name = "DURATION")]
    watch_interval: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A canary: a part first, then look at what became of it")]
struct CanaryArgs {
    /// Feed at most N rows, wait until they are done, and exit
    #[arg(long, value_name = "N", conflicts_with = "watch")]
    limit: Option<String>,
    /// Feed this share of the rows, the same ones each time, wait until they are done, and exit
    #[arg(long, value_name = "PERCENT", conflicts_with = "watch")]
    sample: Option<String>,
}

/// The settings, checked.
#[derive(Clone)]
pub struct FeederSettings {
    /// Which migration this is.
    pub migration: MigrationSettings,
    /// How to feed.
    pub options: FeedOptions,
    /// When the database counts as slow.
    pub database_limits: DatabaseLimits,
    /// Where to answer questions after health and figures.
    pub metrics_addr: Option<SocketAddr>,
    /// The live page.
    pub dashboard: DashboardSettings,
    /// Whether traces are exported.
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
}

impl Args {
    /// Checks all settings.
    ///
    /// # Errors
    /// Everything that is wrong with them, together.
    pub fn parse_settings(self) -> Result<(FeederSettings, LogSettings), SettingsError> {
        let mut problems = SettingsProblems::default();
        let logs = self.logs.parse(&mut problems);
        let migration = self.migration.parse(&mut problems);
        let canary = self.canary.parse(&mut problems);
        let pacing = self.feeder.parse(self.watch, canary, &mut problems);
        let database_limits = self.database.parse(&mut problems);
        let metrics_addr = self.observe.parse(&mut problems);
        let page = self.dashboard.parse(&mut problems);
        let traces = TraceSettings::from_env(&mut problems);
        problems.into_result()?;
        match migration {
            Some(migration) => Ok((
                FeederSettings {
                    migration,
                    options: pacing,
                    database_limits,
                    metrics_addr,
                    dashboard: page,
                    traces,
                },
                logs,
            )),
            None => Err(SettingsError::for_setting("settings", "could not be read")),
        }
    }
}

impl CanaryArgs {
    fn parse(self, problems: &mut SettingsProblems) -> Option<CanarySelection> {
        let limit = problems.parse_value("--limit", self.limit, None, |text| {
            integer_between(1, u64::MAX)(text).map(Some)
        });
        let percent = problems.parse_value("--sample", self.sample, None, |text| {
            match text.trim_end_matches('%').parse() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Some(percent)),
                _ => Err("is not a share in percent, such as 1 or 0.5".into()),
            }
        });
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
        let interval = problems.parse_value(
            "WATCH_INTERVAL",
            self.watch_interval,
            Duration::from_secs(30),
            duration_between(Duration::from_millis(100), Duration::from_hours(24)),
        );
        FeedOptions {
            canary,
            page_size: problems.parse_value(
                "PAGE_SIZE",
                self.page_size,
                1000,
                integer_between(1, 100_000),
            ),
            max_backlog: problems.parse_value(
                "MAX_BACKLOG",
                self.max_backlog,
                20_000,
                integer_between(10, 100_000_000),
            ),
            watch_interval: is_watching.then_some(interval),
        }
    }
}
