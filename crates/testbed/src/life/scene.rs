//! What a life is lived on: the stage, the application's traffic, the consumers, and the eyes to check with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::Arguments;
use super::transcript::Transcript;
use crate::cloud::{Fault, FaultEffect, FaultHandle};
use crate::process::ChildProcess;
use crate::run::{EXIT_SOME_FAILED, EnvironmentOptions, RunEnvironment};
use crate::seed::{SeededRowKind, SeededRows};
use crate::traffic::{Traffic, TrafficRates};

/// Many images are wanted, and all are held in memory twice.
const LARGEST_BYTES: u32 = 8 * 1024;

/// What S3 takes for a copy, so that there is something to pause and to limit.
const COPY_TAKES: Duration = Duration::from_millis(100);

/// The application replaces or deletes one in so many images, spread over the whole life.
const IMAGES_PER_WRITE: usize = 12;
/// Steps between which these are spread.
const STEPS: usize = 12;

/// No condition is waited for longer.
const PATIENCE: Duration = Duration::from_mins(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Scene {
    pub(super) stage: RunEnvironment,
    pub(super) images: usize,
    pub(super) pool: PgPool,
    pub(super) traffic: Traffic,
    pub(super) transcript: Transcript,
    pub(super) consumers: Vec<ChildProcess>,
    /// The rows as they were seeded, or as the application has mended them since.
    pub(super) seeded: SeededRows,
    /// Paths whose sources clean has removed.
    pub(super) removed: BTreeSet<String>,
    pub(super) rolled_back: usize,
    pub(super) began: Instant,
    steps: usize,
    pub(super) slow_copies: Option<FaultHandle>,
    /// Rows whose images are archived.
    pub(super) archived: BTreeMap<String, FaultHandle>,
    consumers_wanted: u32,
}

impl Scene {
    pub(super) async fn set_up(arguments: &Arguments) -> Result<Self> {
        let mut stage = RunEnvironment::set_up(&EnvironmentOptions {
            images: arguments.images,
            largest_bytes: Some(LARGEST_BYTES),
            seed: arguments.seed,
        })
        .await?;
        let images = usize::try_from(arguments.images)?;
        let concurrency = (images / 200).clamp(4, 32).to_string();
        stage.set_variable("consumer", "MAX_CONCURRENCY", concurrency);
        let rates = TrafficRates {
            // It takes a look first: the plan is drawn up before it writes.
            max_writes: 0,
            writes_per_second: f64::from(arguments.images) / 400.0,
            // So that there are failures to see, and some that stay.
            excluded_rows: stage
                .seeded
                .rows_of_kind(SeededRowKind::Missing)
                .map(|row| row.id.clone())
                .collect(),
            ..stage.traffic_rates()
        };
        let traffic = Traffic::start(&stage.application, Arc::clone(&stage.seeded), &rates);
        Ok(Self {
            images,
            pool: stage.application.connect_pool(2).await?,
            traffic: traffic.await?,
            transcript: Transcript::default(),
            consumers: Vec::new(),
            seeded: SeededRows::clone(&stage.seeded),
            removed: BTreeSet::new(),
            rolled_back: 0,
            began: Instant::now(),
            steps: 0,
            slow_copies: Some(slow_copies(&stage)),
            archived: BTreeMap::new(),
            consumers_wanted: arguments.consumers,
            stage,
        })
    }

    /// Begins a chapter, in which the application may write some more.
    pub(super) fn chapter(&mut self, title: &str, what: &str) {
        self.transcript.chapter(title, what);
        let most = self.images.div_ceil(IMAGES_PER_WRITE);
        self.traffic
            .allow_writes(most * self.steps.min(STEPS) / STEPS);
        self.steps += 1;
    }

    /// Something that must be so.
    pub(super) fn holds(&mut self, holds: bool, what: impl Into<String>) -> Result<()> {
        let what = what.into();
        ensure!(holds, "this does not hold: {what}");
        self.transcript.holds(what);
        Ok(())
    }

    pub(super) fn start_consumers(&mut self) -> Result<()> {
        for number in 1..=self.consumers_wanted {
            let consumer = self.spawn("consumer", &format!("consumer-{number}"), &[])?;
            self.consumers.push(consumer);
        }
        Ok(())
    }

    pub(super) fn spawn(
        &self,
        program: &str,
        name: &str,
        arguments: &[&str],
    ) -> Result<ChildProcess> {
        let environment = self.stage.variables(program);
        ChildProcess::spawn(
            program,
            &environment,
            arguments,
            Some(&self.stage.log_path(name)),
        )
    }

    /// Starts a feeder.
    pub(super) fn feeder(&self, name: &str, arguments: &[&str]) -> Result<ChildProcess> {
        self.spawn("feeder", name, arguments)
    }

    /// Waits for a feeder's end, and writes down its log. Some rows may have failed.
    pub(super) async fn feeder_ends(
        &mut self,
        mut feeder: ChildProcess,
        arguments: &[&str],
    ) -> Result<i32> {
        let status = tokio::time::timeout(PATIENCE, feeder.wait_for_exit()).await;
        let log = feeder.log_tail(usize::MAX);
        let Ok(status) = status else {
            bail!("the feeder does not end:\n{log}");
        };
        let code = status?.code().unwrap_or(-1);
        self.write_down(arguments, &log, code);
        ensure!(
            code == 0 || code == EXIT_SOME_FAILED,
            "the feeder ended with {code}:\n{log}"
        );
        self.drained().await?;
        Ok(code)
    }

    /// Waits until no message is left but dead ones.
    pub(super) async fn drained(&self) -> Result<()> {
        let is_empty = async || Ok(self.stage.queue_depth().await?.total() == 0);
        self.eventually("an empty queue", is_empty).await
    }

    /// Waits for a condition.
    pub(super) async fn eventually(
        &self,
        what: &str,
        condition: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await? {
            ensure!(Instant::now() < deadline, "waited in vain for {what}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// A number out of the database.
    pub(super) async fn number(&self, sql: &str) -> Result<usize> {
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.to_owned()));
        Ok(usize::try_from(query.fetch_one(&self.pool).await?)?)
    }

    /// Two columns of text out of the database.
    pub(super) async fn pairs(&self, sql: &str) -> Result<BTreeMap<String, String>> {
        let query = sqlx::query_as(AssertSqlSafe(sql.to_owned()));
        let rows: Vec<(String, String)> = query.fetch_all(&self.pool).await?;
        Ok(rows.into_iter().collect())
    }

    /// The old paths of the moves on record, by row.
    pub(super) async fn moves(&self) -> Result<BTreeMap<String, String>> {
        self.pairs("SELECT row_id, old_path FROM bucket_brigade.moves")
            .await
    }

    /// The paths of all rows, by id.
    pub(super) async fn paths(&self) -> Result<BTreeMap<String, String>> {
        Ok(self.stage.application.read_paths(&self.pool).await?)
    }

    /// Seeded rows of a kind that still are as they were seeded.
    pub(super) async fn unchanged(&self, kind: SeededRowKind) -> Result<BTreeSet<String>> {
        let paths = self.paths().await?;
        let rows = self.seeded.rows_of_kind(kind);
        let rows = rows.filter(|row| paths.get(&row.id) == Some(&row.path));
        Ok(rows.map(|row| row.id.clone()).collect())
    }

    /// Rows that the application has written so far.
    pub(super) fn written(&self) -> BTreeSet<String> {
        self.traffic.write_log().rows.into_keys().collect()
    }

    /// The path that a path to move becomes.
    pub(super) fn new_path(&self, path: &str) -> String {
        let application = &self.stage.application;
        let rest = path.strip_prefix(&application.old_prefix).unwrap_or(path);
        format!("{}{rest}", application.new_prefix)
    }

    /// Objects in the source bucket.
    pub(super) fn sources(&self) -> usize {
        let bucket = &self.stage.application.source_bucket;
        self.stage.cloud.count_objects(bucket)
    }
}

/// Makes each copy take as long as one of S3's.
pub(super) fn slow_copies(stage: &RunEnvironment) -> FaultHandle {
    let slow = Fault::new("CopyObject", FaultEffect::Delay(COPY_TAKES));
    stage.cloud.inject_fault(slow.caller("consumer"))
}
