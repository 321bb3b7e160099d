//! The feeder's own settings.

use std::net::SocketAddr;
use std::time::Duration;

use bucket_brigade_common::healthcheck::HealthcheckArgs;
use bucket_brigade_common::observe::ObserveArgs;
use bucket_brigade_common::settings::{
    MigrationArgs, MigrationSettings, Problems, SettingsError, positive, whole,
};
use bucket_brigade_common::telemetry::{LogArgs, LogSettings};
use clap::{Parser, Subcommand};

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
    /// What else to do than to feed.
    #[command(subcommand)]
    pub command: Option<Command>,
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
    observe: ObserveArgs,
    #[command(flatten)]
    logs: LogArgs,
}

/// What a feeder can do besides its work.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask the feeder that runs on this machine or in this container for its health
    Healthcheck(HealthcheckArgs),
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

/// The settings, checked.
#[derive(Clone)]
pub struct Settings {
    /// Which migration this is.
    pub migration: MigrationSettings,
    /// How to feed.
    pub pacing: Pacing,
    /// Where to answer questions after health and figures.
    pub metrics_addr: Option<SocketAddr>,
}

/// How much at a time, and when to end.
#[derive(Debug, Clone, Copy)]
pub struct Pacing {
    /// Rows read at a time.
    pub page_size: u32,
    /// Messages in the queue above which the feeder waits.
    pub max_backlog: u64,
    /// The pause after a sweep that found nothing; none to end there.
    pub watch: Option<Duration>,
}

impl Args {
    /// Checks all settings.
    ///
    /// # Errors
    /// Everything that is wrong with them, together.
    pub fn parse_settings(self) -> Result<(Settings, LogSettings), SettingsError> {
        let mut problems = Problems::default();
        let logs = self.logs.parse(&mut problems);
        let migration = self.migration.parse(&mut problems);
        let pacing = self.feeder.parse(self.watch, &mut problems);
        let metrics_addr = self.observe.parse(&mut problems);
        problems.finish()?;
        match migration {
            Some(migration) => Ok((
                Settings {
                    migration,
                    pacing,
                    metrics_addr,
                },
                logs,
            )),
            None => Err(SettingsError::one("settings", "could not be read")),
        }
    }
}

impl FeederArgs {
    fn parse(self, is_watching: bool, problems: &mut Problems) -> Pacing {
        let interval = problems.parsed(
            "WATCH_INTERVAL",
            self.watch_interval,
            Duration::from_secs(30),
            positive(Duration::from_millis(100), Duration::from_hours(24)),
        );
        Pacing {
            page_size: problems.parsed("PAGE_SIZE", self.page_size, 1000, whole(1, 100_000)),
            max_backlog: problems.parsed(
                "MAX_BACKLOG",
                self.max_backlog,
                20_000,
                whole(10, 100_000_000),
            ),
            watch: is_watching.then_some(interval),
        }
    }
}
