//! The feeder and the consumers at work.

use std::process::ExitStatus;

use anyhow::Result;

use super::environment::RunEnvironment;
use crate::process::ChildProcess;

const LOG_TAIL_LINES: usize = 30;
/// The feeder's exit code when it finished and some rows failed, as rows without an object do.
pub(crate) const EXIT_SOME_FAILED: i32 = 2;

pub(crate) struct ProcessGroup<'a> {
    environment: &'a RunEnvironment,
    feeder: ChildProcess,
    consumers: Vec<ChildProcess>,
}

impl<'a> ProcessGroup<'a> {
    pub(crate) fn start(environment: &'a RunEnvironment, consumers: u32) -> Result<Self> {
        let consumers = (0..consumers as usize).map(|n| spawn_consumer(environment, n));
        Ok(Self {
            environment,
            feeder: spawn_feeder(environment)?,
            consumers: consumers.collect::<Result<_>>()?,
        })
    }

    /// How many consumers there are.
    pub(crate) fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// How the feeder ended, if it has.
    pub(crate) fn feeder_exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.feeder.exit_status()
    }

    /// The consumers that have ended, and how.
    pub(crate) fn exited_consumers(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        let mut ended = Vec::new();
        for (n, consumer) in self.consumers.iter_mut().enumerate() {
            ended.extend(consumer.exit_status()?.map(|status| (n, status)));
        }
        Ok(ended)
    }

    /// Starts the feeder, without warning to one that still runs.
    pub(crate) async fn restart_feeder(&mut self) -> Result<()> {
        kill_if_running(&mut self.feeder).await?;
        self.feeder = spawn_feeder(self.environment)?;
        Ok(())
    }

    /// Starts a consumer, without warning to one that still runs.
    pub(crate) async fn restart_consumer(&mut self, n: usize) -> Result<()> {
        kill_if_running(&mut self.consumers[n]).await?;
        self.consumers[n] = spawn_consumer(self.environment, n)?;
        Ok(())
    }

    /// Kills every process without warning and starts it again.
    pub(crate) async fn restart_all(&mut self) -> Result<()> {
        self.restart_feeder().await?;
        for n in 0..self.consumers.len() {
            self.restart_consumer(n).await?;
        }
        Ok(())
    }

    /// Asks the consumers to end, as ECS does; how each of them did.
    pub(crate) async fn stop_consumers(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        for consumer in &self.consumers {
            consumer.terminate()?;
        }
        let mut ended = Vec::new();
        for (n, consumer) in self.consumers.iter_mut().enumerate() {
            ended.push((n, consumer.wait_for_exit().await?));
        }
        Ok(ended)
    }

    /// The last lines of the feeder's log.
    pub(crate) fn feeder_log(&self) -> String {
        self.feeder.log_tail(LOG_TAIL_LINES)
    }

    /// The last lines of a consumer's log.
    pub(crate) fn consumer_log(&self, n: usize) -> String {
        self.consumers[n].log_tail(LOG_TAIL_LINES)
    }

    /// All that a consumer has logged.
    pub(crate) fn whole_consumer_log(&self, n: usize) -> String {
        self.consumers[n].log_tail(usize::MAX)
    }
}

async fn kill_if_running(process: &mut ChildProcess) -> Result<()> {
    if process.exit_status()?.is_none() {
        process.kill().await?;
    }
    Ok(())
}

fn spawn_feeder(environment: &RunEnvironment) -> Result<ChildProcess> {
    spawn_program(environment, "feeder", "feeder")
}

fn spawn_consumer(environment: &RunEnvironment, n: usize) -> Result<ChildProcess> {
    spawn_program(environment, "consumer", &format!("consumer-{}", n + 1))
}

fn spawn_program(environment: &RunEnvironment, program: &str, name: &str) -> Result<ChildProcess> {
    ChildProcess::spawn::<&str>(
        program,
        &environment.variables(program),
        &[],
        Some(&environment.log_path(name)),
    )
}
