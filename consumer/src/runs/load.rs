//! Taking on a run: it is read from the ledger, checked, and its store probed.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use bucket_brigade_common::aws::error_chain;
use bucket_brigade_common::heartbeat::send_first_heartbeat;
use bucket_brigade_common::ledger::fleet_control::{FleetControl, Heartbeat, WorkerRole};
use bucket_brigade_common::ledger::move_ledger::MoveLedger;
use bucket_brigade_common::ledger::{
    ConnectionPurpose, DatabasePool, LedgerError, PostgresLedger, RunOptions, RunRow, RunSpec,
    TableAccess, create_pool, find_selected_run, list_runs_in, only_run,
};
use bucket_brigade_common::message::RunKey;
use bucket_brigade_common::object_store::ObjectStore;
use bucket_brigade_common::object_store::s3::{MethodRequest, S3Bucket, S3Store};
use bucket_brigade_common::panics::contain_panic;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::preflight::{PreflightError, retry_transient};
use bucket_brigade_common::row_id::IdType;
use bucket_brigade_common::throttle::Throttle;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::settings::ConsumerSettings;
use crate::trace::Deliveries;

/// Of all runs together: the server's connections are shared with the application and with every other consumer.
pub(crate) const MAX_CONNECTIONS: u16 = 3;

/// A run that is not taken on by then is tried again later.
const LOAD_TIMEOUT: Duration = Duration::from_mins(1);

/// The settings of what has to answer next.
pub(crate) type LoadStep = Cell<&'static str>;

const DATABASE: &str = "DATABASE_URL";
pub(crate) const BUCKETS: &str = "SOURCE_BUCKET_NAME, DESTINATION_BUCKET_NAME";

/// What is needed to serve one run.
pub struct RunParts {
    pub run: RunKey,
    pub name: String,
    pub id_type: IdType,
    pub rule: PathRule,
    pub store: Arc<dyn ObjectStore>,
    pub ledger: Arc<dyn MoveLedger>,
    pub fleet_control: Arc<dyn FleetControl>,
    pub throttle: Arc<Throttle>,
    pub deliveries: Deliveries,
}

/// The run that messages without a number are of, or that records them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HomeRun {
    pub run: i64,
    /// Whether it is the only one that could be meant.
    pub is_only: bool,
}

#[async_trait]
pub trait RunLoader: Send + Sync {
    /// The run, checked; none when it is not in the ledger.
    ///
    /// # Errors
    /// Why it cannot be served now.
    async fn load(&self, run: i64) -> Result<Option<Box<RunParts>>, String>;

    /// The run of messages that name the run `from`, which was not in the ledger; none where it is by now.
    ///
    /// # Errors
    /// Why it cannot be found out now.
    async fn home_run(&self, from: i64) -> Result<Option<HomeRun>, String>;

    /// The runs that go on by the ledger; none where it cannot be asked.
    async fn list_active_runs(&self) -> Vec<i64>;
}

/// Gives up what does not answer, by the name of what that was.
pub(crate) async fn within_limit<T>(
    load: impl AsyncFnOnce(&LoadStep) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let step = Cell::new(DATABASE);
    let loaded = timeout(LOAD_TIMEOUT, load(&step)).await;
    loaded.unwrap_or_else(|_| {
        let problem = format!("no response within {LOAD_TIMEOUT:?}");
        Err(PreflightError::unreachable(step.get(), problem).into())
    })
}

#[derive(Clone)]
pub(crate) struct LedgerRunLoader {
    pub(crate) settings: ConsumerSettings,
    pub(crate) stop: CancellationToken,
    sdk: SdkConfig,
    /// Of all runs.
    pool: DatabasePool,
}

impl LedgerRunLoader {
    pub(crate) fn new(settings: ConsumerSettings, sdk: SdkConfig, stop: CancellationToken) -> Self {
        let database = settings.migration.database.clone();
        let pool = create_pool(database, MAX_CONNECTIONS.into());
        Self {
            settings,
            stop,
            sdk,
            pool,
        }
    }

    /// All runs; none where there is no ledger of this version.
    pub(crate) async fn list_runs(&self) -> Result<Option<Vec<RunRow>>, LedgerError> {
        list_runs_in(
            &self.pool,
            &ConnectionPurpose::Consumer,
            TableAccess::Update,
        )
        .await
    }

    /// The one that the settings name.
    pub(crate) async fn find_selected(&self) -> Result<Option<RunSpec>, LedgerError> {
        let (run, purpose) = (&self.settings.migration.run, ConnectionPurpose::Consumer);
        find_selected_run(&self.pool, run, &purpose, TableAccess::Update).await
    }

    async fn require_runs(&self) -> anyhow::Result<Vec<RunRow>> {
        let runs = self.list_runs().await?;
        runs.ok_or_else(|| anyhow::anyhow!("the ledger is another version's"))
    }

    /// None while no feeder has opened it.
    pub(crate) async fn find_ledger(
        &self,
        run: &RunSpec,
    ) -> Result<Option<PostgresLedger>, LedgerError> {
        PostgresLedger::find_run(self.pool.clone(), run, &self.settings.name).await
    }

    async fn load_run(&self, run: i64, step: &LoadStep) -> anyhow::Result<Option<RunParts>> {
        let runs = self.require_runs().await?;
        let Some(row) = runs.iter().find(|row| row.id == run) else {
            return Ok(None);
        };
        let spec = row.to_spec()?;
        self.settings.migration.ensure_given(&spec)?;
        match self.find_ledger(&spec).await? {
            Some(ledger) => self.prepare(&spec, ledger, step).await,
            None => Ok(None),
        }
    }

    /// Checks a run's buckets, probes its store, and joins its fleet; none at a stop.
    pub(crate) async fn prepare(
        &self,
        spec: &RunSpec,
        ledger: PostgresLedger,
        step: &LoadStep,
    ) -> anyhow::Result<Option<RunParts>> {
        let settings = &self.settings;
        step.set(BUCKETS);
        let store = self.open_store(spec, ledger.options()).await?;
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        step.set(DATABASE);
        let throttle = Throttle::for_copies(settings.max_concurrency, settings.database_limits);
        let ledger = self.join_fleet(&ledger, &throttle).await?;
        log_start(settings, spec, &ledger);
        Ok(Some(RunParts {
            run: ledger.run_key(),
            name: spec.name.clone().unwrap_or_default(),
            id_type: ledger.id_type(),
            rule: ledger.rule().clone(),
            store: Arc::new(store),
            ledger: Arc::new(ledger.clone()),
            fleet_control: Arc::new(ledger),
            throttle: Arc::new(throttle),
            deliveries: Deliveries::new(&spec.source_bucket, &spec.destination_bucket),
        }))
    }

    /// The two buckets, which must be there.
    pub(crate) async fn open_buckets(
        &self,
        run: &RunSpec,
        options: &RunOptions,
    ) -> Result<(S3Bucket, S3Bucket), PreflightError> {
        let stores = &self.settings.migration.stores;
        let buckets = stores.open_buckets(&self.sdk, run, options, self.settings.copy_timeout);
        let (source, destination) = buckets.await?;
        source.check_access().await?;
        destination.check_access().await?;
        Ok((source, destination))
    }

    /// The way of the bytes from one bucket to the other.
    async fn open_store(
        &self,
        run: &RunSpec,
        options: &RunOptions,
    ) -> Result<S3Store, PreflightError> {
        let (source, destination) = self.open_buckets(run, options).await?;
        let request = MethodRequest {
            options,
            stores: &self.settings.migration.stores,
            conditional_copy: self.settings.conditional_copy,
            prefix: run.rule.destination_key_prefix(),
            source_prefix: run.rule.source_key_prefix(),
            is_way_back: false,
        };
        let store = Box::pin(request.open(source, destination)).await?;
        tracing::info!(method = %store.method(), "copying");
        Ok(store)
    }

    /// Reads the fleet's limits before the first message is taken. Returns the ledger under this process's name.
    async fn join_fleet(
        &self,
        ledger: &PostgresLedger,
        throttle: &Throttle,
    ) -> Result<PostgresLedger, LedgerError> {
        if throttle.watches_replicas() {
            ledger.check_replica_lag().await?;
        }
        let ledger = retry_transient(async || ledger.with_own_name().await).await?;
        let first = Heartbeat::starting(WorkerRole::Consumer);
        send_first_heartbeat(&ledger, throttle, &first, &self.stop).await;
        ledger.prune_dead_workers().await;
        Ok(ledger)
    }
}

fn log_start(settings: &ConsumerSettings, run: &RunSpec, ledger: &PostgresLedger) {
    tracing::info!(
        name = ledger.worker(),
        run = ledger.run_id(),
        table = ledger.table_name(),
        source = run.source_bucket,
        destination = run.destination_bucket,
        max_concurrency = settings.max_concurrency,
        "consuming"
    );
}

#[async_trait]
impl RunLoader for LedgerRunLoader {
    async fn load(&self, run: i64) -> Result<Option<Box<RunParts>>, String> {
        // On a thread of its own: retries by async closures are not known to be Send.
        let (loader, runtime) = (self.clone(), Handle::current());
        let loading = spawn_blocking(move || {
            let load = async |step: &LoadStep| Box::pin(loader.load_run(run, step)).await;
            runtime.block_on(contain_panic(within_limit(load)))
        });
        let loaded = loading.await.map_err(|error| error.to_string())?;
        let loaded = loaded?.map_err(|error| error_chain(&*error))?;
        Ok(loaded.map(Box::new))
    }

    async fn home_run(&self, from: i64) -> Result<Option<HomeRun>, String> {
        let runs = self.require_runs().await;
        let runs = runs.map_err(|error| error_chain(&*error))?;
        if runs.iter().any(|run| run.id == from) {
            return Ok(None);
        }
        let only = only_run(&runs);
        let home = only.or(runs.last());
        let run = home.ok_or("there is no run in the ledger")?.id;
        Ok(Some(HomeRun {
            run,
            is_only: only.is_some(),
        }))
    }

    async fn list_active_runs(&self) -> Vec<i64> {
        let is_active = |run: &&RunRow| !run.is_finished && !run.is_paused;
        match self.require_runs().await {
            Ok(runs) => runs.iter().filter(is_active).map(|run| run.id).collect(),
            Err(error) => {
                tracing::debug!(%error, "the runs cannot be listed");
                Vec::new()
            }
        }
    }
}
