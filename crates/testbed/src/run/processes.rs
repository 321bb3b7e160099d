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
    feeders: Vec<ChildProcess>,
    consumers: Vec<ChildProcess>,
}

impl<'a> ProcessGroup<'a> {
    pub(crate) fn start(environment: &'a RunEnvironment, consumers: u32) -> Result<Self> {
        let consumers = (0..consumers as usize).map(|n| spawn_consumer(environment, n));
        let feeders = (0..environment.feeder_count()).map(|run| spawn_feeder(environment, run));
        Ok(Self {
            environment,
            feeders: feeders.collect::<Result<_>>()?,
            consumers: consumers.collect::<Result<_>>()?,
        })
    }

    pub(crate) fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    pub(crate) fn feeder_count(&self) -> usize {
        self.feeders.len()
    }

    /// How a run's feeder ended, if it has.
    pub(crate) fn feeder_exit_status(&mut self, run: usize) -> Result<Option<ExitStatus>> {
        self.feeders[run].exit_status()
    }

    /// The consumers that have ended, and how.
    pub(crate) fn exited_consumers(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        let mut ended = Vec::new();
        for (n, consumer) in self.consumers.iter_mut().enumerate() {
            ended.extend(consumer.exit_status()?.map(|status| (n, status)));
        }
        Ok(ended)
    }

    /// Starts a run's feeder, without warning to one that still runs.
    pub(crate) async fn restart_feeder(&mut self, run: usize) -> Result<()> {
        kill_if_running(&mut self.feeders[run]).await?;
        self.feeders[run] = spawn_feeder(self.environment, run)?;
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
        for run in 0..self.feeders.len() {
            self.restart_feeder(run).await?;
        }
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

    /// The last lines of a feeder's log.
    pub(crate) fn feeder_log(&self, run: usize) -> String {
        self.feeders[run].log_tail(LOG_TAIL_LINES)
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

fn spawn_feeder(environment: &RunEnvironment, run: usize) -> Result<ChildProcess> {
    let name = match run {
        0 => "feeder".to_owned(),
        _ => format!("feeder-{}", run + 1),
    };
    spawn_program(
        environment,
        "feeder",
        &name,
        &environment.feeder_variables(run),
    )
}

fn spawn_consumer(environment: &RunEnvironment, n: usize) -> Result<ChildProcess> {
    let name = format!("consumer-{}", n + 1);
    spawn_program(
        environment,
        "consumer",
        &name,
        &environment.consumer_variables(),
    )
}

fn spawn_program(
    environment: &RunEnvironment,
    program: &str,
    name: &str,
    variables: &[(String, String)],
) -> Result<ChildProcess> {
    ChildProcess::spawn::<&str>(program, variables, &[], Some(&environment.log_path(name)))
}
