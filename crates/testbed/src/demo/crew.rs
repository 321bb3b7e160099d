//! The feeder and the consumers at work.

use anyhow::{Result, bail, ensure};

use super::report;
use super::stage::Stage;
use crate::process::Process;

const LOG_LINES: usize = 30;
/// The feeder's exit code when it finished and some rows failed, as rows without an object do.
const SOME_FAILED: i32 = 2;

pub(super) struct Crew<'a> {
    stage: &'a Stage,
    feeder: Process,
    consumers: Vec<Process>,
}

impl<'a> Crew<'a> {
    pub(super) fn start(stage: &'a Stage, consumers: u32) -> Result<Self> {
        let feeder = spawn(stage, "feeder", "feeder")?;
        let consumers = (1..=consumers).map(|n| spawn(stage, "consumer", &format!("consumer-{n}")));
        Ok(Self {
            stage,
            feeder,
            consumers: consumers.collect::<Result<_>>()?,
        })
    }

    /// Whether the feeder has ended well.
    pub(super) fn feeder_is_done(&mut self) -> Result<bool> {
        match self.feeder.ended()? {
            None => Ok(false),
            Some(status) if status.success() || status.code() == Some(SOME_FAILED) => Ok(true),
            Some(status) => bail!(
                "the feeder failed ({status}):\n{}",
                self.feeder.log_tail(LOG_LINES)
            ),
        }
    }

    /// Fails if a consumer has ended.
    pub(super) fn check_consumers(&mut self) -> Result<()> {
        for consumer in &mut self.consumers {
            if let Some(status) = consumer.ended()? {
                bail!(
                    "a consumer ended early ({status}):\n{}",
                    consumer.log_tail(LOG_LINES)
                );
            }
        }
        Ok(())
    }

    /// Kills every process without warning and starts it again.
    pub(super) async fn kill_each_once(&mut self) -> Result<()> {
        report::tell("\nKilling the feeder and every consumer, and starting them again …");
        self.feeder.kill().await?;
        self.feeder = spawn(self.stage, "feeder", "feeder")?;
        for (n, consumer) in (1..).zip(&mut self.consumers) {
            consumer.kill().await?;
            *consumer = spawn(self.stage, "consumer", &format!("consumer-{n}"))?;
        }
        Ok(())
    }

    /// Asks the consumers to end, as ECS does; each must do so with success.
    pub(super) async fn dismiss(mut self) -> Result<()> {
        for consumer in &self.consumers {
            consumer.terminate().await?;
        }
        for consumer in &mut self.consumers {
            let status = consumer.wait().await?;
            ensure!(
                status.success(),
                "a consumer ended badly ({status}):\n{}",
                consumer.log_tail(LOG_LINES)
            );
        }
        Ok(())
    }
}

fn spawn(stage: &Stage, program: &str, name: &str) -> Result<Process> {
    Process::spawn::<&str>(
        program,
        &stage.environment(program),
        &[],
        Some(&stage.log(name)),
    )
}
