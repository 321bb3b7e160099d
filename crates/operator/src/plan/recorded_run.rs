//! What is there of a ledger, and of an earlier run.

use std::collections::HashSet;

use bucket_brigade_common::ledger::feed_source::{PageReader as _, RunProgress, SweepAccess};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    ConnectionPurpose, LedgerError, PostgresLedger, RunSpec, SecondRun, TableAccess,
    check_first_start, ensure_no_rival,
};

use sqlx::PgPool;

use super::check::PlanChecks;
use super::table_inspector::{ServerInfo, TableInspector};
use crate::runs::run_summaries;

pub(super) struct RecordedRun {
    run: i64,
    pub(super) progress: RunProgress,
    /// By whom, and why; none while it is not paused.
    paused: Option<String>,
    /// Why nothing is left, where an index or a sweep says so.
    pub(super) nothing_left: Option<String>,
}

impl RecordedRun {
    /// The ids of rows that have failed.
    pub(super) async fn failed_among(
        &self,
        pool: &PgPool,
        rows: &[(String, String)],
    ) -> Result<HashSet<String>, sqlx::Error> {
        if self.progress.failed == 0 {
            return Ok(HashSet::new());
        }
        let ids: Vec<&str> = rows.iter().map(|(id, _)| &**id).collect();
        let query = sqlx::query_scalar(
            "SELECT row_id FROM bucket_brigade.failures WHERE run_id = $1 AND row_id = ANY ($2)",
        );
        let failed = query.bind(self.run).bind(ids).fetch_all(pool);
        Ok(failed.await?.into_iter().collect())
    }
}

pub(super) async fn check_ledger(
    inspector: &TableInspector,
    spec: &RunSpec,
    server: &ServerInfo,
    second_run: SecondRun,
    checks: &mut PlanChecks,
) -> Option<RecordedRun> {
    if !server.may_create_ledger {
        let user = &server.user;
        checks.fail(
            "ledger",
            format!("'{user}' may not make or alter the ledger"),
            format!(
                "CREATE SCHEMA IF NOT EXISTS bucket_brigade AUTHORIZATION \"{user}\"; GRANT USAGE, CREATE ON SCHEMA bucket_brigade TO \"{user}\";"
            ),
        );
    } else if server.has_ledger {
        return find_run(inspector, spec, second_run, checks).await;
    } else if let Err(error) = spec.ensure_may_be_new() {
        checks.fail_by_ledger("ledger", &error);
    } else if server.has_schema {
        let finding =
            "schema bucket_brigade is there without a ledger, which the feeder will create";
        checks.ok("ledger", finding);
    } else {
        checks.ok(
            "ledger",
            "the feeder will create it in schema bucket_brigade",
        );
    }
    None
}

async fn find_run(
    inspector: &TableInspector,
    spec: &RunSpec,
    second_run: SecondRun,
    checks: &mut PlanChecks,
) -> Option<RecordedRun> {
    let (pool, purpose) = (inspector.pool.clone(), ConnectionPurpose::Plan);
    let found = PostgresLedger::open_existing(pool, spec, "plan", &purpose, TableAccess::Read);
    let ledger = match found.await {
        Ok(ledger) => ledger,
        Err(LedgerError::NoRun { hint }) => {
            check_new_run(inspector, spec, second_run, &hint, checks).await;
            return None;
        }
        Err(error) => {
            checks.fail_by_ledger("ledger", &error);
            return None;
        }
    };
    for checked in [
        ledger.ensure_no_copy_in_removal().await,
        ensure_no_rival(ledger.database(), ledger.run_id()).await,
    ] {
        if let Err(error) = checked {
            checks.fail_by_ledger("ledger", &error);
        }
    }
    let id = ledger.run_id();
    let run = read_run(&ledger).await;
    match &run {
        Ok(RecordedRun {
            progress, paused, ..
        }) => {
            let RunProgress {
                moved,
                changed,
                failed,
                ..
            } = progress;
            let finding = format!(
                "run {id} is on record: {moved} moved, {changed} changed by the application, {failed} failed"
            );
            checks.ok("ledger", finding);
            if let Some(paused) = paused {
                let finding = format!("the run is paused {paused}");
                checks.warn("ledger", finding, "feeder resume: until then nothing moves");
            }
        }
        Err(error) => {
            let finding = format!("run {id} cannot be read: {error}");
            checks.fail("ledger", finding, "the rights of the ledger's owner");
        }
    }
    run.ok()
}

async fn check_new_run(
    inspector: &TableInspector,
    spec: &RunSpec,
    second_run: SecondRun,
    hint: &str,
    checks: &mut PlanChecks,
) {
    let TableInspector { pool, table, .. } = inspector;
    match check_first_start(pool, spec, table, second_run).await {
        Ok(paused) => {
            let hint = hint.split_whitespace().collect::<Vec<_>>().join(" ");
            checks.ok("ledger", format!("it exists, without a run {hint}"));
            for run in paused {
                let finding = format!(
                    "run '{run}' is unfinished and has the same rows: the feeder will pause it"
                );
                checks.warn("ledger", finding, "let that run finish first, if it is to");
            }
        }
        Err(LedgerError::SecondRun {
            column,
            run,
            differences,
        }) => {
            let differences = differences.replace("\n  ", "; ");
            let finding = format!(
                "column {column} has a run already, '{run}', with other settings: {differences}"
            );
            let mend = "to begin another migration of this column, plan it, and start the feeder once, with --new-run; else mend the settings";
            checks.fail("ledger", finding, mend);
        }
        Err(error) => checks.fail_by_ledger("ledger", &error),
    }
}

async fn read_run(ledger: &PostgresLedger) -> Result<RecordedRun, StatementError> {
    let runs = run_summaries(ledger.pool(), Some(ledger.run_id())).await?;
    let run = runs.into_iter().next().unwrap_or_default();
    let by_index = matches!(ledger.prepare().await, Ok(SweepAccess::NothingLeft));
    let by_index = by_index.then(|| "an index has none".to_owned());
    let finished_at = run.finished_at;
    Ok(RecordedRun {
        run: ledger.run_id(),
        progress: run.progress,
        paused: run.paused,
        nothing_left: by_index.or_else(|| Some(format!("a sweep found none at {}", finished_at?))),
    })
}
