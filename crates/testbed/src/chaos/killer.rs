//! kill -9, and who may have ended by themselves.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;

use crate::run::{Crew, SOME_FAILED};

/// Exit codes by which a process declines to start while what it needs is away, or while a killed
/// feeder's lock is still held: an orchestrator starts it again, and so do we.
const NOT_NOW: [i32; 2] = [69, 75];
/// How long after the last fault a process that met it may still decline to start.
const AFTERMATH: Duration = Duration::from_secs(15);
/// A process that will not start is not started more often than this.
const START_AGAIN: Duration = Duration::from_millis(500);

/// Something that happens again and again.
struct Clock {
    every: Duration,
    due: Instant,
}

impl Clock {
    fn new(every: Duration) -> Self {
        let due = Instant::now() + every;
        Self { every, due }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.every;
        }
        is_due
    }
}

/// Kills processes and starts what has ended.
pub(super) struct Killer {
    consumers: Option<Clock>,
    feeder: Option<Clock>,
    count: usize,
    random: Rng,
    begun: Instant,
    /// Since when nothing fails any more.
    calm_since: Option<Instant>,
    pub(super) kills: u64,
    /// Processes that declined to start and were started again.
    pub(super) declined: u64,
    pub(super) violations: Vec<String>,
    started_again: Instant,
    feeder_is_done: bool,
}

impl Killer {
    /// Kills one of `count` consumers and the feeder each so often, where there is a time.
    pub(super) fn new(
        consumers: Option<Duration>,
        feeder: Option<Duration>,
        count: usize,
        random: Rng,
    ) -> Self {
        let now = Instant::now();
        Self {
            consumers: consumers.map(Clock::new),
            feeder: feeder.map(Clock::new),
            count,
            random,
            begun: now,
            calm_since: None,
            kills: 0,
            declined: 0,
            violations: Vec::new(),
            started_again: now,
            feeder_is_done: false,
        }
    }

    /// No more kills, and soon no more excuses.
    pub(super) fn rest(&mut self) {
        (self.consumers, self.feeder) = (None, None);
        self.calm_since = Some(Instant::now());
    }

    pub(super) fn feeder_is_done(&self) -> bool {
        self.feeder_is_done
    }

    /// Kills who is due, and looks after who has ended.
    pub(super) async fn work(&mut self, crew: &mut Crew<'_>) -> Result<()> {
        self.look_after_feeder(crew).await?;
        self.look_after_consumers(crew).await?;
        if self.consumers.as_mut().is_some_and(Clock::is_due) {
            let victim = self.random.usize(..self.count);
            crew.restart_consumer(victim).await?;
            self.kills += 1;
        }
        if !self.feeder_is_done && self.feeder.as_mut().is_some_and(Clock::is_due) {
            crew.restart_feeder().await?;
            self.kills += 1;
        }
        Ok(())
    }

    async fn look_after_feeder(&mut self, crew: &mut Crew<'_>) -> Result<()> {
        if self.feeder_is_done {
            return Ok(());
        }
        let Some(status) = crew.feeder_ended()? else {
            return Ok(());
        };
        if status.success() || status.code() == Some(SOME_FAILED) {
            self.feeder_is_done = true;
            return Ok(());
        }
        if !self.may_start_again() {
            return Ok(());
        }
        self.judge("the feeder", status, || crew.feeder_log());
        crew.restart_feeder().await
    }

    async fn look_after_consumers(&mut self, crew: &mut Crew<'_>) -> Result<()> {
        for (n, status) in crew.consumers_ended()? {
            if self.may_start_again() {
                self.judge(&format!("consumer {}", n + 1), status, || {
                    crew.consumer_log(n)
                });
                crew.restart_consumer(n).await?;
            }
        }
        Ok(())
    }

    /// Not at full speed, so that a fault that lasts is no reason to start thousands of processes.
    fn may_start_again(&mut self) -> bool {
        if self.started_again.elapsed() < START_AGAIN {
            return false;
        }
        self.started_again = Instant::now();
        true
    }

    fn judge(&mut self, who: &str, status: ExitStatus, log: impl Fn() -> String) {
        let declines = status.code().is_some_and(|code| NOT_NOW.contains(&code));
        let is_calm = self
            .calm_since
            .is_some_and(|since| since.elapsed() > AFTERMATH);
        if declines && !is_calm {
            self.declined += 1;
            return;
        }
        let seconds = self.begun.elapsed().as_secs();
        let log = log();
        let violation = format!("{who} ended by itself after {seconds} s ({status}):\n{log}");
        self.violations.push(violation);
    }
}
