//! `feeder rollback`: rows back to their old path, where that is safe.
//!
//! A row goes back when it still carries the new path, its copy still has the recorded ETag, and its source
//! exists. Everything else is left alone, counted and printed with its reason:
//!
//! ```text
//!   row             copy            source                 what happens
//!   new path        as recorded     there                  back
//!   another path    any             any                    left: the application's write wins
//!   gone            any             any                    left: nothing to set back
//!   new path        another ETag    any                    left: the application replaced the image
//!   new path        gone            any                    left: verify reports it
//!   new path        as recorded     gone, or removed       left: the old path would name nothing
//! ```
//!
//! **What can go wrong between two steps.** S3 and Postgres know no common transaction: an image that the
//! application replaces under the same key between the HEAD of the copy and the compare-and-set would lose
//! its row. So the copy is checked once more after it, and a row whose image was replaced is set forward
//! again. A row whose source goes between the two would break: clean, the only one of ours that removes
//! sources, is kept out by a lock. Path and evidence change in one statement, so that a kill leaves each
//! row either moved or to do; a second rollback goes on with what is still moved. A feeder would move the
//! rows again, and a message in the queue the one row it names: both are kept out.

mod classify;
mod output;
#[cfg(test)]
pub(crate) mod plans;
mod queries;
mod selection;
mod source;
mod undo;

use std::cell::{Cell, RefCell};

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{PostgresLedger, TableAccess};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::settings::{
    DatabaseArgs, DatabaseLimits, Setting, SettingsProblems, integer_between, setting,
};
use tokio_util::sync::CancellationToken;

use super::command_throttle::CommandThrottle;
use super::consent::{ConsentReply, ask};
use super::context::{CommandContext, CommonArgs};
use super::history::{Operator, OperatorArgs};
use super::locks::CommandLocks;
use super::page_pipeline::until_stopped;
use super::retrying_store::{self, MAX_REQUESTS_IN_FLIGHT, RequestSlots};
use classify::UndoClassifier;
use output::RollbackPrinter;
use selection::{MoveSelection, SelectionArgs};
use undo::RollbackRun;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder rollback --all                        prints what would happen\n  feeder rollback --all --yes\n  feeder rollback --since 2h --yes\n  feeder rollback --since 2026-03-01T14:00:00Z --yes\n  feeder rollback --ids 17 23 42 --yes\n\nStop the feeder first. Cut off, the same command goes on where it was. Exit codes: 0 done; 2 done,\nbut some rows were left alone (the list says why); 3 stopped before the end; 64 wrong settings, or\nno such run; 69 database, queue or bucket cannot be reached; 70 unexpected error; 75 the feeder,\nconsumers or another command are at work; 77 a right is missing."
)]
pub struct Args {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Do it; without this flag the command prints what would happen, and on a terminal asks
    #[arg(long)]
    yes: bool,
    /// Moves looked at at a time
    #[arg(long, value_name = "N", default_value = "64", value_parser = setting(integer_between(1, MAX_REQUESTS_IN_FLIGHT)))]
    concurrency: Setting<usize>,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    common: CommonArgs,
}

struct RollbackCommand<'a> {
    context: &'a CommandContext,
    ledger: &'a PostgresLedger,
    selection: MoveSelection,
    requests: usize,
    limits: DatabaseLimits,
    stop: &'a CancellationToken,
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let selection = args.selection.parse(&mut problems);
    let requests = args.concurrency.take(&mut problems);
    let limits = args.database.parse(&mut problems);
    let opened = args.common.open_run(problems, TableAccess::Update);
    let (context, ledger) = until_stopped(&stop, opened).await?;
    let command = RollbackCommand {
        context: &context,
        ledger: &ledger,
        selection: selection.parse_ids(ledger.id_type())?,
        requests,
        limits,
        stop: &stop,
    };
    if let MoveSelection::Since(time) = command.selection {
        let time = humantime::format_rfc3339_seconds(time);
        tracing::info!("moves since {time}, which is UTC");
    }
    let operator = Operator::from(args.operator);
    if args.yes {
        return Box::pin(command.run_pass(Some(&operator))).await;
    }
    let code = Box::pin(command.run_pass(None)).await?;
    if code == exit::STOPPED {
        return Ok(code);
    }
    match ask(context.format, &"Type yes to do it: ", &stop).await? {
        ConsentReply::Interrupted => Ok(exit::STOPPED),
        reply if reply.is_yes() => Box::pin(command.run_pass(Some(&operator))).await,
        _ => Ok(code),
    }
}

impl RollbackCommand<'_> {
    /// Through all rows: for real as an operator, otherwise to print what would happen.
    async fn run_pass(&self, operator: Option<&Operator>) -> anyhow::Result<u8> {
        let Self {
            context, ledger, ..
        } = self;
        let prepared = until_stopped(self.stop, self.prepare(operator));
        let (locks, store, throttle) = prepared.await?;
        let classifier = UndoClassifier {
            store: &store,
            rule: ledger.rule(),
            is_one_store: context.has_one_store(),
        };
        let (run, for_real) = (ledger.run_id(), operator.is_some());
        let printer = RollbackPrinter::begin_list(context.format, run, for_real)?;
        let rollback = RollbackRun {
            ledger,
            classifier,
            slots: RequestSlots::new(self.requests),
            throttle: &throttle,
            selection: &self.selection,
            fence: Cell::new(locks.fence()),
            missing_ids: RefCell::new(self.selection.ids().iter().cloned().collect()),
            printer: RefCell::new(printer),
            stop: self.stop,
        };
        throttle.run(Box::pin(rollback.run(locks))).await
    }

    async fn prepare(
        &self,
        operator: Option<&Operator>,
    ) -> anyhow::Result<(CommandLocks<'_>, S3Store, CommandThrottle<'_>)> {
        let ledger = self.ledger;
        let mut locks = CommandLocks::acquire(ledger).await?;
        // What changes nothing leaves the fleet at work.
        if operator.is_some() {
            locks.exclude_other_runs().await?;
            locks.quiesce_fleet(self.context).await?;
            locks.shut_out(None).await?;
        }
        let store = retrying_store::open(self.context, ledger).await?;
        let throttle = CommandThrottle::start(ledger, "rollback", self.limits).await?;
        if let Some(operator) = operator {
            let (pool, details) = (ledger.pool(), self.selection.describe());
            operator
                .record(pool, ledger.run_id(), "rollback", Some(&details))
                .await;
        }
        Ok((locks, store, throttle))
    }
}
