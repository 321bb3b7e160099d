//! The runs that a command is about: one, or all that are not finished.

use std::fmt::{self, Display};

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{DatabasePool, list_runs, no_run};
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;

use crate::context::CommonArgs;
use crate::history::{Operator, OperatorArgs};
use crate::output::{OutputFormat, write_lines};

#[derive(Debug, clap::Args)]
pub struct RunControlArgs {
    #[command(flatten)]
    operator: OperatorArgs,
    /// For every run that is not finished, or watched by a feeder; needs the database's address alone
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) struct ChosenRuns {
    pub(crate) pool: DatabasePool,
    pub(crate) operator: Operator,
    pub(crate) runs: Vec<i64>,
    pub(crate) is_all: bool,
    format: OutputFormat,
}

#[derive(Serialize)]
struct EachRun<T> {
    runs: Vec<T>,
}

impl RunControlArgs {
    pub(crate) async fn choose(self, problems: SettingsProblems) -> anyhow::Result<ChosenRuns> {
        let operator = self.operator.into();
        if !self.all {
            let context = self.common.into_context(problems).await?;
            let run = context.open_run().await?;
            return Ok(ChosenRuns {
                pool: run.pool,
                operator,
                runs: vec![run.id],
                is_all: false,
                format: context.format,
            });
        }
        let settings = self.common.parse(problems)?;
        let pool = settings.connect_to_ledger().await?;
        let pool = pool.ok_or_else(|| no_run("", &[]))?;
        let mut listed = list_runs(&pool).await?;
        listed.retain(|run| !run.is_finished || run.has_feeder || run.is_paused);
        Ok(ChosenRuns {
            pool,
            operator,
            runs: listed.iter().map(|run| run.id).collect(),
            is_all: true,
            format: settings.format,
        })
    }
}

impl ChosenRuns {
    pub(crate) async fn print_each<T: Display + Serialize>(
        &self,
        change: impl AsyncFn(i64) -> anyhow::Result<T>,
    ) -> anyhow::Result<u8> {
        let mut runs = Vec::new();
        for run in &self.runs {
            runs.push(change(*run).await?);
        }
        match runs.pop() {
            Some(only) if !self.is_all => self.format.print(&only)?,
            last => {
                runs.extend(last);
                self.format.print(&EachRun { runs })?;
            }
        }
        Ok(exit::DONE)
    }
}

impl<T: Display> Display for EachRun<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, &self.runs, "every run is finished")
    }
}
