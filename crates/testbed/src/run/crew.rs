//! The feeder and the consumers at work.

use std::process::ExitStatus;

use anyhow::Result;

use super::stage::Stage;
use crate::process::Process;

const LOG_LINES: usize = 30;
/// The feeder's exit code when it finished and some rows failed, as rows without an object do.
pub(crate) const SOME_FAILED: i32 = 2;

pub(crate) struct Crew<'a> {
    stage: &'a Stage,
    feeder: Process,
    consumers: Vec<Process>,
}

impl<'a> Crew<'a> {
    pub(crate) fn start(stage: &'a Stage, consumers: u32) -> Result<Self> {
        let consumers = (0..consumers as usize).map(|n| spawn_consumer(stage, n));
        Ok(Self {
            stage,
            feeder: spawn_feeder(stage)?,
            consumers: consumers.collect::<Result<_>>()?,
        })
    }

    /// How many consumers there are.
    pub(crate) fn count(&self) -> usize {
        self.consumers.len()
    }

    /// How the feeder ended, if it has.
    pub(crate) fn feeder_ended(&mut self) -> Result<Option<ExitStatus>> {
        self.feeder.ended()
    }

    /// The consumers that have ended, and how.
    pub(crate) fn consumers_ended(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        let mut ended = Vec::new();
        for (n, consumer) in self.consumers.iter_mut().enumerate() {
            ended.extend(consumer.ended()?.map(|status| (n, status)));
        }
        Ok(ended)
    }

    /// Starts the feeder, without warning to one that still runs.
    pub(crate) async fn restart_feeder(&mut self) -> Result<()> {
        end(&mut self.feeder).await?;
        self.feeder = spawn_feeder(self.stage)?;
        Ok(())
    }

    /// Starts a consumer, without warning to one that still runs.
    pub(crate) async fn restart_consumer(&mut self, n: usize) -> Result<()> {
        end(&mut self.consumers[n]).await?;
        self.consumers[n] = spawn_consumer(self.stage, n)?;
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
    pub(crate) async fn dismiss(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        for consumer in &self.consumers {
            consumer.terminate().await?;
        }
        let mut ended = Vec::new();
        for (n, consumer) in self.consumers.iter_mut().enumerate() {
            ended.push((n, consumer.wait().await?));
        }
        Ok(ended)
    }

    /// The last lines of the feeder's log.
    pub(crate) fn feeder_log(&self) -> String {
        self.feeder.log_tail(LOG_LINES)
    }

    /// The last lines of a consumer's log.
    pub(crate) fn consumer_log(&self, n: usize) -> String {
        self.consumers[n].log_tail(LOG_LINES)
    }
}

async fn end(process: &mut Process) -> Result<()> {
    if process.ended()?.is_none() {
        process.kill().await?;
    }
    Ok(())
}

fn spawn_feeder(stage: &Stage) -> Result<Process> {
    spawn(stage, "feeder", "feeder")
}

fn spawn_consumer(stage: &Stage, n: usize) -> Result<Process> {
    spawn(stage, "consumer", &format!("consumer-{}", n + 1))
}

fn spawn(stage: &Stage, program: &str, name: &str) -> Result<Process> {
    Process::spawn::<&str>(
        program,
        &stage.environment(program),
        &[],
        Some(&stage.log(name)),
    )
}
