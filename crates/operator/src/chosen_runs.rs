//! The runs that a command is about: one, or all that are not finished.

use std::fmt::{self, Display};

use bucket_brigade_common::aws::error_chain;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{DatabasePool, list_runs, no_run};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use bucket_brigade_common::startup::exit_code;
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
    /// Whether those after one that failed are left as they are.
    pub(crate) ends_with_failure: bool,
    format: OutputFormat,
}

#[derive(Serialize)]
struct EachRun<T> {
    runs: Vec<RunOutcome<T>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum RunOutcome<T> {
    Changed(T),
    Failed { run: i64, error: String },
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
                ends_with_failure: false,
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
            ends_with_failure: false,
            format: settings.format,
        })
    }
}

impl ChosenRuns {
    /// Changes all of them, whatever becomes of one: in an emergency the others must not depend on it. The worst error
    /// is the end's.
    pub(crate) async fn print_each<T: Display + Serialize>(
        &self,
        change: impl AsyncFn(i64) -> anyhow::Result<T>,
    ) -> anyhow::Result<u8> {
        if !self.is_all {
            for run in &self.runs {
                self.format.print(&change(*run).await?)?;
            }
            return Ok(exit::DONE);
        }
        let (mut runs, mut errors) = (Vec::new(), Vec::new());
        for run in self.runs.iter().copied() {
            if self.ends_with_failure && !errors.is_empty() {
                break;
            }
            runs.push(match change(run).await {
                Ok(changed) => RunOutcome::Changed(changed),
                Err(error) => {
                    let text = error_chain(&*error);
                    errors.push((run, error));
                    RunOutcome::Failed { run, error: text }
                }
            });
        }
        self.format.print(&EachRun { runs })?;
        combine_errors(errors).map_or(Ok(exit::DONE), Err)
    }
}

/// The one with the highest exit code, and the runs that failed.
fn combine_errors(errors: Vec<(i64, anyhow::Error)>) -> Option<anyhow::Error> {
    let runs: Vec<String> = errors.iter().map(|(run, _)| run.to_string()).collect();
    let errors = errors.into_iter().map(|(_, error)| error);
    let worst = errors.max_by_key(exit_code)?;
    Some(worst.context(format!("failed for run {}", runs.join(", "))))
}

impl<T: Display> Display for EachRun<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, &self.runs, "every run is finished")
    }
}

impl<T: Display> Display for RunOutcome<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(changed) => changed.fmt(f),
            Self::Failed { run, error } => write!(f, "run {run}: failed: {}", printable(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bucket_brigade_common::ledger::create_pool;
    use bucket_brigade_common::ledger::move_ledger::StatementError;
    use sqlx::postgres::PgConnectOptions;

    use super::*;

    #[tokio::test]
    async fn what_fails_for_one_run_is_done_for_the_others() {
        let mut runs = ChosenRuns {
            pool: create_pool(PgConnectOptions::new().into(), 1),
            operator: Operator::new("ana", None),
            runs: vec![1, 2, 3],
            is_all: true,
            ends_with_failure: false,
            format: OutputFormat::Json,
        };
        let changed = RefCell::new(Vec::new());
        let change = async |run| {
            changed.borrow_mut().push(run);
            match run {
                1 => Err(StatementError::Suspect {
                    code: "42501".into(),
                    message: "permission denied".into(),
                })?,
                2 => Err(StatementError::Unavailable("timeout".into()))?,
                _ => Ok("done"),
            }
        };
        let error = runs.print_each(change).await.unwrap_err();
        assert_eq!(*changed.borrow(), [1, 2, 3]);
        assert_eq!(exit_code(&error), exit::NO_PERMISSION);
        let text = error_chain(&*error);
        assert!(text.starts_with("failed for run 1, 2: "), "{text}");
        runs.ends_with_failure = true;
        changed.borrow_mut().clear();
        assert!(runs.print_each(change).await.is_err());
        assert_eq!(*changed.borrow(), [1]);
    }

    #[test]
    fn each_run_has_a_line() {
        let failed = RunOutcome::Failed {
            run: 2,
            error: "timeout".into(),
        };
        let runs = vec![RunOutcome::Changed("run 1 is paused"), failed];
        let output = EachRun { runs };
        let lines = "run 1 is paused\nrun 2: failed: timeout";
        assert_eq!(output.to_string(), lines);
        let json = r#"{"runs":["run 1 is paused",{"run":2,"error":"timeout"}]}"#;
        assert_eq!(serde_json::to_string(&output).unwrap(), json);
    }
}
