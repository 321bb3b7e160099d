//! `feeder retry`: rows that failed are fed again, and dead letters go back to the queue.

use std::fmt;

use anyhow::Context as _;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{PostgresLedger, TableAccess, list_runs, with_timeout};
use bucket_brigade_common::preflight::retry_transient;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::queue::dead_letter::RedriveOutcome;
use bucket_brigade_common::settings::{DatabaseArgs, SettingsProblems};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::command_throttle::CommandThrottle;
use crate::consent::{ask, can_ask};
use crate::context::{CommandContext, CommonArgs};
use crate::history::{Operator, OperatorArgs};
use crate::statements::{page_after, retry_statement};
use crate::status::{CodeCount, failure_counts, live_workers};

/// Rows of one statement, and of one call of the trigger that counts them.
const PAGE_ROWS: i64 = 2000;

/// `$1` run, `$2` code or null for all, `$3` cursor, `$4` size. A row without a failure is fed by the
/// next sweep: the one under way may have passed it, and is not the last.
pub(crate) const DELETE_FAILURES: &str = "WITH page AS MATERIALIZED (
    SELECT row_id FROM bucket_brigade.failures
     WHERE run_id = $1 AND row_id AFTER $3 ORDER BY row_id LIMIT $4
), gone AS (
    DELETE FROM bucket_brigade.failures
     WHERE run_id = $1 AND row_id = ANY (ARRAY(SELECT row_id FROM page)) AND ($2::text IS NULL OR code = $2)
    RETURNING 1
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, failed)
    SELECT $1, 'operator', -(SELECT count(*) FROM gone)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        failed = c.failed + excluded.failed, seen_at = now()
), swept_again AS (
    UPDATE bucket_brigade.feed_cursors SET sweep_fed = sweep_fed + 1,
        sweep_accounted = sweep_accounted - (SELECT count(*) FROM gone) - 1
     WHERE run_id = $1 AND EXISTS (SELECT 1 FROM gone) RETURNING 1
), reopened AS (
    -- After the cursor's row, as the feeder locks them.
    UPDATE bucket_brigade.run SET finished_at = NULL WHERE id = $1 AND EXISTS (SELECT 1 FROM swept_again)
)
SELECT (SELECT max(row_id) FROM page), (SELECT count(*) FROM gone)";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder retry                                 prints what would happen\n  feeder retry --yes\n  feeder retry --code NoSuchKey --yes\n\nExit codes: 0 done; 3 stopped by a signal; 64 wrong settings, or no such run; 69 the database or the\nqueue cannot be reached; 70 unexpected error; 75 requests of a clean may still remove objects; 77 a right\nis missing."
)]
pub struct Args {
    /// Rows that failed with this code only; dead letters then stay where they are, because they do not
    /// hold their code
    #[arg(long, value_name = "CODE", value_parser = NonEmptyStringValueParser::new())]
    code: Option<String>,
    /// Do it; without this flag the command prints what would happen, and on a terminal asks
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct RetryPreview {
    run: i64,
    /// False, as against [`RetryOutput`].
    done: bool,
    rows: u64,
    codes: Vec<CodeCount>,
    /// None where they stay.
    dead_letters: Option<u64>,
    /// Whether other runs have dead letters there too.
    #[serde(skip)]
    is_shared: bool,
    #[serde(skip)]
    is_asking: bool,
}

impl fmt::Display for RetryPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "run {}: {} that failed would be fed again",
            self.run,
            counted(self.rows, "row", "rows")
        )?;
        for CodeCount { code, rows, .. } in &self.codes {
            write!(f, "\n  {rows} failed with {code}")?;
        }
        match self.dead_letters {
            Some(count) if self.is_shared => write!(
                f,
                "\nof about {}, those of this run would go back to the queue",
                count_letters(count)
            )?,
            Some(count) => write!(
                f,
                "\nabout {} would go back to the queue, those of others too",
                count_letters(count)
            )?,
            None => write!(f, "\ndead letters would stay where they are")?,
        }
        if self.is_asking {
            return write!(f, "\nType yes to do it: ");
        }
        write!(f, "\nNothing was changed. To do it, add --yes.")
    }
}

fn count_letters(count: u64) -> String {
    counted(count, "dead letter", "dead letters")
}

#[derive(Serialize)]
struct RetryOutput {
    run: i64,
    done: bool,
    /// Rows taken off the record of failures.
    rows: i64,
    /// Dead letters on their way back.
    dead_letters: u64,
    /// `none`, `started`, `by hand`, or `not asked for`.
    redrive: &'static str,
    /// Whether a feeder is alive, which feeds the rows in its next sweep.
    feeder_is_alive: bool,
}

impl fmt::Display for RetryOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            run,
            rows,
            dead_letters,
            ..
        } = self;
        let next = match (rows, self.feeder_is_alive) {
            (0, _) => "",
            (_, true) => ": the feeder's next sweep has them",
            (_, false) => ": start the feeder again",
        };
        write!(f, "run {run}: {}{next}", describe_retried(*rows))?;
        match self.redrive {
            "started" => {
                let letters = counted(*dead_letters, "dead letter is", "dead letters are");
                write!(f, "\nabout {letters} on the way back to the queue")
            }
            "by hand" => {
                let letters = counted(*dead_letters, "dead letter is", "dead letters are");
                write!(f, "\n{letters} back in the queue")
            }
            "none" => write!(f, "\nno dead letters"),
            _ => write!(
                f,
                "\ndead letters stay where they are (retry without --code)"
            ),
        }
    }
}

fn describe_retried(rows: i64) -> String {
    let rows = counted(rows, "row is no failure", "rows are no failures");
    format!("{rows} any more")
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let limits = args.database.parse(&mut problems);
    let context = args.common.into_context(problems).await?;
    let ledger = context.open_ledger(TableAccess::Read).await?;
    let (run, code) = (ledger.run_id(), args.code.as_deref());
    let is_shared = list_runs(ledger.pool()).await?.len() > 1;
    ledger.ensure_no_copy_in_removal().await?;
    // Before anything is changed: it may not be there.
    let dead_letters = match code {
        Some(_) => None,
        None => Some(count_dead_letters(&context).await?),
    };
    let mut codes = failure_counts(ledger.pool(), Some(run)).await?;
    codes.retain(|one| code.is_none_or(|code| one.code == code));
    let failed = codes.iter().map(|one| one.rows).sum();
    if !args.yes {
        let mut preview = RetryPreview {
            run,
            done: false,
            rows: failed,
            codes,
            dead_letters,
            is_shared,
            is_asking: can_ask(context.format),
        };
        // Ctrl-C ends the command as such.
        let reply = ask(context.format, &preview, &CancellationToken::new()).await?;
        if !reply.is_yes() {
            preview.is_asking = false;
            context.format.print(&preview)?;
            return Ok(exit::DONE);
        }
    }
    let throttle = CommandThrottle::start(&ledger, "retry", limits).await?;
    // Before the work: stopped amid it, what it has done is in the history too.
    let details = describe_work(failed, dead_letters, is_shared);
    let operator = Operator::from(args.operator);
    operator
        .record(ledger.pool(), run, "retry", Some(&details))
        .await;
    // The record first: a dead letter that comes back while its row counts as failed for good would only
    // die again.
    throttle.begin_phase("retrying", failed);
    let work = delete_failures(&ledger, code, &throttle);
    let rows = throttle.run(work).await?;
    let (redrive, dead_letters) = match code {
        Some(_) => ("not asked for", 0),
        None => match redrive_dead_letters(&context, &ledger, is_shared)
            .await
            .with_context(|| {
                format!(
                    "{}, but dead letters stay: run it again",
                    describe_retried(rows)
                )
            })? {
            RedriveOutcome::Empty => ("none", 0),
            RedriveOutcome::Started(count) => ("started", count),
            RedriveOutcome::Resent(count) => ("by hand", count),
        },
    };
    let workers = live_workers(ledger.pool(), Some(run)).await?;
    context.format.print(&RetryOutput {
        run,
        done: true,
        rows,
        dead_letters,
        redrive,
        feeder_is_alive: workers.iter().any(|worker| worker.role == "feeder"),
    })?;
    Ok(exit::DONE)
}

/// What there is to do, for the history. None of the dead letters where they stay.
fn describe_work(rows: u64, dead_letters: Option<u64>, is_shared: bool) -> String {
    match dead_letters {
        Some(letters @ 1..) if is_shared => {
            format!("{rows} failures, its own of {letters} dead letters")
        }
        Some(letters) => format!("{rows} failures, {letters} dead letters"),
        None => format!("{rows} failures"),
    }
}

async fn count_dead_letters(context: &CommandContext) -> anyhow::Result<u64> {
    match context.sqs_queue().await?.dead_letter_queue().await? {
        Some(queue) => {
            let attributes = queue.queue_attributes().await;
            let attributes = attributes.context("the dead-letter queue of the redrive policy")?;
            Ok(attributes.backlog.total_messages())
        }
        None => Ok(0),
    }
}

/// Takes failures off the record, of one code or all, so that their rows are fed again: page by page. Returns how
/// many.
async fn delete_failures(
    ledger: &PostgresLedger,
    code: Option<&str>,
    throttle: &CommandThrottle<'_>,
) -> anyhow::Result<i64> {
    // Ctrl-C ends the command as such.
    let stop = CancellationToken::new();
    let (mut cursor, mut deleted) = (None::<String>, 0);
    loop {
        throttle.acquire(0, &stop).await?;
        let delete = async || {
            let sql = page_after(DELETE_FAILURES, cursor.as_deref());
            let query = sqlx::query_as(sql).bind(ledger.run_id()).bind(code);
            let query = query.bind(cursor.as_deref().unwrap_or_default());
            with_timeout(query.bind(PAGE_ROWS).fetch_one(ledger.pool())).await
        };
        // The last row that was looked at, and how many failures are gone.
        let (last, count): (Option<String>, i64) = throttle.write(retry_statement(delete)).await?;
        deleted += count;
        throttle.advance_by(usize::try_from(count)?);
        if last.is_none() {
            return Ok(deleted);
        }
        cursor = last;
    }
}

/// Where the ledger has one run all dead letters are its own, poison among them.
async fn redrive_dead_letters(
    context: &CommandContext,
    ledger: &PostgresLedger,
    is_shared: bool,
) -> anyhow::Result<RedriveOutcome> {
    let queue = context.sqs_queue().await?;
    let redrive = async || match queue.dead_letter_queue().await? {
        Some(dead_letters) if is_shared => dead_letters.redrive_run(ledger.run_key()).await,
        Some(dead_letters) => dead_letters.redrive_all().await,
        None => Ok(RedriveOutcome::Empty),
    };
    Ok(retry_transient(redrive).await?)
}
