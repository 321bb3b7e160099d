//! What is there of a ledger, and of an earlier run.

use bucket_brigade_common::ledger::feed_source::{FeedSource, RunProgress};
use bucket_brigade_common::ledger::{
    ConnectionPurpose, LedgerError, PostgresLedger, RunSpec, TableAccess,
};

use super::check::PlanCheck;
use super::table_inspector::{ServerInfo, TableInspector};

/// Returns the numbers of the run that is on record.
pub(super) async fn check_ledger(
    inspector: &TableInspector,
    spec: &RunSpec,
    server: &ServerInfo,
    checks: &mut Vec<PlanCheck>,
) -> Option<RunProgress> {
    let (check, progress) = if !server.may_create_ledger {
        (missing_right(&server.user), None)
    } else if server.has_ledger {
        find_run(inspector, spec).await
    } else if server.has_schema {
        let finding = "schema bucket_brigade is there without a ledger, which the feeder will make";
        (PlanCheck::new_ok("ledger", finding), None)
    } else {
        let finding = "the feeder will make it, schema bucket_brigade";
        (PlanCheck::new_ok("ledger", finding), None)
    };
    checks.push(check);
    progress
}

fn missing_right(user: &str) -> PlanCheck {
    PlanCheck::new_failure(
        "ledger",
        format!("'{user}' may not make or alter the ledger"),
        format!(
            "CREATE SCHEMA IF NOT EXISTS bucket_brigade AUTHORIZATION \"{user}\"; GRANT USAGE, CREATE ON SCHEMA bucket_brigade TO \"{user}\";"
        ),
    )
}

async fn find_run(inspector: &TableInspector, spec: &RunSpec) -> (PlanCheck, Option<RunProgress>) {
    let found = PostgresLedger::open_existing(
        inspector.pool().clone(),
        spec,
        "plan",
        &ConnectionPurpose::Plan,
        TableAccess::Read,
    );
    let ledger = match found.await {
        Ok(ledger) => ledger,
        Err(LedgerError::NoRun { hint }) => {
            let hint = hint.split_whitespace().collect::<Vec<_>>().join(" ");
            let finding = format!("it exists, without a run {hint}");
            return (PlanCheck::new_ok("ledger", finding), None);
        }
        Err(error) => return (PlanCheck::from_ledger_error("ledger", &error), None),
    };
    match ledger.run_progress().await {
        Ok(progress) => {
            let RunProgress {
                moved,
                changed,
                failed,
                ..
            } = progress;
            let finding = format!(
                "run {} is on record: {moved} moved, {changed} changed by the application, {failed} failed",
                ledger.run_id()
            );
            (PlanCheck::new_ok("ledger", finding), Some(progress))
        }
        Err(error) => {
            let finding = format!("run {} cannot be read: {error}", ledger.run_id());
            let mend = "the rights of the ledger's owner";
            (PlanCheck::new_failure("ledger", finding, mend), None)
        }
    }
}
