//! The consumer's own settings.

use std::net::SocketAddr;
use std::time::Duration;

use bucket_brigade_common::healthcheck::HealthcheckArgs;
use bucket_brigade_common::http_endpoints::EndpointArgs;
use bucket_brigade_common::ledger::RunSelection;
use bucket_brigade_common::logging::{LogArgs, LogSettings};
use bucket_brigade_common::manual::ManualCommand;
use bucket_brigade_common::settings::{
    DatabaseArgs, DatabaseLimits, MigrationArgs, MigrationSettings, Setting, SettingsError,
    SettingsProblems, choice, duration_between, integer_between, optional, setting,
};
use bucket_brigade_common::startup::process_name;
use bucket_brigade_common::trace::TraceSettings;
use clap::{Parser, Subcommand};

/// It is part of an index's key.
const MAX_NAME_BYTES: usize = 200;

/// Copies images from one bucket to another and points their rows at the copies: takes messages
/// from the queue, has S3 copy each object, sets the row's path, and only then deletes the message.
///
/// Run as many as there is work for. Each setting is an environment variable (also read from a file
/// named .env) or the flag of the same name.
#[derive(Debug, Parser)]
#[command(
    name = "consumer",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Example:\n  DATABASE_URL=postgres://app:secret@db/app \\\n  QUEUE_URL=https://sqs.eu-central-1.amazonaws.com/123456789012/images \\\n  consumer --max-concurrency 128\n\nExit codes: 0 drained after SIGTERM or Ctrl-C; 64 wrong settings; 69 database, queue or bucket\ncannot be reached; 70 unexpected error; 77 a right is missing; 130 second signal."
)]
pub struct Args {
    /// What else to do than to consume.
    #[command(subcommand)]
    pub command: Option<ConsumerCommand>,
    #[command(flatten)]
    migration: MigrationArgs,
    #[command(flatten)]
    consumer: ConsumerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
    #[command(flatten)]
    logs: LogArgs,
}

/// What a consumer can do besides its work.
#[derive(Debug, Subcommand)]
pub enum ConsumerCommand {
    /// Ask the consumer that runs on this machine or in this container for its health
    Healthcheck(HealthcheckArgs),
    #[command(flatten)]
    Manual(ManualCommand),
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The consumer")]
struct ConsumerArgs {
    /// Copies in flight at most, of all runs together; the throttle adapts below it
    #[arg(long, env, value_name = "N", default_value = "64", value_parser = setting(integer_between(1_usize, 4096)))]
    max_concurrency: Setting<usize>,
    // SQS's own limit; two seconds leave room for a renewal.
    /// How long a message is hidden from other consumers at a time; renewed while in hand
    #[arg(long, env, value_name = "DURATION", default_value = "60s", value_parser = setting(duration_between(Duration::from_secs(2), Duration::from_hours(12))))]
    visibility_timeout: Setting<Duration>,
    /// The time from SIGTERM to the exit; keep it below the stopTimeout of ECS
    #[arg(long, env, value_name = "DURATION", default_value = "25s", value_parser = setting(duration_between(Duration::from_secs(2), Duration::from_hours(1))))]
    shutdown_grace: Setting<Duration>,
    /// Whether the store honours If-None-Match on its copies: on, off (a HEAD goes first, and what the application
    /// writes between the two is overwritten), or auto to find out at the start with probe objects of a few bytes
    #[arg(long, env, value_name = "on|off|auto", default_value = "auto", value_parser = setting(choice(&[("on", Some(true)), ("off", Some(false)), ("auto", None)])))]
    conditional_copy: Setting<Option<bool>>,
    /// When a copy that does not respond is given up and retried
    #[arg(long, env, value_name = "DURATION", default_value = "2m", value_parser = setting(duration_between(Duration::from_secs(1), Duration::from_hours(1))))]
    copy_timeout: Setting<Duration>,
    /// This consumer's name in the ledger [default: the host's name and a random suffix]
    #[arg(long, env, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    consumer_name: Setting<Option<String>>,
}

#[derive(Clone)]
pub struct ConsumerSettings {
    pub migration: MigrationSettings<RunSelection>,
    pub max_concurrency: usize,
    pub visibility_timeout: Duration,
    pub shutdown_grace: Duration,
    /// None to find out.
    pub conditional_copy: Option<bool>,
    pub copy_timeout: Duration,
    /// This process in the ledger.
    pub name: String,
    pub database_limits: DatabaseLimits,
    pub metrics_addr: Option<SocketAddr>,
    pub traces: TraceSettings,
}

impl Args {
    pub fn parse_settings(self) -> Result<(ConsumerSettings, LogSettings), SettingsError> {
        let mut problems = SettingsProblems::default();
        let settings = self.parse_all(&mut problems);
        problems.finish(settings)
    }

    fn parse_all(self, problems: &mut SettingsProblems) -> Option<(ConsumerSettings, LogSettings)> {
        let logs = self.logs.parse(problems);
        let migration = self.migration.parse_selection(true, problems);
        let own = self.consumer;
        let name = own.consumer_name.take(problems);
        if name
            .as_ref()
            .is_some_and(|name| name.len() > MAX_NAME_BYTES)
        {
            problems.add(
                "CONSUMER_NAME",
                format!("is longer than {MAX_NAME_BYTES} bytes"),
            );
        }
        let settings = ConsumerSettings {
            max_concurrency: own.max_concurrency.take(problems),
            visibility_timeout: own.visibility_timeout.take(problems),
            shutdown_grace: own.shutdown_grace.take(problems),
            conditional_copy: own.conditional_copy.take(problems),
            copy_timeout: own.copy_timeout.take(problems),
            name: name.unwrap_or_else(|| process_name("consumer")),
            database_limits: self.database.parse(problems),
            metrics_addr: self.endpoints.parse(problems),
            traces: TraceSettings::from_env(problems),
            // Last, so that what is wrong with the others is reported too.
            migration: migration?,
        };
        Some((settings, logs))
    }
}
