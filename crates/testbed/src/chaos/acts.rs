//! The faults of one run, from their beginning to their end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::arguments::Kind;
use super::auditor::Auditor;
use super::lookout::Lookout;
use super::messages;
use super::storm::Storm;
use crate::postgres::Cluster;
use crate::proxy::{Cuts, Proxy};
use crate::run::Stage;
use crate::traffic::{Hot, Rates};

const RESTART_EVERY: Duration = Duration::from_secs(20);
const CUT_AFTER: f64 = 0.05;
const CUT_BEFORE: f64 = 0.01;
const REWRITES_PER_SECOND: f64 = 50.0;
/// One poison message for so many images.
const IMAGES_PER_POISON: u32 = 100;
/// The share of slow copies where consumers live for a few seconds only.
const SOME_SLOW: f64 = 0.05;

/// Which faults, and their dice.
pub(super) struct Script {
    pub(super) kinds: BTreeSet<Kind>,
    pub(super) images: u32,
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

impl Script {
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// How often Postgres restarts: at least once in a short run.
    fn restart_every(&self) -> Duration {
        RESTART_EVERY.min(self.duration / 2)
    }

    /// Dice for one purpose.
    pub(super) fn dice(&self, purpose: u64) -> Rng {
        Rng::with_seed(self.seed.wrapping_mul(31).wrapping_add(purpose))
    }

    /// How long the consumers wait for S3: long enough for slow copies.
    fn patience(&self) -> Duration {
        Duration::from_secs(if self.has(Kind::SlowCopies) { 10 } else { 2 })
    }

    fn visibility(&self) -> Duration {
        Duration::from_secs(if self.has(Kind::SlowCopies) { 2 } else { 5 })
    }

    /// Rows fed per second, so that there is work for as long as the faults act: what may be fed before
    /// the limit is set is not counted on.
    pub(super) fn rate_limit(&self) -> f64 {
        let rest = self.images.saturating_sub(self.max_backlog());
        (f64::from(rest) / self.duration.as_secs_f64()).max(1.0)
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
        let others = self.kinds.iter().any(|kind| *kind != Kind::SlowCopies);
        if others && self.has(Kind::KillConsumers) {
            SOME_SLOW
        } else {
            1.0
        }
    }
}

/// What happened, in numbers.
#[derive(Debug, Default)]
struct Counts {
    restarts: Arc<AtomicU64>,
    duplicates: Arc<AtomicU64>,
    poison: Arc<AtomicU64>,
}

/// The faults in force.
pub(super) struct Acts {
    pub(super) auditor: Arc<Auditor>,
    hot: Arc<Hot>,
    storm: Storm,
    proxy: Option<Proxy>,
    counts: Counts,
    senders: JoinSet<()>,
    restarts: Option<(watch::Sender<bool>, JoinHandle<Result<()>>)>,
}

impl Acts {
    /// Puts them in force; the processes are to be started after this.
    pub(super) async fn begin(stage: &mut Stage, script: &Script) -> Result<Self> {
        let auditor = Arc::new(Auditor::new(&stage.application)?);
        let hot = Arc::new(Hot::default());
        let (fed, feeding) = mpsc::unbounded_channel();
        let lookout = Lookout::new(
            &stage.application,
            &stage.seeded,
            Arc::clone(&auditor),
            Arc::clone(&hot),
            fed,
        );
        stage.cloud.watch(Arc::new(lookout))?;
        let mut acts = Self {
            auditor,
            hot,
            storm: Storm::new(),
            proxy: None,
            counts: Counts::default(),
            senders: JoinSet::new(),
            restarts: None,
        };
        acts.configure(stage, script).await?;
        acts.strike(stage, script);
        acts.send(stage, script, feeding);
        if script.has(Kind::PostgresRestarts) {
            acts.restart(stage, script.restart_every());
        }
        Ok(acts)
    }

    /// The application's traffic under these faults.
    pub(super) fn rates(&self, stage: &Stage, script: &Script) -> Rates {
        if !script.has(Kind::Rewrites) {
            return stage.rates();
        }
        Rates {
            writes_per_second: REWRITES_PER_SECOND,
            most_writes: usize::MAX,
            deletes: 0.1,
            hot: Some(Arc::clone(&self.hot)),
            ..stage.rates()
        }
    }

    async fn configure(&mut self, stage: &mut Stage, script: &Script) -> Result<()> {
        let seconds = |duration: Duration| format!("{}s", duration.as_secs());
        stage.set("consumer", "COPY_TIMEOUT", seconds(script.patience()));
        stage.set(
            "consumer",
            "VISIBILITY_TIMEOUT",
            seconds(script.visibility()),
        );
        // The cursor advances page by page: a page must fit between two kills at the rate limit.
        stage.set("feeder", "PAGE_SIZE", "50".to_owned());
        stage.set("feeder", "MAX_BACKLOG", script.max_backlog().to_string());
        if !script.has(Kind::CutCommits) {
            return Ok(());
        }
        let cuts = Cuts {
            after: CUT_AFTER,
            before: CUT_BEFORE,
            seed: script.seed,
        };
        let port = stage.cluster.port();
        let proxy = Proxy::start(port, cuts).await?;
        let (direct, through) = (format!(":{port}/"), format!(":{}/", proxy.port()));
        let url = stage.application.database_url.replace(&direct, &through);
        for program in ["feeder", "consumer"] {
            stage.set(program, "DATABASE_URL", url.clone());
        }
        self.proxy = Some(proxy);
        Ok(())
    }

    fn strike(&mut self, stage: &Stage, script: &Script) {
        if script.has(Kind::S3Errors) {
            self.storm.strike_s3(&stage.cloud, script.patience());
        }
        if script.has(Kind::SlowCopies) {
            self.storm.slow_copies(&stage.cloud, script.slow_share());
        }
        if script.has(Kind::SqsErrors) {
            self.storm.strike_sqs(&stage.cloud);
        }
    }

    fn send(&mut self, stage: &Stage, script: &Script, fed: mpsc::UnboundedReceiver<String>) {
        if script.has(Kind::Duplicates) {
            self.senders.spawn(messages::duplicate(
                stage.cloud.sqs_as("duplicates"),
                stage.queue.url.clone(),
                fed,
                Arc::clone(&self.counts.duplicates),
                script.dice(1),
            ));
        }
        if script.has(Kind::Poison) {
            let count = script.images.div_ceil(IMAGES_PER_POISON);
            self.senders.spawn(messages::poison(
                stage.cloud.sqs_as("stranger"),
                stage.queue.url.clone(),
                Arc::clone(&self.auditor),
                (count, script.duration),
                Arc::clone(&self.counts.poison),
                script.dice(2),
            ));
        }
    }

    fn restart(&mut self, stage: &Stage, every: Duration) {
        let (stop, stopped) = watch::channel(false);
        let count = Arc::clone(&self.counts.restarts);
        let task = restart_postgres(Arc::clone(&stage.cluster), every, stopped, count);
        self.restarts = Some((stop, tokio::spawn(task)));
    }

    /// Ends them all; Postgres is up again when this returns.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.storm.end();
        if let Some(proxy) = &self.proxy {
            proxy.rest();
        }
        self.senders.shutdown().await;
        if let Some((stop, task)) = self.restarts.take() {
            let _ = stop.send(true);
            task.await??;
        }
        Ok(())
    }

    pub(super) fn restarts(&self) -> u64 {
        self.counts.restarts.load(Ordering::Relaxed)
    }

    pub(super) fn duplicates(&self) -> u64 {
        self.counts.duplicates.load(Ordering::Relaxed)
    }

    pub(super) fn poison(&self) -> u64 {
        self.counts.poison.load(Ordering::Relaxed)
    }

    /// Requests struck and connections cut.
    pub(super) fn injected(&self) -> u64 {
        let (before, after) = self.proxy.as_ref().map_or((0, 0), Proxy::cuts);
        self.storm.hits() + before + after
    }
}

impl Drop for Acts {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.restarts {
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
