//! Taking on a run: it is read from the ledger, checked, and its store probed.

use std::sync::Arc;

use async_trait::async_trait;
use aws_config::SdkConfig;
use bucket_brigade_common::heartbeat::send_first_heartbeat;
use bucket_brigade_common::ledger::fleet_control::{FleetControl, Heartbeat, WorkerRole};
use bucket_brigade_common::ledger::move_ledger::MoveLedger;
use bucket_brigade_common::ledger::{
    self, ConnectionPurpose, LedgerError, PostgresLedger, RunRow, RunSpec, list_runs_in, only_run,
};
use bucket_brigade_common::object_store::ObjectStore;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::preflight::retry_transient;
use bucket_brigade_common::row_id::IdType;
use bucket_brigade_common::throttle::Throttle;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::settings::ConsumerSettings;
use crate::store::open_store;
use crate::trace::Deliveries;

/// A consumer shares the server's connections with the application and with every other consumer.
pub(crate) const MAX_CONNECTIONS: u32 = 3;

/// What is needed to serve one run.
pub struct RunParts {
    /// Its number in the ledger.
    pub run: i64,
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

    /// # Errors
    /// Why it cannot be found out now.
    async fn home_run(&self) -> Result<HomeRun, String>;

    /// Whether the ledger has a run that goes on, besides these.
    async fn has_other_work(&self, waiting: &[i64]) -> bool;
}

/// The ledger's runs.
#[derive(Clone)]
pub(crate) struct LedgerRunLoader {
    pub(crate) settings: ConsumerSettings,
    pub(crate) sdk: SdkConfig,
    pub(crate) stop: CancellationToken,
}

impl LedgerRunLoader {
    /// All runs; none where there is no ledger of this version.
    pub(crate) async fn list_runs(&self) -> Result<Option<Vec<RunRow>>, LedgerError> {
        let database = &self.settings.migration.database;
        list_runs_in(database, &ConnectionPurpose::Consumer).await
    }

    async fn require_runs(&self) -> anyhow::Result<Vec<RunRow>> {
        let runs = self.list_runs().await?;
        runs.ok_or_else(|| anyhow::anyhow!("the ledger is another version's"))
    }

    async fn load_run(&self, run: i64) -> anyhow::Result<Option<RunParts>> {
        let runs = self.require_runs().await?;
        let Some(row) = runs.iter().find(|row| row.id == run) else {
            return Ok(None);
        };
        let spec = row.to_spec()?;
        let database = self.settings.migration.database.clone();
        let pool = ledger::create_pool(database, MAX_CONNECTIONS);
        let ledger = PostgresLedger::find_run(pool, &spec, &self.settings.name).await?;
        let Some(ledger) = ledger else {
            return Ok(None);
        };
        self.prepare(&spec, ledger).await.map(Some)
    }

    /// Checks a run's buckets, probes its store, and joins its fleet.
    pub(crate) async fn prepare(
        &self,
        spec: &RunSpec,
        ledger: PostgresLedger,
    ) -> anyhow::Result<RunParts> {
        let settings = &self.settings;
        let store = open_store(&self.sdk, settings, spec, ledger.options()).await?;
        let throttle = Throttle::for_copies(settings.max_concurrency, settings.database_limits);
        let ledger = self.join_fleet(&ledger, &throttle).await?;
        log_start(settings, spec, &ledger);
        Ok(RunParts {
            run: ledger.run_id(),
            name: spec.name.clone().unwrap_or_default(),
            id_type: ledger.id_type(),
            rule: ledger.rule().clone(),
            store: Arc::new(store),
            ledger: Arc::new(ledger.clone()),
            fleet_control: Arc::new(ledger),
            throttle: Arc::new(throttle),
            deliveries: Deliveries::new(&spec.source_bucket, &spec.destination_bucket),
        })
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
        if let Err(error) = ledger.prune_dead_workers().await {
            tracing::debug!(%error, "processes that have ended stay in the ledger");
        }
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
        let loading = spawn_blocking(move || runtime.block_on(loader.load_run(run)));
        let loaded = loading.await.map_err(|error| error.to_string())?;
        let loaded = loaded.map_err(|error| format!("{error:#}"))?;
        Ok(loaded.map(Box::new))
    }

    async fn home_run(&self) -> Result<HomeRun, String> {
        let runs = self
            .require_runs()
            .await
            .map_err(|error| format!("{error:#}"))?;
        if let Some(run) = only_run(&runs) {
            return Ok(HomeRun {
                run: run.id,
                is_only: true,
            });
        }
        let newest = runs.last().ok_or("there is no run in the ledger")?;
        Ok(HomeRun {
            run: newest.id,
            is_only: false,
        })
    }

    async fn has_other_work(&self, waiting: &[i64]) -> bool {
        match self.list_runs().await {
            Ok(runs) => runs
                .unwrap_or_default()
                .iter()
                .any(|run| !run.is_finished && !run.is_paused && !waiting.contains(&run.id)),
            Err(error) => {
                tracing::debug!(%error, "the runs cannot be listed");
                false
            }
        }
    }
}
