//! The course of a run: first everything fails, then nothing does and the work must come to its end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::acts::{Acts, Script};
use super::arguments::Kind;
use super::killer::Killer;
use super::pacing::Pacing;
use crate::run::{Crew, Progress, Stage, tell};
use crate::traffic::{Traffic, TrafficReport};

const KILL_CONSUMER_EVERY: Duration = Duration::from_secs(1);
const KILL_FEEDER_EVERY: Duration = Duration::from_secs(5);
/// The faults go on for this time longer, or as long again, while there is work left.
const EXTRA: Duration = Duration::from_mins(1);
/// Between two looks at everything.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A look that takes longer is given up: Postgres restarts.
const LOOK_WITHIN: Duration = Duration::from_millis(500);
/// After the faults the work must end within this time after the last image moved.
const END_WITHIN: Duration = Duration::from_mins(10);
/// So much of it where the run has failed already.
const FAILED_END_WITHIN: Duration = Duration::from_mins(1);

/// What came of it, before the check.
pub(super) struct Outcome {
    pub(super) traffic: TrafficReport,
    pub(super) seconds: f64,
    pub(super) violations: Vec<String>,
    pub(super) kills: u64,
    pub(super) faults_injected: u64,
    pub(super) restarts: u64,
    pub(super) duplicates: u64,
    pub(super) poison: u64,
    pub(super) declined_starts: u64,
    pub(super) audited_deletes: u64,
}

/// Everybody who takes part.
struct Cast<'a> {
    stage: &'a Stage,
    script: &'a Script,
    acts: Acts,
    traffic: Traffic,
    progress: Progress,
    pacing: Pacing,
    crew: Crew<'a>,
    killer: Killer,
}

/// Plays it through.
pub(super) async fn play(stage: &mut Stage, script: &Script, consumers: u32) -> Result<Outcome> {
    let acts = Acts::begin(stage, script).await?;
    let stage: &Stage = stage;
    let rates = acts.rates(stage, script);
    let every = |kind, time| script.has(kind).then_some(time);
    let mut cast = Cast {
        stage,
        script,
        traffic: Traffic::start(&stage.application, stage.seeded.clone(), &rates).await?,
        progress: Progress::start(stage).await?,
        pacing: Pacing::new(&stage.application, script.rate_limit())?,
        crew: Crew::start(stage, consumers)?,
        killer: Killer::new(
            every(Kind::KillConsumers, KILL_CONSUMER_EVERY),
            every(Kind::KillFeeder, KILL_FEEDER_EVERY),
            consumers as usize,
            script.dice(3),
        ),
        acts,
    };
    cast.storm().await?;
    cast.calm().await?;
    cast.curtain().await
}

impl Cast<'_> {
    /// Until the time is over and the work is done, or much later.
    async fn storm(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.killer.feeder_is_done() {
            self.look().await?;
            self.pacing.limit().await;
            if begun.elapsed() < self.script.duration {
                continue;
            }
            let old_prefix = &self.stage.application.old_prefix;
            let is_late = begun.elapsed() > self.script.duration + EXTRA.max(self.script.duration);
            if is_late || !self.pacing.is_anything_left(old_prefix).await {
                break;
            }
        }
        Ok(())
    }

    /// One round of everything that goes on all the time.
    async fn look(&mut self) -> Result<()> {
        tokio::time::sleep(LOOK_EVERY).await;
        self.killer.work(&mut self.crew).await?;
        // What it cannot tell now it tells later.
        let look = self.progress.look(&self.traffic);
        let _ = tokio::time::timeout(LOOK_WITHIN, look).await;
        if !self.script.has(Kind::Rewrites) {
            let writes = self.stage.writes_by(self.progress.moved());
            self.traffic.allow_writes(writes);
        }
        Ok(())
    }

    /// No more faults: the feeder must end by itself, and the queue must drain.
    async fn calm(&mut self) -> Result<()> {
        tell("\nNo more faults: now the work must come to its end …");
        self.acts.end().await?;
        self.killer.rest();
        if self.script.has(Kind::Rewrites) {
            self.traffic.allow_writes(0);
        }
        let (mut moved, mut since) = (self.progress.moved(), Instant::now());
        let mut is_unlimited = false;
        while !self.is_over().await? {
            self.look().await?;
            is_unlimited = is_unlimited || self.pacing.lift().await;
            if self.progress.moved() > moved {
                (moved, since) = (self.progress.moved(), Instant::now());
            }
            if since.elapsed() > self.end_within() {
                self.hang().await?;
                break;
            }
        }
        Ok(())
    }

    fn end_within(&self) -> Duration {
        let has_failed = !self.killer.violations.is_empty()
            || !self.acts.auditor.findings().is_empty()
            || self.traffic.reads().1 > 0;
        if has_failed {
            FAILED_END_WITHIN
        } else {
            END_WITHIN
        }
    }

    async fn is_over(&self) -> Result<bool> {
        Ok(self.killer.feeder_is_done() && self.stage.queue_depth().await?.total() == 0)
    }

    async fn hang(&mut self) -> Result<()> {
        let mut told = format!(
            "{:?} without progress after the last fault the feeder {}, and the queue holds {:?}; the feeder's log:\n{}",
            self.end_within(),
            if self.killer.feeder_is_done() {
                "has ended"
            } else {
                "is still at work"
            },
            self.stage.queue_depth().await?,
            self.crew.feeder_log()
        );
        for n in 0..self.crew.count() {
            let _ = write!(told, "\nconsumer {}:\n{}", n + 1, self.crew.consumer_log(n));
        }
        self.killer.violations.push(told);
        Ok(())
    }

    /// Everybody leaves the stage; the consumers must do so in good order.
    async fn curtain(mut self) -> Result<Outcome> {
        let seconds = self.progress.finish(&self.traffic).await?;
        let traffic = self.traffic.stop().await;
        let mut violations = std::mem::take(&mut self.killer.violations);
        for (n, status) in self.crew.dismiss().await? {
            if !status.success() {
                let log = self.crew.consumer_log(n);
                violations.push(format!("consumer {} ended badly ({status}):\n{log}", n + 1));
            }
        }
        violations.extend(self.acts.auditor.findings());
        Ok(Outcome {
            traffic,
            seconds,
            violations,
            kills: self.killer.kills,
            faults_injected: self.acts.injected(),
            restarts: self.acts.restarts(),
            duplicates: self.acts.duplicates(),
            poison: self.acts.poison(),
            declined_starts: self.killer.declined,
            audited_deletes: self.acts.auditor.looks(),
        })
    }
}
