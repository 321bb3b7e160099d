//! `feeder verify`: are all copies what they should be, and their sources still what was copied?
//!
//! It trusts neither the consumers nor an earlier verify: each object is looked at anew. Per move it reads
//! the copy and the source, in listings where they prove that all is well, else by two HEADs, and the row. What it
//! can find:
//!
//! ```text
//!   the row         the copy              the source               finding
//!   names it        as recorded           older than the copy      intact
//!   names it        as recorded           written since            compared; the same: intact
//!   names it        as recorded           other bytes, or gone     SourceChanged, SourceGone
//!   names it        another size          any                      SizeDiffers
//!   names it        not there             any                      CopyGone: the row is broken
//!   names it        another ETag          any                      outdated: the application's business
//!   names another   any                   any                      outdated, too
//!   or is gone
//! ```
//!
//! The source of what is outdated may go like any other where it is what was copied: by its ETag, its date, or an
//! earlier verification.
//!
//! A mismatch takes `verified_at` away, so that clean does not touch the source; and before it is written
//! down the row is read again: what the application changed meanwhile is no mismatch.
//!
//! **What can go wrong between two steps.** Findings and the cursor are written in one statement per
//! page: killed anywhere, the next verify repeats the pages under way. With `--recopy` a copy is made anew and
//! then written down; killed between the two, the ledger has the old ETag, and a later `verify --recopy`
//! finds an object that equals its source and takes it over. A copy is made only over the very copy that is
//! recorded (If-Match), or where none stands, so what the application writes there meanwhile stays.

mod check;
mod lister;
mod output;
mod pass;
#[cfg(test)]
pub(crate) mod plans;
mod queries;
mod verification;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::TableAccess;
use bucket_brigade_common::settings::{
    DatabaseArgs, Setting, SettingsProblems, integer_between, parse_percent, setting,
};
use tokio_util::sync::CancellationToken;

use super::command_throttle::CommandThrottle;
use super::context::CommonArgs;
use super::locks::CommandLocks;
use super::page_pipeline::{is_complete, until_stopped};
use super::path_column::PathColumn;
use super::retrying_store::{self, MAX_REQUESTS_IN_FLIGHT, RequestSlots};
use check::MoveChecker;
use lister::ObjectLister;
use pass::VerificationPass;
use verification::VerificationSpec;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder verify --sample 1\n  feeder verify --full\n  feeder verify --recopy\n\nCut off, the same command goes on where it was. Exit codes: 0 everything is as it should be; 1 it is\nnot (the list says what); 3 stopped before the end; 64 wrong settings, or no such run; 69 database\nor bucket cannot be reached; 70 unexpected error; 75 another verify, rollback or clean of this run\nis at work; 77 a right is missing."
)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub struct Args {
    /// Check this share of the rows, in percent
    #[arg(long, value_name = "PERCENT", default_value = "100", value_parser = setting(parse_percent))]
    sample: Setting<f64>,
    /// Check every row of the table too: does its object exist?
    #[arg(long)]
    full: bool,
    /// Where a source has changed since its copy, copy it anew, as long as our copy still stands there
    #[arg(long)]
    recopy: bool,
    /// Believe the listings of a store that is not AWS, too: a thousand objects a request
    #[arg(long)]
    listings: bool,
    /// Start over, even if an earlier verify was interrupted
    #[arg(long)]
    anew: bool,
    /// Moves looked at at a time
    #[arg(long, value_name = "N", default_value = "64", value_parser = setting(integer_between(1, MAX_REQUESTS_IN_FLIGHT)))]
    concurrency: Setting<usize>,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    common: CommonArgs,
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let spec = VerificationSpec {
        sample_percent: args.sample.take(&mut problems),
        is_full: args.full,
        recopies: args.recopy,
    };
    let slots = RequestSlots::new(args.concurrency.take(&mut problems));
    let limits = args.database.parse(&mut problems);
    let opened = args.common.open_run(problems, TableAccess::Read);
    let (context, ledger) = until_stopped(&stop, opened).await?;
    // A verification that is begun is gone on with.
    let prepared = until_stopped(&stop, async {
        let locks = CommandLocks::acquire(&ledger).await?;
        let store = if spec.recopies {
            retrying_store::open_for_copies(&context, &ledger).await?
        } else {
            retrying_store::open(&context, &ledger).await?
        };
        let verification = queries::begin_verification(&ledger, spec, args.anew).await?;
        let throttle = CommandThrottle::start(&ledger, "verify", limits).await?;
        let column = PathColumn::of_run(&ledger).await?;
        anyhow::Ok((locks, store, verification, throttle, column))
    });
    // Held until the findings are printed: another verification would remove them.
    let (mut locks, store, verification, throttle, column) = prepared.await?;
    if verification.is_resumed {
        tracing::info!("going on with the verification that was interrupted (--anew starts over)");
    }
    let checker = MoveChecker {
        store: &store,
        ledger: &ledger,
        column: &column,
        recopies: spec.recopies,
        is_one_store: context.has_one_store(),
        stop: &stop,
    };
    let pass = VerificationPass {
        checker: &checker,
        verification,
        slots: &slots,
        lister: ObjectLister::new(&store, &slots, args.listings || store.is_of_aws()),
        throttle: &throttle,
        stop: &stop,
    };
    if !is_complete(throttle.run(Box::pin(pass.run(&mut locks))).await)? {
        return Ok(exit::STOPPED);
    }
    output::finish_and_print(context.format, &ledger, spec, &stop).await
}
