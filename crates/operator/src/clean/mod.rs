//! `feeder clean`: removes objects that no row needs any more, and nothing else.
//!
//! **Sources.** A source goes when every move off it is verified since it was made and older than asked for,
//! no row of any table that the ledger knows names it, it still is the object that was verified, and its
//! copy still stands as recorded. **Orphans** (`--orphans`): a copy without a row goes when no row
//! names it and it still has the recorded ETag. After a source is gone its moves cannot be undone.
//!
//! ```text
//!  1 find       the next page of what may go               nothing is written before 3
//!  2 compare    the object (and its copy) with the record  anything else than recorded: kept
//!  3 intend     removing_at, in the ledger                 killed: the next clean checks whether it is gone
//!  4 ask        does a row name it? as late as it can be   yes: kept
//!  5 remove     up to 1,000 at a time, each If-Match       changed meanwhile: S3 keeps it
//!  6 ask again  did a row come to name it between 4 and 5? yes: brought back, from its copy or its source
//!  7 companions of what is gone: 2, 4, 5 and 6 again
//!  8 record     removed_at, in the ledger and the output
//! ```
//!
//! **What cannot be excluded.** S3 and Postgres know no common transaction. A row that is set to an old path
//! without anything being uploaded there, by a transaction that commits after 6, names an object that is
//! gone. In a bucket with versions it can be had back; in one without it cannot. The same row set before 6
//! gets its object back within moments. Rows that spell a path otherwise are read once, before the first
//! removal: one that is written later is not seen. Nor is a standby that is not connected while sources go.
//!
//! A consumer can find a copy and point a row at it at any moment, so while orphans go the feeder is locked
//! out and the queue must be empty. Sources need neither, as long as no other run copies to where they are.

mod batch;
mod candidates;
mod companions;
mod count;
mod encoded_paths;
mod failed_paths;
mod key_filter;
mod known_tables;
mod last_bytes;
mod missing_indexes;
mod other_spellings;
mod output;
mod pass;
mod path_references;
#[cfg(test)]
pub(crate) mod plans;
mod removals;
mod restore;
mod standbys;
mod unasked_columns;

use std::time::Duration;

use anyhow::Context as _;
use bucket_brigade_common::exit::{self, CommandError};
use bucket_brigade_common::ledger::TableAccess;
use bucket_brigade_common::ledger::feed_source::FeedSource as _;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{BucketSide, BucketVersioning};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::settings::{
    DatabaseArgs, Setting, SettingsError, SettingsProblems, duration_between, setting,
};
use tokio_util::sync::CancellationToken;

use super::command_cursor::CommandCursor;
use super::command_throttle::CommandThrottle;
use super::consent::{ConsentReply, ask};
use super::context::{CommandContext, CommonArgs};
use super::history::{Operator, OperatorArgs};
use super::locks::CommandLocks;
use super::page_pipeline::{is_complete, until_stopped};
use super::path_column::PathColumn;
use super::retrying_store::{
    self, DEFAULT_REQUESTS_IN_FLIGHT, RequestSlots, is_object_error, retry_object_request,
};
use count::EligibleMoves;
use encoded_paths::UnsettledSources;
use known_tables::KnownTables;
use missing_indexes::{LARGE_PAGE_ROWS, MissingIndexes};
use other_spellings::OtherSpellings;
use output::{CleanPreview, CleanPrinter};
use pass::CleanPass;
use path_references::{ReferringColumn, path_columns};
use removals::RemovalLedger;
use restore::ObjectRestorer;
use standbys::wait_for_standbys;
use unasked_columns::UnaskedColumns;

/// Objects that one request removes.
const PAGE_ROWS: i64 = 1000;

/// A row that went back may still be saved with its new path, by whoever read it before.
const ORPHAN_AGE: Duration = Duration::from_hours(1);

/// Ten years: a longer time is a mistaken unit.
const MAX_AGE: Duration = Duration::from_hours(24 * 3650);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder clean --older-than 30days                         prints what would go\n  feeder clean --older-than 30days --confirm old-images\n  feeder clean --orphans --confirm new-images\n\nThe name to confirm with is that of the bucket that objects are removed from. On a terminal it is\nasked for. Exit codes: 0 done, or nothing to do; 1 not verified, or a removed object that a row\nnames could not be brought back; 2 done, but some objects were left alone (the list says why); 3 stopped before the end; 64 wrong settings, no such\nrun, or another name; 69 database, queue or bucket cannot be reached; 70 unexpected error; 75\nanother command (with --orphans: the feeder or consumers) at work; 77 a right is missing."
)]
pub struct Args {
    /// Only what was moved (with --orphans: left without a row) at least so long ago, for example 30days; required, but
    /// with --orphans 1h by default
    #[arg(long, value_name = "DURATION", required_unless_present = "orphans", value_parser = setting(parse_age))]
    older_than: Option<Setting<Duration>>,
    /// Remove copies that no row names, instead of sources
    #[arg(long)]
    orphans: bool,
    /// At most so many rows are outside the path rule, and none means an object of the bucket: objects with such names are
    /// removed, too
    #[arg(long, value_name = "ROWS")]
    rows_outside_the_rule: Option<u64>,
    /// Columns that no run is of, as schema.table.column: though they hold such paths, they need none of the objects
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    ignore_columns: Vec<String>,
    /// The name of the bucket that objects are removed from; without it the command prints what would go
    #[arg(long, value_name = "BUCKET")]
    confirm: Option<String>,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// With its unit: seconds where days were meant could not be undone.
fn parse_age(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(1..) => Err("needs a unit, such as 30days or 12h".into()),
        _ => duration_between(Duration::ZERO, MAX_AGE)(text),
    }
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let age = args.older_than.map(|age| age.take(&mut problems));
    let age_seconds = age.unwrap_or(ORPHAN_AGE).as_secs_f64();
    let limits = args.database.parse(&mut problems);
    let context = until_stopped(&stop, args.common.into_context(problems)).await?;
    let run = &context.migration.run;
    let (command, bucket, other_bucket) = if args.orphans {
        (
            "clean --orphans",
            &run.destination_bucket,
            &run.source_bucket,
        )
    } else {
        ("clean", &run.source_bucket, &run.destination_bucket)
    };
    check_bucket_name(args.confirm.as_deref(), bucket)?;
    let ledger = until_stopped(&stop, context.open_ledger(TableAccess::Read)).await?;
    let prepared = until_stopped(&stop, async {
        let locks = CommandLocks::acquire(&ledger).await?;
        let store = retrying_store::open(&context, &ledger).await?;
        let throttle = CommandThrottle::start(&ledger, "clean", limits).await?;
        let column = PathColumn::of_run(&ledger).await?;
        anyhow::Ok((locks, store, throttle, column))
    });
    let (locks, store, throttle, column) = prepared.await?;
    let removals = RemovalLedger {
        ledger: &ledger,
        column: &column,
        orphans: args.orphans,
        bucket,
        other_bucket,
        age_seconds,
    };
    let clean = CleanCommand {
        context: &context,
        operator: args.operator.into(),
        rows_outside_the_rule: args.rows_outside_the_rule,
        ignore_columns: args.ignore_columns,
        versioning: until_stopped(&stop, read_versioning(&store, removals.side())).await?,
        pass: CleanPass {
            removals,
            store: &store,
            restorer: ObjectRestorer::new(&context, removals),
            slots: RequestSlots::new(DEFAULT_REQUESTS_IN_FLIGHT),
            throttle: &throttle,
            stop: &stop,
            other_spellings: OtherSpellings::default(),
            unsettled: UnsettledSources::default(),
            cursor: CommandCursor::new(&ledger, command, age_seconds.to_string()),
            page_rows: PAGE_ROWS,
            tables: KnownTables::default(),
        },
        missing: MissingIndexes::default(),
    };
    let work = clean.run(args.confirm.is_some(), locks);
    Box::pin(throttle.run(work)).await
}

struct CleanCommand<'a> {
    context: &'a CommandContext,
    operator: Operator,
    rows_outside_the_rule: Option<u64>,
    ignore_columns: Vec<String>,
    versioning: Option<BucketVersioning>,
    pass: CleanPass<'a>,
    missing: MissingIndexes,
}

impl CleanCommand<'_> {
    /// Confirmed, it counts only where nothing may go, to say why.
    async fn run(mut self, is_confirmed: bool, locks: CommandLocks<'_>) -> anyhow::Result<u8> {
        let stop = self.pass.stop;
        if is_confirmed && until_stopped(stop, self.pass.has_candidates()).await? {
            return Box::pin(self.run_pass(locks)).await;
        }
        let eligible = until_stopped(stop, self.pass.removals.count_eligible()).await?;
        refuse_unverified(self.pass.removals.orphans, &eligible)?;
        if eligible.has_objects() {
            until_stopped(stop, self.prepare_preview()).await?;
            let preview = self.build_preview(eligible, true);
            let question = format!("{preview}\nType the bucket's name to remove them: ");
            match ask(self.context.format, &question, stop).await? {
                ConsentReply::Typed(name) => {
                    check_bucket_name(Some(&name), self.pass.removals.bucket)?;
                    return Box::pin(self.run_pass(locks)).await;
                }
                ConsentReply::Unattended => {}
                ConsentReply::Interrupted => return Ok(exit::STOPPED),
            }
        }
        let preview = self.build_preview(eligible, false);
        self.context.format.print(&preview)?;
        Ok(exit::DONE)
    }

    /// The columns that name objects of the bucket, those that nothing asks, and which indexes are missing.
    async fn find_columns(&mut self) -> anyhow::Result<(Vec<ReferringColumn>, UnaskedColumns)> {
        let RemovalLedger { ledger, bucket, .. } = self.pass.removals;
        let columns = path_columns(ledger, bucket).await?;
        self.missing = MissingIndexes::find(ledger, &columns).await?;
        let prefix = if self.pass.removals.orphans {
            ledger.rule().new_prefix()
        } else {
            ledger.rule().old_prefix()
        };
        let unasked = UnaskedColumns::find(ledger, &columns, prefix, &self.ignore_columns).await;
        if self.missing.reads_tables_by_page {
            self.pass.page_rows = LARGE_PAGE_ROWS;
        }
        Ok((columns, unasked))
    }

    async fn read_other_spellings(&mut self, columns: &[ReferringColumn]) -> anyhow::Result<()> {
        let CleanPass {
            removals,
            throttle,
            stop,
            ..
        } = &self.pass;
        let read = OtherSpellings::read(removals.ledger, columns, throttle, stop);
        self.pass.other_spellings = read.await?;
        let spellings = &mut self.pass.other_spellings;
        Ok(spellings.accept_rows_outside(self.rows_outside_the_rule)?)
    }

    async fn prepare_preview(&mut self) -> anyhow::Result<()> {
        let (columns, unasked) = self.find_columns().await?;
        unasked.warn();
        // A preview comes at once, whatever the clean itself will take.
        if !self.missing.reads_tables {
            self.read_other_spellings(&columns).await?;
        }
        Ok(())
    }

    async fn prepare_pass(&mut self, locks: &mut CommandLocks<'_>) -> anyhow::Result<()> {
        let removals = self.pass.removals;
        let way_back = self.pass.restorer.prepare().await;
        way_back.context("what a row names again by then could not be brought back")?;
        locks.exclude_other_runs().await?;
        if removals.orphans {
            // A consumer could be pointing a row at one.
            locks.quiesce_fleet(self.context).await?;
        }
        let removes_from = (removals.bucket, removals.key_prefix());
        locks.shut_out(Some(removes_from)).await?;
        let (columns, unasked) = self.find_columns().await?;
        unasked.refuse()?;
        for index in &self.missing.all {
            tracing::warn!("{index}");
        }
        self.pass.tables = KnownTables::read(removals.ledger, &columns).await?;
        self.read_other_spellings(&columns).await?;
        let read = UnsettledSources::read(removals, self.pass.throttle, self.pass.stop);
        self.pass.unsettled = read.await?;
        let what = if removals.orphans {
            "orphans"
        } else {
            "sources"
        };
        let (ledger, details) = (removals.ledger, format!("{what} in {}", removals.bucket));
        self.operator
            .record(ledger.pool(), ledger.run_id(), "clean", Some(&details))
            .await;
        wait_for_standbys(ledger).await?;
        // As if no two rows shared an object: the progress is an estimate.
        let progress = ledger.run_progress().await?;
        let total = if removals.orphans {
            progress.orphans
        } else {
            progress.moved
        };
        self.pass.throttle.begin_phase("cleaning", total);
        Ok(())
    }

    async fn run_pass(mut self, mut locks: CommandLocks<'_>) -> anyhow::Result<u8> {
        let stop = self.pass.stop;
        until_stopped(stop, self.prepare_pass(&mut locks)).await?;
        let (removals, format) = (self.pass.removals, self.context.format);
        let (run, bucket) = (removals.ledger.run_id(), removals.bucket);
        let mut printer = CleanPrinter::begin_list(format, run, removals.orphans, bucket)?;
        let ended = is_complete(self.pass.run(locks, &mut printer).await);
        // Also of what an error has ended.
        let code = printer.print_summary();
        Ok(if ended? { code? } else { exit::STOPPED })
    }

    fn build_preview(&self, eligible: EligibleMoves, is_prompting: bool) -> CleanPreview<'_> {
        let (removals, spellings) = (&self.pass.removals, &self.pass.other_spellings);
        CleanPreview {
            run: removals.ledger.run_id(),
            done: false,
            orphans: removals.orphans,
            bucket: removals.bucket,
            versioning: self.versioning,
            eligible,
            rows_outside: spellings.rows_outside,
            outside_examples: &spellings.examples,
            missing_indexes: &self.missing,
            is_prompting,
        }
    }
}

/// The operator's word: the name of the bucket, given as a flag or typed.
fn check_bucket_name(given: Option<&str>, bucket: &str) -> Result<(), SettingsError> {
    match given {
        Some(name) if name != bucket => Err(SettingsError::for_setting(
            "--confirm",
            format!("'{name}' is not the bucket that objects would be removed from ('{bucket}')"),
        )),
        _ => Ok(()),
    }
}

/// No source may go before a verify: an error of its own, rather than "nothing to do".
fn refuse_unverified(orphans: bool, eligible: &EligibleMoves) -> Result<(), CommandError> {
    let has_settled = eligible.has_objects() || eligible.young > 0;
    if orphans || has_settled || eligible.unverified == 0 {
        return Ok(());
    }
    Err(CommandError {
        code: exit::CHECK_FAILED,
        reason: format!(
            "no source may go: {} of {} moves have not been verified since they were made, or were not found sound; run feeder verify first, and mend what it lists",
            eligible.unverified, eligible.moves
        ),
    })
}

/// moto's has another root element, for one.
const UNREADABLE_RESPONSE: &str = "UnreadableAnswer";

/// Whether the bucket keeps what is removed; none when we may not ask, or cannot read the response.
async fn read_versioning(
    store: &S3Store,
    side: BucketSide,
) -> Result<Option<BucketVersioning>, StoreError> {
    match retry_object_request(async || store.bucket_versioning(side).await).await {
        Ok(versioning) => Ok(Some(versioning)),
        Err(error) if is_object_error(&error) || error.code() == UNREADABLE_RESPONSE => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_unit() {
        assert_eq!(parse_age("30days"), Ok(Duration::from_hours(30 * 24)));
        assert_eq!(parse_age("0"), Ok(Duration::ZERO));
        assert!(parse_age("30").unwrap_err().contains("unit"));
    }
}
