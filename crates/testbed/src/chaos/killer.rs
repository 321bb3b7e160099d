//! kill -9, and who may have ended by themselves.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;

use crate::run::{EXIT_SOME_FAILED, ProcessGroup};

/// Exit codes by which a process declines to start while what it needs is away, or while a killed
/// feeder's lock is still held: an orchestrator starts it again, and so do we.
const DECLINED_START_CODES: [i32; 2] = [69, 75];
/// How long after the last fault a process that met it may still decline to start.
const SETTLE_TIME: Duration = Duration::from_secs(15);
/// A process that will not start is not started more often than this.
const RESTART_INTERVAL: Duration = Duration::from_millis(500);

struct IntervalTimer {
    interval: Duration,
    due: Instant,
}

impl IntervalTimer {
    fn new(every: Duration) -> Self {
        let due = Instant::now() + every;
        Self {
            interval: every,
            due,
        }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.interval;
        }
        is_due
    }
}

/// Kills processes and starts what has ended.
pub(super) struct ProcessKiller {
    consumers: Option<IntervalTimer>,
    feeder: Option<IntervalTimer>,
    count: usize,
    random: Rng,
    started_at: Instant,
    /// Since when nothing fails any more.
    faults_ended_at: Option<Instant>,
    pub(super) kills: u64,
    /// Processes that declined to start and were started again.
    pub(super) declined_starts: u64,
    pub(super) violations: Vec<String>,
    last_restart: Instant,
    /// Of each run.
    feeders_done: Vec<bool>,
}

impl ProcessKiller {
    /// Kills one of `count` consumers and one of `feeders` each so often, where there is a time.
    pub(super) fn new(
        feeders: usize,
        consumers: Option<Duration>,
        feeder: Option<Duration>,
        count: usize,
        random: Rng,
    ) -> Self {
        let now = Instant::now();
        Self {
            consumers: consumers.map(IntervalTimer::new),
            feeder: feeder.map(IntervalTimer::new),
            count,
            random,
            started_at: now,
            faults_ended_at: None,
            kills: 0,
            declined_starts: 0,
            violations: Vec::new(),
            last_restart: now,
            feeders_done: vec![false; feeders],
        }
    }

    /// No more kills, and soon no more excuses.
    pub(super) fn stop_killing(&mut self) {
        (self.consumers, self.feeder) = (None, None);
        self.faults_ended_at = Some(Instant::now());
    }

    pub(super) fn feeder_is_done(&self) -> bool {
        self.feeders_done.iter().all(|is_done| *is_done)
    }

    /// The first one where all are done.
    pub(super) fn first_running_feeder(&self) -> usize {
        let mut runs = self.feeders_done.iter();
        runs.position(|is_done| !is_done).unwrap_or(0)
    }

    /// Kills who is due, and looks after who has ended.
    pub(super) async fn kill_and_restart(
        &mut self,
        processes: &mut ProcessGroup<'_>,
    ) -> Result<()> {
        for run in 0..self.feeders_done.len() {
            self.restart_exited_feeder(run, processes).await?;
        }
        self.restart_exited_consumers(processes).await?;
        if self.consumers.as_mut().is_some_and(IntervalTimer::is_due) {
            let victim = self.random.usize(..self.count);
            processes.restart_consumer(victim).await?;
            self.kills += 1;
        }
        if self.feeder.as_mut().is_some_and(IntervalTimer::is_due) {
            let victim = self.random.usize(..self.feeders_done.len());
            if !self.feeders_done[victim] {
                processes.restart_feeder(victim).await?;
                self.kills += 1;
            }
        }
        Ok(())
    }

    async fn restart_exited_feeder(
        &mut self,
        run: usize,
        processes: &mut ProcessGroup<'_>,
    ) -> Result<()> {
        if self.feeders_done[run] {
            return Ok(());
        }
        let Some(status) = processes.feeder_exit_status(run)? else {
            return Ok(());
        };
        if status.success() || status.code() == Some(EXIT_SOME_FAILED) {
            self.feeders_done[run] = true;
            return Ok(());
        }
        if !self.may_restart() {
            return Ok(());
        }
        let who = format!("the feeder of run {}", run + 1);
        self.record_exit(&who, status, || processes.feeder_log(run));
        processes.restart_feeder(run).await
    }

    async fn restart_exited_consumers(&mut self, processes: &mut ProcessGroup<'_>) -> Result<()> {
        for (n, status) in processes.exited_consumers()? {
            if self.may_restart() {
                self.record_exit(&format!("consumer {}", n + 1), status, || {
                    processes.consumer_log(n)
                });
                processes.restart_consumer(n).await?;
            }
        }
        Ok(())
    }

    /// Not at full speed, so that a fault that lasts is no reason to start thousands of processes.
    fn may_restart(&mut self) -> bool {
        if self.last_restart.elapsed() < RESTART_INTERVAL {
            return false;
        }
        self.last_restart = Instant::now();
        true
    }

    fn record_exit(&mut self, who: &str, status: ExitStatus, log: impl Fn() -> String) {
        let declines = status
            .code()
            .is_some_and(|code| DECLINED_START_CODES.contains(&code));
        let is_calm = self
            .faults_ended_at
            .is_some_and(|since| since.elapsed() > SETTLE_TIME);
        if declines && !is_calm {
            self.declined_starts += 1;
            return;
        }
        let seconds = self.started_at.elapsed().as_secs();
        let log = log();
        let violation = format!("{who} ended by itself after {seconds} s ({status}):\n{log}");
        self.violations.push(violation);
    }
}
