//! One consumer, several runs on its queue: trouble of one is its own, and costs its messages no receives.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::http_endpoints::ProcessStatus;
use bucket_brigade_common::ledger::fleet_control::{
    FleetControl, FleetLimits, Heartbeat, WorkerRole,
};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::object_store::{
    CopiedObject, DestinationState, ObjectStore, StoreError,
};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_consumer::metrics::ConsumerStatus;
use bucket_brigade_consumer::pipeline::ServedRuns;
use bucket_brigade_consumer::runs::{HomeRun, RUN_IDLE_LIMIT, RunLoader, RunParts};
use bucket_brigade_simulation::client::SimulatedClient;
use bucket_brigade_simulation::fault_rates::FaultRates;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared_world::SharedWorld;
use bucket_brigade_simulation::simulate::{build_pipeline, build_run_parts};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// More than a run has in hand.
const ROW_COUNT: usize = 600;

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
struct Operator {
    is_paused: AtomicBool,
    is_broken: AtomicBool,
    /// Its limits leave nothing to this process.
    is_excluded: AtomicBool,
    is_finished: AtomicBool,
    /// Its store does not answer.
    is_hung: AtomicBool,
    loads: AtomicU32,
    deregistered: AtomicU32,
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
struct CopyGauge {
    current: AtomicUsize,
    most: AtomicUsize,
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
        copied: Option<&MoveRoute>,
    ) -> Result<(), StoreError> {
        self.client.check_rights(rule, copied).await
    }

    async fn is_responding(&self) -> bool {
        true
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
        parts.throttle.set_limits(limits, None);
        Ok(Some(Box::new(parts)))
    }

    async fn home_run(&self) -> Result<HomeRun, String> {
        Ok(HomeRun {
            run: self.runs[0].0.run(),
            is_only: self.runs.len() == 1,
        })
    }

    async fn has_other_work(&self, waiting: &[i64]) -> bool {
        self.runs.iter().any(|(client, operator)| {
            let is_over = [&operator.is_paused, &operator.is_finished]
                .into_iter()
                .any(|over| over.load(Ordering::Relaxed));
            !is_over && !waiting.contains(&client.run())
        })
    }
}

/// A consumer that serves runs 1 and 2, each in a world of its own, from the queue of the first.
struct Scene {
    worlds: [Arc<SharedWorld>; 2],
    operators: [Arc<Operator>; 2],
    copies: Arc<CopyGauge>,
    status: ConsumerStatus,
    stop: CancellationToken,
    consumer: JoinHandle<bool>,
}

impl Scene {
    fn start(prepare: impl FnOnce(&[Arc<Operator>; 2])) -> Self {
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
    fn send_rows(&self, count: usize) {
        for id in 0..count {
            for run in [1, 2] {
                self.send_row(run, id);
            }
        }
    }

    fn send_row(&self, run: usize, id: usize) {
        self.send(&format!(
            r#"{{"run":{run},"id":"{id}","path":"image/{id}"}}"#
        ));
    }

    fn send(&self, body: &str) {
        self.worlds[0].lock().mailbox.send(body.to_owned());
    }

    fn moved(&self, run: usize) -> usize {
        self.worlds[run - 1].lock().table.moves.len()
    }

    fn operator(&self, run: usize) -> &Operator {
        &self.operators[run - 1]
    }

    async fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
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

    async fn wait_until_moved(&self, run: usize) {
        let what = format!("run {run}");
        self.wait_until(&what, || self.moved(run) == ROW_COUNT)
            .await;
    }

    /// How often the message that was received most was received.
    fn most_receives(&self) -> u32 {
        let things = self.worlds[0].lock();
        let receives = things.mailbox.queued.values().map(|one| one.receives);
        receives.max().unwrap_or(0)
    }

    async fn end(self) {
        self.stop.cancel();
        assert!(self.consumer.await.unwrap());
        for world in &self.worlds {
            let things = world.lock();
            assert!(things.violations.is_empty(), "{:?}", things.violations);
            assert!(things.table.failures.is_empty());
        }
        assert!(self.worlds[0].lock().mailbox.dead_letters.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn one_consumer_serves_every_run_of_its_queue() {
    let scene = Scene::start(|_| {});
    scene.send_rows(ROW_COUNT);
    scene
        .wait_until("both runs", || {
            (scene.moved(1), scene.moved(2)) == (ROW_COUNT, ROW_COUNT)
        })
        .await;
    let etag = scene.worlds[1].lock().table.moves["7"].etag.clone();
    assert_eq!(etag, "2/7", "from its own bucket");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_pause_costs_no_receives_and_holds_up_no_other_run() {
    let scene = Scene::start(|operators| operators[1].is_paused.store(true, Ordering::Relaxed));
    scene.send_rows(ROW_COUNT);
    scene
        .wait_until("the first run", || scene.moved(1) == ROW_COUNT)
        .await;
    sleep(Duration::from_mins(20)).await;
    assert_eq!((scene.moved(2), scene.most_receives()), (0, 1));
    assert_eq!(scene.status.unhealthy_reason(), None);
    // In hand or not, what is left goes on at once.
    scene.operator(2).is_paused.store(false, Ordering::Relaxed);
    scene
        .wait_until("the second run", || scene.moved(2) == ROW_COUNT)
        .await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_its_checks_delays_itself_alone() {
    let scene = Scene::start(|operators| operators[1].is_broken.store(true, Ordering::Relaxed));
    scene.send_rows(ROW_COUNT);
    scene
        .wait_until("the first run", || scene.moved(1) == ROW_COUNT)
        .await;
    sleep(Duration::from_hours(1)).await;
    assert_eq!(scene.status.notes(), ["run 2: there is no bucket 'gone'"]);
    assert_eq!((scene.moved(2), scene.most_receives()), (0, 1));
    assert!(scene.operator(2).loads.load(Ordering::Relaxed) > 30);
    scene.operator(2).is_broken.store(false, Ordering::Relaxed);
    scene
        .wait_until("the second run", || scene.moved(2) == ROW_COUNT)
        .await;
    assert!(scene.status.notes().is_empty());
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_run_is_dropped_and_taken_on_again() {
    let scene = Scene::start(|_| {});
    scene.send_rows(1);
    scene
        .wait_until("a row of each", || scene.moved(1) + scene.moved(2) == 2)
        .await;
    sleep(RUN_IDLE_LIMIT / 2).await;
    scene.send(r#"{"run":1,"id":"1","path":"image/1"}"#);
    sleep(RUN_IDLE_LIMIT / 2 + Duration::from_secs(10)).await;
    let left = |run| scene.operator(run).deregistered.load(Ordering::Relaxed);
    assert_eq!((left(1), left(2)), (0, 1));
    scene.send(r#"{"run":2,"id":"1","path":"image/1"}"#);
    scene
        .wait_until("the second run again", || scene.moved(2) == 2)
        .await;
    assert_eq!(scene.operator(2).loads.load(Ordering::Relaxed), 2);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_no_known_run_is_poison_and_one_without_a_run_among_several_too() {
    let scene = Scene::start(|_| {});
    scene.send(r#"{"run":9,"id":"1","path":"image/1"}"#);
    scene.send(r#"{"id":"1","path":"image/1"}"#);
    scene.send("poison");
    let is_recorded = || scene.worlds[0].lock().table.poison.len() == 3;
    scene.wait_until("three records", is_recorded).await;
    let in_queue = || scene.worlds[0].lock().mailbox.queued.len();
    scene
        .wait_until("the dead-letter queue", || in_queue() == 0)
        .await;
    assert_eq!(scene.moved(1) + scene.moved(2), 0);
    scene.worlds[0].lock().mailbox.dead_letters.clear();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_copies_of_all_runs_together_are_bounded() {
    let scene = Scene::start(|_| {});
    scene.send_rows(ROW_COUNT);
    scene.wait_until_moved(1).await;
    scene.wait_until_moved(2).await;
    assert_eq!(scene.copies.most.load(Ordering::Relaxed), 4);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_store_hangs_leaves_the_other_its_part() {
    let scene = Scene::start(|operators| operators[1].is_hung.store(true, Ordering::Relaxed));
    for id in 0..ROW_COUNT {
        scene.send_row(2, id);
    }
    let has_all = || scene.copies.current.load(Ordering::Relaxed) == 4;
    scene.wait_until("all places taken", has_all).await;
    for id in 0..ROW_COUNT {
        scene.send_row(1, id);
    }
    let began = Instant::now();
    scene.wait_until_moved(1).await;
    assert!(
        began.elapsed() < Duration::from_mins(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(scene.copies.most.load(Ordering::Relaxed), 4);
    assert_eq!(scene.most_receives(), 1);
    scene.operator(2).is_hung.store(false, Ordering::Relaxed);
    scene.wait_until_moved(2).await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_left_to_other_processes_is_not_received_again() {
    let scene = Scene::start(|operators| {
        operators[0].is_finished.store(true, Ordering::Relaxed);
        operators[1].is_excluded.store(true, Ordering::Relaxed);
    });
    for id in 0..ROW_COUNT {
        scene.send_row(2, id);
    }
    sleep(Duration::from_mins(1)).await;
    let now = Instant::now();
    let is_visible = |at: &Instant| *at <= now;
    let are_visible = scene.worlds[0].lock().visible_at.values().all(is_visible);
    assert!(are_visible, "others can have them");
    sleep(Duration::from_hours(2)).await;
    assert_eq!((scene.moved(2), scene.most_receives()), (0, 1));
    scene
        .operator(2)
        .is_excluded
        .store(false, Ordering::Relaxed);
    scene.wait_until_moved(2).await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn in_a_mixed_queue_it_costs_few_receives() {
    let scene = Scene::start(|operators| operators[1].is_excluded.store(true, Ordering::Relaxed));
    scene.send_rows(ROW_COUNT);
    scene.wait_until_moved(1).await;
    sleep(Duration::from_mins(10)).await;
    assert!(scene.most_receives() <= 2, "{}", scene.most_receives());
    scene
        .operator(2)
        .is_excluded
        .store(false, Ordering::Relaxed);
    scene.wait_until_moved(2).await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_panics_is_a_failure_of_its_own() {
    let scene = Scene::start(|_| {});
    let defect = ("defect".to_owned(), "image/defect".to_owned());
    scene.worlds[1].lock().table.rows.extend([defect]);
    scene.send(r#"{"run":2,"id":"defect","path":"image/defect"}"#);
    scene.send_rows(ROW_COUNT);
    scene.wait_until_moved(1).await;
    scene.wait_until_moved(2).await;
    let in_queue = || scene.worlds[0].lock().mailbox.queued.len();
    scene
        .wait_until("the dead-letter queue", || in_queue() == 0)
        .await;
    let failure = scene.worlds[1].lock().table.failures.remove("defect");
    let failure = failure.unwrap();
    assert_eq!((&*failure.code, failure.permanent), ("Panic", false));
    assert_eq!(scene.worlds[0].lock().mailbox.dead_letters.len(), 1);
    scene.worlds[0].lock().mailbox.dead_letters.clear();
    scene.end().await;
}
