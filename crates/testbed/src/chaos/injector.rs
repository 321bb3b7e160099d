//! The faults of one run, from their beginning to their end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::arguments::FaultKind;
use super::cloud_faults::CloudFaults;
use super::delete_checker::DeleteChecker;
use super::messages;
use super::observer::ChaosObserver;
use super::silence::SilenceCycle;
use super::triggers;
use crate::cloud::Cloud;
use crate::postgres::Cluster;
use crate::proxy::{CutRates, PostgresProxy};
use crate::run::RunEnvironment;
use crate::traffic::{ActiveRows, TrafficRates};

const MAX_RESTART_INTERVAL: Duration = Duration::from_secs(20);
const CUT_AFTER_SHARE: f64 = 0.05;
const CUT_BEFORE_SHARE: f64 = 0.01;
const REWRITES_PER_SECOND: f64 = 50.0;
/// One poison message for so many images.
const IMAGES_PER_POISON: u32 = 100;
/// The share of slow copies where consumers live for a few seconds only.
const REDUCED_SLOW_SHARE: f64 = 0.05;

/// Which faults, and their random numbers.
pub(super) struct ChaosPlan {
    pub(super) kinds: BTreeSet<FaultKind>,
    pub(super) images: u32,
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

impl ChaosPlan {
    pub(super) fn has_fault(&self, kind: FaultKind) -> bool {
        self.kinds.contains(&kind)
    }

    /// How often Postgres restarts: at least once in a short run.
    fn restart_interval(&self) -> Duration {
        MAX_RESTART_INTERVAL.min(self.duration / 2)
    }

    /// Random numbers for one purpose.
    pub(super) fn seeded_rng(&self, purpose: u64) -> Rng {
        Rng::with_seed(self.seed.wrapping_mul(31).wrapping_add(purpose))
    }

    /// How long the consumers wait for S3: long enough for slow copies.
    fn copy_timeout(&self) -> Duration {
        Duration::from_secs(if self.has_fault(FaultKind::SlowCopies) {
            10
        } else {
            2
        })
    }

    fn visibility_timeout(&self) -> Duration {
        Duration::from_secs(if self.has_fault(FaultKind::SlowCopies) {
            2
        } else {
            5
        })
    }

    /// Rows fed per second, so that there is work for as long as the faults act: what may be fed before
    /// the limit is set is not counted on. The fleet keeps the limit, too, and there it counts copies.
    pub(super) fn rate_limit(&self) -> f64 {
        let rest = self.images.saturating_sub(self.max_backlog());
        let rows_per_second = f64::from(rest) / self.duration.as_secs_f64();
        (rows_per_second * self.copies_per_row()).max(1.0)
    }

    /// What of the fleet's limit a row takes: three deliveries on average are copied at the same time, and
    /// consumers that were killed hold their shares for three seconds.
    fn copies_per_row(&self) -> f64 {
        let when = |kind, factor| if self.has_fault(kind) { factor } else { 1.0 };
        when(FaultKind::Duplicates, 3.0) * when(FaultKind::KillConsumers, 2.0)
    }

    /// Seconds' worth of messages with their duplicates. The rate limit can only be set once the feeder
    /// has made the ledger: until then this keeps it from feeding everything.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few thousand at most matter"
    )]
    fn max_backlog(&self) -> u32 {
        let per_second = f64::from(self.images) / self.duration.as_secs_f64();
        (per_second * 5.0).clamp(30.0, 2000.0) as u32
    }

    fn slow_share(&self) -> f64 {
        let others = self.kinds.iter().any(|kind| *kind != FaultKind::SlowCopies);
        if others && self.has_fault(FaultKind::KillConsumers) {
            REDUCED_SLOW_SHARE
        } else {
            1.0
        }
    }
}

#[derive(Debug, Default)]
struct InjectionCounts {
    restarts: Arc<AtomicU64>,
    duplicates: Arc<AtomicU64>,
    poison: Arc<AtomicU64>,
}

pub(super) struct FaultInjector {
    pub(super) delete_checker: Arc<DeleteChecker>,
    active_rows: Arc<ActiveRows>,
    cloud_faults: CloudFaults,
    proxy: Option<PostgresProxy>,
    counts: InjectionCounts,
    senders: JoinSet<()>,
    silence: Option<SilenceCycle>,
    /// Requests that met silences which have ended.
    past_silences: u64,
    restart_task: Option<(watch::Sender<bool>, JoinHandle<Result<()>>)>,
}

impl FaultInjector {
    /// Puts them in force; the processes are to be started after this.
    pub(super) async fn start(
        environment: &mut RunEnvironment,
        script: &ChaosPlan,
    ) -> Result<Self> {
        let auditor = Arc::new(DeleteChecker::new(&environment.application)?);
        let hot = Arc::new(ActiveRows::default());
        let (fed, feeding) = mpsc::unbounded_channel();
        let observer = ChaosObserver::new(
            &environment.application,
            &environment.seeded,
            Arc::clone(&auditor),
            Arc::clone(&hot),
            fed,
        );
        environment.cloud.observe_requests(Arc::new(observer))?;
        let mut injector = Self {
            delete_checker: auditor,
            active_rows: hot,
            cloud_faults: CloudFaults::new(),
            proxy: None,
            counts: InjectionCounts::default(),
            senders: JoinSet::new(),
            silence: script
                .has_fault(FaultKind::Silent)
                .then(|| SilenceCycle::new(script.restart_interval())),
            past_silences: 0,
            restart_task: None,
        };
        if script.has_fault(FaultKind::Triggers) {
            triggers::create(&environment.application).await?;
        }
        injector.configure_programs(environment, script).await?;
        injector.inject_cloud_faults(environment, script);
        injector.spawn_senders(environment, script, feeding);
        if script.has_fault(FaultKind::PostgresRestarts) {
            injector.spawn_restarts(environment, script.restart_interval());
        }
        Ok(injector)
    }

    /// The application's traffic under these faults.
    pub(super) fn traffic_rates(
        &self,
        environment: &RunEnvironment,
        script: &ChaosPlan,
    ) -> TrafficRates {
        if !script.has_fault(FaultKind::Rewrites) {
            return environment.traffic_rates();
        }
        TrafficRates {
            writes_per_second: REWRITES_PER_SECOND,
            max_writes: usize::MAX,
            delete_share: 0.1,
            active_rows: Some(Arc::clone(&self.active_rows)),
            ..environment.traffic_rates()
        }
    }

    async fn configure_programs(
        &mut self,
        environment: &mut RunEnvironment,
        script: &ChaosPlan,
    ) -> Result<()> {
        let seconds = |duration: Duration| format!("{}s", duration.as_secs());
        environment.set_variable("consumer", "COPY_TIMEOUT", seconds(script.copy_timeout()));
        environment.set_variable(
            "consumer",
            "VISIBILITY_TIMEOUT",
            seconds(script.visibility_timeout()),
        );
        // The cursor advances page by page: a page must fit between two kills at the rate limit.
        environment.set_variable("feeder", "PAGE_SIZE", "50".to_owned());
        environment.set_variable("feeder", "MAX_BACKLOG", script.max_backlog().to_string());
        let cuts = if script.has_fault(FaultKind::CutCommits) {
            CutRates {
                after: CUT_AFTER_SHARE,
                before: CUT_BEFORE_SHARE,
                seed: script.seed,
            }
        } else if script.has_fault(FaultKind::Silent) {
            CutRates::NONE
        } else {
            return Ok(());
        };
        let port = environment.cluster.port();
        let proxy = PostgresProxy::start(port, cuts).await?;
        let (direct, through) = (format!(":{port}/"), format!(":{}/", proxy.port()));
        let url = environment
            .application
            .database_url
            .replace(&direct, &through);
        for program in ["feeder", "consumer"] {
            environment.set_variable(program, "DATABASE_URL", url.clone());
        }
        self.proxy = Some(proxy);
        Ok(())
    }

    fn inject_cloud_faults(&mut self, environment: &RunEnvironment, script: &ChaosPlan) {
        if script.has_fault(FaultKind::S3Errors) {
            self.cloud_faults
                .inject_s3_faults(&environment.cloud, script.copy_timeout());
        }
        if script.has_fault(FaultKind::SlowCopies) {
            self.cloud_faults
                .inject_slow_copies(&environment.cloud, script.slow_share());
        }
        if script.has_fault(FaultKind::SqsErrors) {
            self.cloud_faults.inject_sqs_faults(&environment.cloud);
        }
    }

    fn spawn_senders(
        &mut self,
        environment: &RunEnvironment,
        script: &ChaosPlan,
        fed: mpsc::UnboundedReceiver<String>,
    ) {
        if script.has_fault(FaultKind::Duplicates) {
            self.senders.spawn(messages::send_duplicates(
                environment.cloud.sqs_client_for("duplicates"),
                environment.queue.url.clone(),
                fed,
                Arc::clone(&self.counts.duplicates),
                script.seeded_rng(1),
            ));
        }
        if script.has_fault(FaultKind::Poison) {
            let count = script.images.div_ceil(IMAGES_PER_POISON);
            self.senders.spawn(messages::send_poison(
                environment.cloud.sqs_client_for("stranger"),
                environment.queue.url.clone(),
                Arc::clone(&self.delete_checker),
                (count, script.duration),
                Arc::clone(&self.counts.poison),
                script.seeded_rng(2),
            ));
        }
    }

    fn spawn_restarts(&mut self, environment: &RunEnvironment, every: Duration) {
        let (stop, stopped) = watch::channel(false);
        let count = Arc::clone(&self.counts.restarts);
        let task = restart_postgres(Arc::clone(&environment.cluster), every, stopped, count);
        self.restart_task = Some((stop, tokio::spawn(task)));
    }

    /// Begins and ends the silences that are due.
    pub(super) fn keep_silence(&mut self, cloud: &Cloud) {
        if let Some(cycle) = &mut self.silence {
            cycle.advance(cloud, self.proxy.as_ref());
        }
    }

    /// Ends them all; Postgres is up again when this returns.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.cloud_faults.stop();
        if let Some(mut cycle) = self.silence.take() {
            self.past_silences += cycle.stop();
        }
        if let Some(proxy) = &self.proxy {
            proxy.stop_cutting();
        }
        self.senders.shutdown().await;
        if let Some((stop, task)) = self.restart_task.take() {
            let _ = stop.send(true);
            task.await??;
        }
        Ok(())
    }

    pub(super) fn restart_count(&self) -> u64 {
        self.counts.restarts.load(Ordering::Relaxed)
    }

    pub(super) fn duplicate_count(&self) -> u64 {
        self.counts.duplicates.load(Ordering::Relaxed)
    }

    pub(super) fn poison_count(&self) -> u64 {
        self.counts.poison.load(Ordering::Relaxed)
    }

    /// Requests struck and connections cut.
    pub(super) fn injected_count(&self) -> u64 {
        let (before, after) = self
            .proxy
            .as_ref()
            .map_or((0, 0), PostgresProxy::cut_counts);
        let silenced = self.silence.as_ref().map_or(0, SilenceCycle::hits);
        self.cloud_faults.hits() + silenced + self.past_silences + before + after
    }
}

impl Drop for FaultInjector {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.restart_task {
            task.abort();
        }
    }
}

async fn restart_postgres(
    cluster: Arc<Cluster>,
    every: Duration,
    mut stopped: watch::Receiver<bool>,
    count: Arc<AtomicU64>,
) -> Result<()> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stopped.changed() => return Ok(()),
        }
        cluster
            .restart()
            .await
            .context("Postgres does not restart")?;
        count.fetch_add(1, Ordering::Relaxed);
    }
}
