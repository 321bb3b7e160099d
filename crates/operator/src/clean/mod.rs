//! `feeder clean`: removes what nobody needs any more, and nothing else.
//!
//! **Sources.** A source goes when every move off it is verified since it was made and older than asked for,
//! no row of any table that the ledger knows names it, it still is the object that was verified, and its
//! copy still stands as recorded. **Orphans** (`--orphans`): a copy that lost its row goes when no row
//! names it and it still has the recorded ETag. After a source is gone its moves cannot be undone.
//!
//! ```text
//!  1 mark       what may go, in the ledger                 killed: marked anew next time
//!  2 look       at the object (and its copy)               anything else than recorded: left alone
//!  3 intend     removing_at, in the ledger                 killed: the next clean looks whether it is gone
//!  4 ask        does a row name it? as late as it can be   yes: left alone
//!  5 remove     up to 1,000 at a time, each If-Match       changed meanwhile: S3 leaves it alone
//!  6 ask again  did a row come to name it between 4 and 5? yes: brought back, from its copy or its source
//!  7 end        removed_at, in the ledger and the answer
//! ```
//!
//! **What cannot be excluded.** S3 and Postgres know no common transaction. A row that is set to an old path
//! without anything being uploaded there, by a transaction that commits after 6, names an object that is
//! gone. In a bucket with versions it can be had back; in one without it cannot. The same row set before 6
//! gets its object back within moments.
//!
//! A consumer can find a copy and point a row at it at any moment, so while orphans go the feeder is locked
//! out and the queue must be empty. Sources need neither: no consumer points a row at one.

mod batch;
mod confirm;
mod output;

use std::time::Duration;

use bucket_brigade_common::exit::{self, CommandError};
use bucket_brigade_common::ledger::{AdvisoryLock, EligibleMoves, PostgresLedger, TableAccess};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{BucketSide, BucketVersioning};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::settings::{SettingsProblems, duration_between};
use tokio_util::sync::CancellationToken;

use super::context::{CommandContext, CommonArgs};
use super::locks::{self, QuiescedFleet};
use super::retrying_store;
use super::retrying_store::{is_object_error, retry_object_request};
use batch::ObjectCleaner;
use confirm::RemovalConsent;

const POOL_SIZE: u32 = 4;

/// Ten years: beyond it somebody mistook the unit.
const MAX_AGE: Duration = Duration::from_hours(24 * 3650);

/// Its flags and settings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder clean --older-than 30days                         tells what would go\n  feeder clean --older-than 30days --confirm old-images\n  feeder clean --orphans --confirm new-images\n\nThe name to confirm with is that of the bucket that objects are removed from. On a terminal it is asked for.\nExit codes: 0 done, or nothing to do; 1 refused for want of a verify, or unexpected error; 2 done, but some\nobjects were left alone (the list tells why); 3 stopped before the end; 64 wrong settings, no such run, or another\nname; 69 database, queue or bucket cannot be reached; 75 another command (with --orphans: the feeder or consumers)\nat work; 77 a right is missing."
)]
pub struct Args {
    /// Only what was moved (with --orphans: lost its row) at least so long ago, for example 30days
    #[arg(long, value_name = "DURATION", required_unless_present = "orphans")]
    older_than: Option<String>,
    /// Remove copies whose row vanished, instead of sources
    #[arg(long)]
    orphans: bool,
    /// The name of the bucket that objects are removed from; without it the command tells what would go
    #[arg(long, value_name = "BUCKET")]
    confirm: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// What is to go.
#[derive(Debug, Clone, Copy)]
struct RemovalScope {
    orphans: bool,
    age: Duration,
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let age = duration_between(Duration::ZERO, MAX_AGE);
    let scope = RemovalScope {
        orphans: args.orphans,
        age: problems.parse_value("--older-than", args.older_than, Duration::ZERO, age),
    };
    let context = args.common.into_context(problems)?;
    let bucket = target_bucket(&context, scope.orphans);
    confirm::check_bucket_name(args.confirm.as_deref(), &bucket)?;
    let ledger = context
        .open_ledger_with_pool(TableAccess::Read, POOL_SIZE)
        .await?;
    let lock = locks::acquire_operator_lock(&ledger).await?;
    let store = retrying_store::open(&context).await?;
    ledger
        .mark_removals(scope.orphans, &bucket, scope.age.as_secs_f64())
        .await?;
    let eligible = ledger
        .count_eligible(scope.orphans, scope.age.as_secs_f64())
        .await?;
    refuse_unverified(scope, &eligible)?;
    let versioning = read_versioning(&store, scope.orphans).await?;
    let surroundings = CleanContext {
        context: &context,
        ledger: &ledger,
        store: &store,
        scope,
        bucket,
        eligible,
        versioning,
    };
    surroundings
        .confirm_and_run(args.confirm.is_some(), lock, &stop)
        .await
}

/// What a clean works in.
struct CleanContext<'a> {
    context: &'a CommandContext,
    ledger: &'a PostgresLedger,
    store: &'a S3Store,
    scope: RemovalScope,
    bucket: String,
    eligible: EligibleMoves,
    versioning: Option<BucketVersioning>,
}

impl CleanContext<'_> {
    async fn confirm_and_run(
        &self,
        is_confirmed: bool,
        lock: AdvisoryLock,
        stop: &CancellationToken,
    ) -> anyhow::Result<u8> {
        let consent = match (self.eligible.objects, is_confirmed) {
            (0, _) => RemovalConsent::Withheld,
            (_, true) => RemovalConsent::Given,
            (_, false) => self.ask_consent(stop).await?,
        };
        match consent {
            RemovalConsent::Given => {}
            RemovalConsent::Withheld => {
                self.context.print_output(&self.build_preview())?;
                return Ok(exit::DONE);
            }
            RemovalConsent::Interrupted => return Ok(exit::STOPPED),
        }
        // Only with orphans: a consumer could be pointing a row at one.
        let fleet = if self.scope.orphans {
            Some(QuiescedFleet::quiesce(self.context, self.ledger).await?)
        } else {
            None
        };
        let mut cleaner = ObjectCleaner::new(self)?;
        let is_complete = cleaner.run(lock, fleet, stop).await?;
        let code = cleaner.print_summary()?;
        Ok(if is_complete { code } else { exit::STOPPED })
    }

    async fn ask_consent(&self, stop: &CancellationToken) -> anyhow::Result<RemovalConsent> {
        let preview = self.build_preview().before_prompt();
        confirm::prompt_for_consent(self.context.format, &preview, &self.bucket, stop).await
    }
}

fn target_bucket(context: &CommandContext, orphans: bool) -> String {
    let run = &context.migration.run;
    if orphans {
        run.destination_bucket.clone()
    } else {
        run.source_bucket.clone()
    }
}

/// Nothing may go, because nobody has verified: that is said, rather than "nothing to do".
fn refuse_unverified(scope: RemovalScope, eligible: &EligibleMoves) -> Result<(), CommandError> {
    if scope.orphans || eligible.objects > 0 || eligible.unverified == 0 {
        return Ok(());
    }
    Err(CommandError {
        code: exit::CHECK_FAILED,
        reason: format!(
            "no source may go: {} of {} moves have not been verified since they were made; run feeder verify first",
            eligible.unverified, eligible.moves
        ),
    })
}

/// Whether the bucket keeps what is removed; none when we may not ask.
async fn read_versioning(
    store: &S3Store,
    orphans: bool,
) -> Result<Option<BucketVersioning>, StoreError> {
    let side = if orphans {
        BucketSide::Destination
    } else {
        BucketSide::Source
    };
    match retry_object_request(async || store.bucket_versioning(side).await).await {
        Ok(versioning) => Ok(Some(versioning)),
        Err(error) if is_object_error(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
