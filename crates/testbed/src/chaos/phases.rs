//! The course of a run: first everything fails, then nothing does and the work must come to its end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::arguments::FaultKind;
use super::injector::{ChaosPlan, FaultInjector};
use super::killer::ProcessKiller;
use super::rate_limit::RateLimitControl;
use crate::run::{ProcessGroup, ProgressPrinter, RunEnvironment, print_status};
use crate::traffic::{Traffic, TrafficReport};

const CONSUMER_KILL_INTERVAL: Duration = Duration::from_secs(1);
const FEEDER_KILL_INTERVAL: Duration = Duration::from_secs(5);
/// The faults go on for this time longer, or as long again, while there is work left.
const MIN_FAULT_EXTENSION: Duration = Duration::from_mins(1);
/// Between two looks at everything.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A look that takes longer is given up: Postgres restarts.
const PROGRESS_TIMEOUT: Duration = Duration::from_millis(500);
/// After the faults the work must end within this time after the last image moved.
const STALL_TIMEOUT: Duration = Duration::from_mins(10);
/// So much of it where the run has failed already.
const FAILED_STALL_TIMEOUT: Duration = Duration::from_mins(1);

/// What came of it, before the check.
pub(super) struct ChaosOutcome {
    pub(super) traffic: TrafficReport,
    pub(super) seconds: f64,
    pub(super) violations: Vec<String>,
    pub(super) kills: u64,
    pub(super) faults_injected: u64,
    pub(super) restarts: u64,
    pub(super) duplicates: u64,
    pub(super) poison: u64,
    pub(super) declined_starts: u64,
    pub(super) checked_deletes: u64,
}

struct ChaosRun<'a> {
    environment: &'a RunEnvironment,
    plan: &'a ChaosPlan,
    injector: FaultInjector,
    traffic: Traffic,
    progress: ProgressPrinter,
    rate_limit: RateLimitControl,
    processes: ProcessGroup<'a>,
    killer: ProcessKiller,
}

pub(super) async fn run_phases(
    environment: &mut RunEnvironment,
    script: &ChaosPlan,
    consumers: u32,
) -> Result<ChaosOutcome> {
    let injector = FaultInjector::start(environment, script).await?;
    let environment: &RunEnvironment = environment;
    let rates = injector.traffic_rates(environment, script);
    let every = |kind, time| script.has_fault(kind).then_some(time);
    let mut cast = ChaosRun {
        environment,
        plan: script,
        traffic: Traffic::start(&environment.application, environment.seeded.clone(), &rates)
            .await?,
        progress: ProgressPrinter::start(environment).await?,
        rate_limit: RateLimitControl::new(&environment.application, script.rate_limit())?,
        processes: ProcessGroup::start(environment, consumers)?,
        killer: ProcessKiller::new(
            environment.feeder_count(),
            every(FaultKind::KillConsumers, CONSUMER_KILL_INTERVAL),
            every(FaultKind::KillFeeder, FEEDER_KILL_INTERVAL),
            consumers as usize,
            script.seeded_rng(3),
        ),
        injector,
    };
    cast.run_with_faults().await?;
    cast.run_to_completion().await?;
    cast.finish_run().await
}

impl ChaosRun<'_> {
    /// Until the time is over and the work is done, or much later.
    async fn run_with_faults(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.killer.feeder_is_done() {
            self.run_round().await?;
            self.rate_limit.apply_limit().await;
            if begun.elapsed() < self.plan.duration {
                continue;
            }
            let old_prefix = &self.environment.application.old_prefix;
            let is_late =
                begun.elapsed() > self.plan.duration + MIN_FAULT_EXTENSION.max(self.plan.duration);
            if is_late || !self.rate_limit.has_rows_left(old_prefix).await {
                break;
            }
        }
        Ok(())
    }

    /// One round of everything that goes on all the time.
    async fn run_round(&mut self) -> Result<()> {
        tokio::time::sleep(POLL_INTERVAL).await;
        self.killer.kill_and_restart(&mut self.processes).await?;
        self.injector.keep_silence(&self.environment.cloud);
        // What cannot be read now is printed later.
        let poll = self.progress.poll_ledger(&self.traffic);
        let _ = tokio::time::timeout(PROGRESS_TIMEOUT, poll).await;
        if !self.plan.has_fault(FaultKind::Rewrites) {
            let writes = self.environment.allowed_writes(self.progress.moved_rows());
            self.traffic.allow_writes(writes);
        }
        Ok(())
    }

    /// No more faults: the feeder must end by itself, and the queue must drain.
    async fn run_to_completion(&mut self) -> Result<()> {
        print_status("\nNo more faults: now the work must come to its end …");
        self.injector.stop().await?;
        self.killer.stop_killing();
        if self.plan.has_fault(FaultKind::Rewrites) {
            self.traffic.allow_writes(0);
        }
        let (mut moved, mut since) = (self.progress.moved_rows(), Instant::now());
        let mut is_unlimited = false;
        while !self.is_complete().await? {
            self.run_round().await?;
            is_unlimited = is_unlimited || self.rate_limit.lift_limit().await;
            if self.progress.moved_rows() > moved {
                (moved, since) = (self.progress.moved_rows(), Instant::now());
            }
            if since.elapsed() > self.stall_timeout() {
                self.record_stall().await?;
                break;
            }
        }
        Ok(())
    }

    fn stall_timeout(&self) -> Duration {
        let has_failed = !self.killer.violations.is_empty()
            || !self.injector.delete_checker.findings().is_empty()
            || self.traffic.read_counts().1 > 0;
        if has_failed {
            FAILED_STALL_TIMEOUT
        } else {
            STALL_TIMEOUT
        }
    }

    async fn is_complete(&self) -> Result<bool> {
        Ok(self.killer.feeder_is_done() && self.environment.queue_depth().await?.total() == 0)
    }

    async fn record_stall(&mut self) -> Result<()> {
        let mut violation = format!(
            "{:?} without progress after the last fault the feeder {}, and the queue holds {:?}; the feeder's log:\n{}",
            self.stall_timeout(),
            if self.killer.feeder_is_done() {
                "has ended"
            } else {
                "is still at work"
            },
            self.environment.queue_depth().await?,
            self.processes
                .feeder_log(self.killer.first_running_feeder())
        );
        for n in 0..self.processes.consumer_count() {
            let _ = write!(
                violation,
                "\nconsumer {}:\n{}",
                n + 1,
                self.processes.consumer_log(n)
            );
        }
        self.killer.violations.push(violation);
        Ok(())
    }

    /// Ends all processes; the consumers must drain.
    async fn finish_run(mut self) -> Result<ChaosOutcome> {
        let seconds = self.progress.finish(&self.traffic).await?;
        let traffic = self.traffic.stop().await;
        let mut violations = std::mem::take(&mut self.killer.violations);
        for (n, status) in self.processes.stop_consumers().await? {
            if !status.success() {
                let log = self.processes.consumer_log(n);
                violations.push(format!("consumer {} ended badly ({status}):\n{log}", n + 1));
            }
        }
        violations.extend(self.injector.delete_checker.findings());
        Ok(ChaosOutcome {
            traffic,
            seconds,
            violations,
            kills: self.killer.kills,
            faults_injected: self.injector.injected_count(),
            restarts: self.injector.restart_count(),
            duplicates: self.injector.duplicate_count(),
            poison: self.injector.poison_count(),
            declined_starts: self.killer.declined_starts,
            checked_deletes: self.injector.delete_checker.checked_deletes(),
        })
    }
}
