//! One consumer that serves two runs, each in a simulated world of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::ledger::LedgerError;
use bucket_brigade_common::ledger::fleet_control::{
    FleetControl, FleetLimits, Heartbeat, WorkerRole,
};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::{
    CopiedObject, DestinationState, ObjectStore, StoreError,
};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_consumer::metrics::ConsumerStatus;
use bucket_brigade_consumer::pipeline::ServedRuns;
use bucket_brigade_consumer::runs::{HomeRun, RunLoader, RunParts};
use bucket_brigade_simulation::client::SimulatedClient;
use bucket_brigade_simulation::fault_rates::FaultRates;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared_world::SharedWorld;
use bucket_brigade_simulation::simulate::{build_pipeline, build_run_parts};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// More than a run has in hand.
pub(super) const ROW_COUNT: usize = 600;

fn build_world(run: i64) -> Arc<SharedWorld> {
    let shared = Arc::new(SharedWorld::new(1, Sabotage::None));
    let mut things = shared.lock();
    things.run = run;
    things.fault_rates = FaultRates::none();
    for id in 0..ROW_COUNT {
        let path = format!("image/{id}");
        things
            .buckets
            .source
            .insert(path.clone(), format!("{run}/{id}"));
        things.table.rows.insert(id.to_string(), path);
    }
    drop(things);
    shared
}

/// An operator of each run.
#[derive(Default)]
pub(super) struct Operator {
    pub(super) is_paused: AtomicBool,
    pub(super) is_broken: AtomicBool,
    /// Not in the ledger when it is asked for first.
    pub(super) opens_late: AtomicBool,
    /// Its limits leave nothing to this process.
    pub(super) is_excluded: AtomicBool,
    pub(super) is_finished: AtomicBool,
    /// Its store does not answer.
    pub(super) is_hung: AtomicBool,
    pub(super) loads: AtomicU32,
    pub(super) deregistered: AtomicU32,
}

#[async_trait]
impl FleetControl for Operator {
    async fn heartbeat(&self, _: &Heartbeat) -> Result<FleetLimits, StatementError> {
        let paused = self.is_paused.load(Ordering::Relaxed);
        let is_excluded = self.is_excluded.load(Ordering::Relaxed);
        Ok(FleetLimits {
            paused: paused.then(|| "by ana".into()),
            concurrency: is_excluded.then_some(1),
            other_consumers: 1,
            preceding_consumers: 1,
            ..FleetLimits::default()
        })
    }

    async fn deregister(&self) -> Result<(), StatementError> {
        self.deregistered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn replica_lag(&self) -> Result<Option<Duration>, StatementError> {
        Ok(None)
    }
}

/// Copies under way of all runs, and the most there were.
#[derive(Default)]
pub(super) struct CopyGauge {
    pub(super) current: AtomicUsize,
    pub(super) most: AtomicUsize,
}

/// A run's store, which may hang, and cannot bear one of the keys.
struct WatchedStore {
    client: Arc<SimulatedClient>,
    operator: Arc<Operator>,
    copies: Arc<CopyGauge>,
}

/// One copy in the gauge.
struct CountedCopy<'a>(&'a CopyGauge);

impl Drop for CountedCopy<'_> {
    fn drop(&mut self) {
        self.0.current.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl ObjectStore for WatchedStore {
    async fn copy(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let current = self.copies.current.fetch_add(1, Ordering::Relaxed) + 1;
        let _counted = CountedCopy(&self.copies);
        self.copies.most.fetch_max(current, Ordering::Relaxed);
        while self.operator.is_hung.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(100)).await;
        }
        assert_ne!(route.source_key, "image/defect");
        self.client.copy(route).await
    }

    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        self.copy(route).await
    }

    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        self.client.compare_objects(route).await
    }

    async fn check_rights(
        &self,
        rule: &PathRule,
        source_keys: &[String],
    ) -> Result<bool, StoreError> {
        self.client.check_rights(rule, source_keys).await
    }

    async fn silent_side(&self) -> Option<BucketSide> {
        None
    }
}

struct Loader {
    runs: Vec<(Arc<SimulatedClient>, Arc<Operator>)>,
    copies: Arc<CopyGauge>,
}

#[async_trait]
impl RunLoader for Loader {
    async fn load(&self, run: i64) -> Result<Option<Box<RunParts>>, String> {
        let mut runs = self.runs.iter();
        let Some((client, operator)) = runs.find(|(client, _)| client.run() == run) else {
            return Ok(None);
        };
        operator.loads.fetch_add(1, Ordering::Relaxed);
        if operator.opens_late.swap(false, Ordering::Relaxed) {
            return Ok(None);
        }
        if operator.is_broken.load(Ordering::Relaxed) {
            return Err("there is no bucket 'gone'".into());
        }
        let parts = RunParts {
            fleet_control: Arc::<Operator>::clone(operator),
            store: Arc::new(WatchedStore {
                client: Arc::clone(client),
                operator: Arc::clone(operator),
                copies: Arc::clone(&self.copies),
            }),
            ..build_run_parts(client)
        };
        let heartbeat = Heartbeat::starting(WorkerRole::Consumer);
        let limits = operator.heartbeat(&heartbeat).await.unwrap();
        parts.throttle.set_limits(limits);
        Ok(Some(Box::new(parts)))
    }

    async fn home_run(&self, from: i64) -> Result<Option<HomeRun>, String> {
        if self.runs.iter().any(|(client, _)| client.run() == from) {
            return Ok(None);
        }
        Ok(Some(HomeRun {
            run: self.runs[0].0.run(),
            is_only: self.runs.len() == 1,
        }))
    }

    async fn list_active_runs(&self) -> Vec<i64> {
        let is_active = |operator: &Operator| {
            let mut ends = [&operator.is_paused, &operator.is_finished].into_iter();
            !ends.any(|end| end.load(Ordering::Relaxed))
        };
        let active = self.runs.iter().filter(|(_, operator)| is_active(operator));
        active.map(|(client, _)| client.run()).collect()
    }
}

/// A consumer that serves runs 1 and 2, each in a world of its own, from the queue of the first.
pub(super) struct TwoRunRig {
    pub(super) worlds: [Arc<SharedWorld>; 2],
    pub(super) operators: [Arc<Operator>; 2],
    pub(super) copies: Arc<CopyGauge>,
    pub(super) status: ConsumerStatus,
    pub(super) stop: CancellationToken,
    pub(super) consumer: JoinHandle<Result<bool, LedgerError>>,
}

impl TwoRunRig {
    pub(super) fn start(prepare: impl FnOnce(&[Arc<Operator>; 2])) -> Self {
        let worlds = [build_world(1), build_world(2)];
        let operators = [Arc::default(), Arc::default()];
        prepare(&operators);
        let client = SimulatedClient::new(Arc::clone(&worlds[0]), None);
        let client = Arc::new(client.with_others(&worlds[1..]));
        let runs = worlds.iter().map(|world| Arc::new(client.in_world(world)));
        let copies = Arc::<CopyGauge>::default();
        let loader = Loader {
            runs: runs.zip(operators.iter().cloned()).collect(),
            copies: Arc::clone(&copies),
        };
        let stop = CancellationToken::new();
        let mut pipeline = build_pipeline(&client, stop.clone());
        pipeline.served = ServedRuns::All(Arc::new(loader));
        Self {
            worlds,
            operators,
            copies,
            status: pipeline.status(),
            stop,
            consumer: tokio::spawn(pipeline.run()),
        }
    }

    /// Sends messages of both runs, one after the other.
    pub(super) fn send_rows(&self, count: usize) {
        for id in 0..count {
            for run in [1, 2] {
                self.send_row(run, id);
            }
        }
    }

    pub(super) fn send_row(&self, run: usize, id: usize) {
        self.send(&format!(
            r#"{{"run":{run},"id":"{id}","path":"image/{id}"}}"#
        ));
    }

    pub(super) fn send(&self, body: &str) {
        self.worlds[0].lock().mailbox.send(body.to_owned());
    }

    pub(super) fn moved(&self, run: usize) -> usize {
        self.worlds[run - 1].lock().table.moves.len()
    }

    pub(super) fn operator(&self, run: usize) -> &Operator {
        &self.operators[run - 1]
    }

    pub(super) async fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let met = async {
            while !condition() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(
            timeout(Duration::from_hours(2), met).await.is_ok(),
            "{what}"
        );
    }

    pub(super) async fn wait_until_moved(&self, run: usize) {
        let what = format!("run {run}");
        self.wait_until(&what, || self.moved(run) == ROW_COUNT)
            .await;
    }

    /// How often the message that was received most was received.
    pub(super) fn most_receives(&self) -> u32 {
        let things = self.worlds[0].lock();
        let receives = things.mailbox.queued.values().map(|one| one.receives);
        receives.max().unwrap_or(0)
    }

    pub(super) async fn end(self) {
        self.stop.cancel();
        assert!(self.consumer.await.unwrap().unwrap());
        for world in &self.worlds {
            let things = world.lock();
            assert!(things.violations.is_empty(), "{:?}", things.violations);
            assert!(things.table.failures.is_empty());
        }
        assert!(self.worlds[0].lock().mailbox.dead_letters.is_empty());
    }
}
