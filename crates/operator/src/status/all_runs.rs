//! `feeder status --all`: every run on one screen, and the queue that they share.

use std::fmt;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::pause_description;
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::queue::sqs::SqsQueue;
use indicatif::HumanCount;
use serde::Serialize;
use sqlx::postgres::PgPool;

use super::output::render_bar;
use super::queue::QueueStatus;
use crate::limit::format_limits;
use crate::runs::{RunSummary, run_summaries};

#[derive(Serialize)]
pub(super) struct AllRunsStatus {
    /// None where no queue was named.
    queue: Option<QueueStatus>,
    runs: Vec<RunSummary>,
}

impl AllRunsStatus {
    pub(super) async fn read(
        pool: Option<&PgPool>,
        queue: Option<&SqsQueue>,
    ) -> Result<Self, StatementError> {
        let runs = match pool {
            Some(pool) => run_summaries(pool).await?,
            None => Vec::new(),
        };
        let queue = match queue {
            Some(queue) => Some(QueueStatus::read_queue(queue).await),
            None => None,
        };
        Ok(Self { queue, runs })
    }
}

impl fmt::Display for AllRunsStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.runs.iter().map(render_run).collect();
        if parts.is_empty() {
            parts.push("no runs: a feeder opens one at its first start".into());
        }
        if let Some(queue) = &self.queue {
            parts.push(format!("queue     {queue}"));
        }
        f.write_str(&parts.join("\n"))
    }
}

fn render_run(run: &RunSummary) -> String {
    let RunSummary {
        id,
        name,
        state,
        consumers,
        moved_per_second,
        ..
    } = run;
    let mut first = format!("{} (run {id}): {state}", printable(name));
    if state == "paused" {
        let (by, why) = (run.paused_by.clone(), run.pause_reason.clone());
        first = format!("{first} {}", printable(&pause_description(by, why)));
    }
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    let [moved, changed, failed] = [run.moved, run.changed, run.failed].map(count);
    let progress = match run.in_scope.map(count) {
        None => format!("{} moved", HumanCount(moved)),
        Some(all) => {
            let (bar, percent) = render_bar(moved + changed + failed, all);
            let (moved, all) = (HumanCount(moved), HumanCount(all));
            format!("{bar} {percent:.1} %, {moved} of {all} moved")
        }
    };
    let limits = format_limits(run.limits);
    let limits = limits.map_or_else(String::new, |limits| format!(", at most {limits}"));
    format!(
        "{first}\n          {progress}, {changed} changed, {failed} failed\n          {moved_per_second:.1}/s, {consumers} consumers{limits}"
    )
}
