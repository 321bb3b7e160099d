//! The consumer's own settings.

use std::net::SocketAddr;
use std::time::Duration;

use aws_sdk_s3::types::StorageClass;
use bucket_brigade_common::healthcheck::HealthcheckArgs;
use bucket_brigade_common::http_endpoints::EndpointArgs;
use bucket_brigade_common::logging::{LogArgs, LogSettings};
use bucket_brigade_common::settings::{
    DatabaseArgs, DatabaseLimits, MigrationArgs, MigrationSettings, SettingsError,
    SettingsProblems, duration_between, integer_between,
};
use bucket_brigade_common::trace::TraceSettings;
use clap::{Parser, Subcommand};

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
    after_help = "Example:\n  DATABASE_URL=postgres://app:secret@db/app IMAGES_TABLE=images \\\n  QUEUE_URL=https://sqs.eu-central-1.amazonaws.com/123456789012/images \\\n  SOURCE_BUCKET_NAME=old-images DESTINATION_BUCKET_NAME=new-images \\\n  OLD_PREFIX=image/ NEW_PREFIX=avatar/ consumer --max-concurrency 128\n\nExit codes: 0 drained after SIGTERM or Ctrl-C; 1 unexpected error; 64 wrong settings;\n69 database, queue or bucket cannot be reached; 77 a right is missing; 130 second signal."
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
    observe: EndpointArgs,
    #[command(flatten)]
    logs: LogArgs,
}

/// What a consumer can do besides its work.
#[derive(Debug, Subcommand)]
pub enum ConsumerCommand {
    /// Ask the consumer that runs on this machine or in this container for its health
    Healthcheck(HealthcheckArgs),
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The consumer")]
struct ConsumerArgs {
    /// Copies in flight at most; the throttle adapts below it [default: 64]
    #[arg(long, env = "MAX_CONCURRENCY", value_name = "N")]
    max_concurrency: Option<String>,
    /// How long a message is hidden from other consumers at a time; renewed while in hand [default: 60s]
    #[arg(long, env = "VISIBILITY_TIMEOUT", value_name = "DURATION")]
    visibility_timeout: Option<String>,
    /// The time from SIGTERM to the exit; keep it below the stopTimeout of ECS [default: 25s]
    #[arg(long, env = "SHUTDOWN_GRACE", value_name = "DURATION")]
    shutdown_grace: Option<String>,
    /// The storage class of the copies; S3 does not carry the source's over [default: STANDARD]
    #[arg(long, env = "STORAGE_CLASS", value_name = "CLASS")]
    storage_class: Option<String>,
    /// Whether the store honours If-None-Match on a copy: on, off, or auto to find out at the start
    /// with two probe objects of a few bytes [default: auto]
    #[arg(long, env = "CONDITIONAL_COPY", value_name = "on|off|auto")]
    conditional_copy: Option<String>,
    /// The source bucket's region, when it is not the destination's [default: AWS_REGION]
    #[arg(long, env = "SOURCE_REGION", value_name = "REGION")]
    source_region: Option<String>,
    /// When a copy that does not answer is given up and tried again [default: 2m]
    #[arg(long, env = "COPY_TIMEOUT", value_name = "DURATION")]
    copy_timeout: Option<String>,
    /// This consumer's name in the ledger [default: the host's name and a random suffix]
    #[arg(long, env = "CONSUMER_NAME", value_name = "NAME")]
    consumer_name: Option<String>,
}

/// The settings, checked.
#[derive(Clone)]
pub struct ConsumerSettings {
    /// Which migration this is.
    pub migration: MigrationSettings,
    /// Copies in flight at most.
    pub max_concurrency: usize,
    /// How long a message is hidden at a time.
    pub visibility_timeout: Duration,
    /// From SIGTERM to the exit.
    pub shutdown_grace: Duration,
    /// The copies' storage class.
    pub storage_class: Option<StorageClass>,
    /// Whether the store honours conditional copies; none to find out.
    pub conditional_copy: Option<bool>,
    /// The source bucket's region, when it is another.
    pub source_region: Option<String>,
    /// When a copy is given up.
    pub copy_timeout: Duration,
    /// This process in the ledger.
    pub name: String,
    /// When the database counts as slow.
    pub database_limits: DatabaseLimits,
    /// Where to answer questions after health and figures.
    pub metrics_addr: Option<SocketAddr>,
    /// Whether traces are exported.
    pub traces: TraceSettings,
}

impl Args {
    /// Checks all settings.
    ///
    /// # Errors
    /// Everything that is wrong with them, together.
    pub fn parse_settings(self) -> Result<(ConsumerSettings, LogSettings), SettingsError> {
        let mut problems = SettingsProblems::default();
        let logs = self.logs.parse(&mut problems);
        let migration = self.migration.parse(&mut problems);
        let metrics_addr = self.observe.parse(&mut problems);
        let database_limits = self.database.parse(&mut problems);
        let traces = TraceSettings::from_env(&mut problems);
        let own = self
            .consumer
            .parse(metrics_addr, database_limits, traces, &mut problems);
        problems.into_result()?;
        match migration {
            Some(migration) => Ok((own(migration), logs)),
            None => Err(SettingsError::for_setting("settings", "could not be read")),
        }
    }
}

impl ConsumerArgs {
    /// Parses everything, and answers how to complete it with the migration's settings.
    fn parse(
        self,
        metrics_addr: Option<SocketAddr>,
        database_limits: DatabaseLimits,
        traces: TraceSettings,
        problems: &mut SettingsProblems,
    ) -> impl FnOnce(MigrationSettings) -> ConsumerSettings + use<> {
        let max_concurrency = problems.parse_value(
            "MAX_CONCURRENCY",
            self.max_concurrency,
            64,
            integer_between(1, 4096),
        );
        // SQS's own limit; two seconds leave room for a renewal.
        let lease = duration_between(Duration::from_secs(2), Duration::from_hours(12));
        let visibility_timeout = problems.parse_value(
            "VISIBILITY_TIMEOUT",
            self.visibility_timeout,
            Duration::from_mins(1),
            lease,
        );
        let grace = duration_between(Duration::from_secs(2), Duration::from_hours(1));
        let default_grace = Duration::from_secs(25);
        let shutdown_grace =
            problems.parse_value("SHUTDOWN_GRACE", self.shutdown_grace, default_grace, grace);
        let storage_class = problems.parse_value(
            "STORAGE_CLASS",
            self.storage_class,
            None,
            parse_storage_class,
        );
        let conditional_copy = problems.parse_value(
            "CONDITIONAL_COPY",
            self.conditional_copy,
            None,
            parse_conditional_copy,
        );
        let source_region =
            problems.parse_value("SOURCE_REGION", self.source_region, None, |region| {
                Ok(Some(region.to_owned()))
            });
        let timeout = duration_between(Duration::from_secs(1), Duration::from_hours(1));
        let copy_timeout = problems.parse_value(
            "COPY_TIMEOUT",
            self.copy_timeout,
            Duration::from_mins(2),
            timeout,
        );
        let default_name = bucket_brigade_common::startup::process_name("consumer");
        let name =
            problems.parse_value("CONSUMER_NAME", self.consumer_name, default_name, |name| {
                Ok(name.to_owned())
            });
        move |migration| ConsumerSettings {
            migration,
            max_concurrency,
            visibility_timeout,
            shutdown_grace,
            storage_class,
            conditional_copy,
            source_region,
            copy_timeout,
            name,
            database_limits,
            metrics_addr,
            traces,
        }
    }
}

fn parse_conditional_copy(text: &str) -> Result<Option<bool>, String> {
    match text {
        "auto" => Ok(None),
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        _ => Err("is neither on, off nor auto".into()),
    }
}

fn parse_storage_class(text: &str) -> Result<Option<StorageClass>, String> {
    if matches!(text, "GLACIER" | "DEEP_ARCHIVE") {
        return Err("is an archive class: the application could not read the copies".into());
    }
    match StorageClass::try_parse(text) {
        Ok(class) => Ok(Some(class)),
        Err(_) => Err(format!("is none of {}", StorageClass::values().join(", "))),
    }
}
