//! What every command needs: the settings of the migration, the ledger of its run, the AWS clients.

use std::time::Duration;

use aws_config::SdkConfig;
use bucket_brigade_common::ledger::{
    self, ConnectionPurpose, DatabasePool, LedgerError, LedgerRun, PostgresLedger, RunOptions,
    RunSelection, TableAccess, require_selected_run,
};
use bucket_brigade_common::logging::{self, LogArgs};
use bucket_brigade_common::object_store::s3::{MethodRequest, S3Bucket};
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::settings::{
    MigrationArgs, MigrationSettings, SettingsError, SettingsProblems,
};
use bucket_brigade_common::{aws, startup};
use clap::Subcommand as _;
use tokio::sync::OnceCell;

use crate::OperatorCommand;
use crate::output::OutputFormat;

/// Pages side by side, and the heartbeat. A command that does one thing after the other opens one or two.
const POOL_SIZE: u32 = 5;

/// When an S3 request that does not answer is given up.
const S3_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The flags and settings of every command.
#[derive(Debug, clap::Args)]
pub struct CommonArgs {
    /// Print one JSON object (`report`: one per line)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    migration: MigrationArgs,
    #[command(flatten)]
    logs: LogArgs,
}

/// A command's surroundings. Nothing is connected before it is asked for.
pub struct CommandContext {
    pub migration: MigrationSettings,
    pub format: OutputFormat,
    sdk_config: OnceCell<SdkConfig>,
}

pub(crate) struct CommonSettings {
    pub(crate) migration: MigrationSettings<RunSelection>,
    pub(crate) format: OutputFormat,
}

impl CommonArgs {
    /// Checks the settings, starts logging, and finds the run that is meant.
    pub async fn into_context(self, problems: SettingsProblems) -> anyhow::Result<CommandContext> {
        let CommonSettings { migration, format } = self.parse(problems)?;
        let purpose = ConnectionPurpose::Command(command_name());
        let run = require_selected_run(&migration.database, &migration.run, &purpose);
        let run = Box::pin(run).await?;
        Ok(CommandContext {
            migration: migration.with_run(run)?,
            format,
            sdk_config: OnceCell::new(),
        })
    }

    /// The same, with the run's ledger.
    pub(crate) async fn open_run(
        self,
        problems: SettingsProblems,
        access: TableAccess,
    ) -> anyhow::Result<(CommandContext, PostgresLedger)> {
        let context = self.into_context(problems).await?;
        let ledger = context.open_ledger(access).await?;
        Ok((context, ledger))
    }

    /// Checks the settings and starts logging.
    pub(crate) fn parse(
        self,
        mut problems: SettingsProblems,
    ) -> Result<CommonSettings, SettingsError> {
        let logs = self.logs.parse(&mut problems);
        let migration = self.migration.parse_selection(false, &mut problems);
        let migration = problems.finish(migration)?;
        logging::init_logging(logs, logging::stderr_writer(), None);
        let format = if self.json {
            OutputFormat::Json
        } else {
            OutputFormat::Text
        };
        Ok(CommonSettings { migration, format })
    }
}

impl CommonSettings {
    /// With the database's address alone; none where there is no ledger yet.
    pub(crate) async fn connect_to_ledger(&self) -> Result<Option<DatabasePool>, LedgerError> {
        let purpose = ConnectionPurpose::Command(command_name());
        ledger::connect_to_ledger(&self.migration.database, &purpose).await
    }

    /// None where no queue was named.
    pub(crate) async fn sqs_queue(&self) -> Option<SqsQueue> {
        let url = &self.migration.queue_url;
        if url.is_empty() {
            return None;
        }
        Some(SqsQueue::new(&aws::load_config().await, url))
    }
}

impl CommandContext {
    /// The ledger of the run that the feeder opened.
    pub async fn open_ledger(&self, access: TableAccess) -> Result<PostgresLedger, LedgerError> {
        let pool = ledger::create_pool(self.migration.database.clone(), POOL_SIZE);
        let name = startup::process_name("operator");
        let purpose = ConnectionPurpose::Command(command_name());
        PostgresLedger::open_existing(pool, &self.migration.run, &name, &purpose, access).await
    }

    /// The same for what reads and writes nothing but the ledger.
    pub(crate) async fn open_run(&self) -> Result<LedgerRun, LedgerError> {
        let pool = ledger::create_pool(self.migration.database.clone(), 1);
        let purpose = ConnectionPurpose::Command(command_name());
        LedgerRun::find(pool, &self.migration.run, &purpose).await
    }

    /// Source and destination. Whether they are there is not asked yet.
    pub async fn buckets(
        &self,
        options: &RunOptions,
    ) -> Result<(S3Bucket, S3Bucket), PreflightError> {
        let MigrationSettings { run, stores, .. } = &self.migration;
        stores
            .open_buckets(self.sdk().await, run, options, S3_REQUEST_TIMEOUT)
            .await
    }

    /// The destination by another's profile, which a setting names.
    pub(crate) async fn open_destination_as(
        &self,
        setting: &'static str,
        profile: &str,
    ) -> Result<S3Bucket, PreflightError> {
        let MigrationSettings { run, stores, .. } = &self.migration;
        stores
            .open_destination_as(setting, profile, run, S3_REQUEST_TIMEOUT)
            .await
    }

    pub fn method_request<'a>(&'a self, options: &'a RunOptions) -> MethodRequest<'a> {
        let MigrationSettings { run, stores, .. } = &self.migration;
        MethodRequest {
            options,
            stores,
            conditional_copy: None,
            prefix: run.rule.destination_key_prefix(),
            source_prefix: run.rule.source_key_prefix(),
            is_way_back: false,
        }
    }

    /// Whether one store holds both buckets.
    pub(crate) fn has_one_store(&self) -> bool {
        self.migration.stores.is_one_store()
    }

    pub async fn sqs_queue(&self) -> Result<SqsQueue, SettingsError> {
        let url = &self.migration.queue_url;
        if url.is_empty() {
            return Err(SettingsError::for_setting("QUEUE_URL", "is missing"));
        }
        Ok(SqsQueue::new(self.sdk().await, url))
    }

    async fn sdk(&self) -> &SdkConfig {
        self.sdk_config.get_or_init(aws::load_config).await
    }
}

/// The command that this process was started for.
pub(crate) fn command_name() -> String {
    let is_command = |argument: &String| OperatorCommand::has_subcommand(argument);
    std::env::args()
        .find(is_command)
        .unwrap_or_else(|| "command".into())
}
