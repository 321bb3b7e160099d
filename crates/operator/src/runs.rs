//! `feeder runs`: the migrations that the ledger knows, and how far each is.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{ConnectionPurpose, connect_to_ledger, with_timeout};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::context::CommonArgs;
use crate::history::HistoryOutput;
use crate::limit::RequestedLimits;

/// Sums over processes, never a scan.
const SELECT_RUNS: &str = r#"SELECT r.id, r.name, r.images_table, r.path_column, r.old_prefix, r.new_prefix,
        r.source_bucket, r.destination_bucket, r.options ->> 'ROW_FILTER' AS row_filter, r.in_scope, coalesce(c.moved, 0) AS moved,
        coalesce(c.changed, 0) AS changed, coalesce(c.failed, 0) AS failed,
        CASE WHEN r.paused THEN 'paused' WHEN r.finished_at IS NOT NULL THEN 'finished'
             WHEN EXISTS (SELECT 1 FROM bucket_brigade.workers w WHERE w.run_id = r.id
                             AND w.seen_at > now() - interval '10 seconds') THEN 'at work'
             ELSE 'stopped' END AS state,
        coalesce(w.moved_per_second, 0) AS moved_per_second, coalesce(w.consumers, 0) AS consumers,
        r.paused_by, r.pause_reason, r.rate_limit, r.concurrency_limit,
        to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS started_at
    FROM bucket_brigade.run r LEFT JOIN LATERAL (
        SELECT sum(moved)::bigint AS moved, sum(changed)::bigint AS changed, sum(failed)::bigint AS failed
          FROM bucket_brigade.counters WHERE run_id = r.id) c ON true
    LEFT JOIN LATERAL (
        SELECT sum(moved_per_second) FILTER (WHERE role = 'consumer') AS moved_per_second, count(*) FILTER (WHERE role = 'consumer') AS consumers
          FROM bucket_brigade.workers
         WHERE run_id = r.id AND seen_at > now() - interval '10 seconds') w ON true
    ORDER BY r.id"#;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder runs\n  feeder runs --history\n\nNeeds the database alone. Exit codes: 0 printed; 64 wrong settings; 69 the database cannot be\nreached; 70 unexpected error; 77 a right is missing."
)]
pub struct Args {
    /// Who paused, resumed, limited, retried, rolled back and cleaned, when and why
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct RunsOutput {
    runs: Vec<RunSummary>,
}

#[derive(Serialize, sqlx::FromRow)]
pub(crate) struct RunSummary {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// `paused`, `finished`, `at work` or `stopped`.
    pub(crate) state: String,
    images_table: String,
    path_column: String,
    old_prefix: String,
    new_prefix: String,
    source_bucket: String,
    destination_bucket: String,
    /// Which rows with the old prefix are to move; none for all.
    row_filter: Option<String>,
    /// None until they are counted.
    pub(crate) in_scope: Option<i64>,
    pub(crate) moved: i64,
    pub(crate) changed: i64,
    pub(crate) failed: i64,
    /// Over the last minute.
    pub(crate) moved_per_second: f64,
    pub(crate) consumers: i64,
    pub(crate) paused_by: Option<String>,
    pub(crate) pause_reason: Option<String>,
    #[sqlx(flatten)]
    pub(crate) limits: RequestedLimits,
    started_at: String,
}

impl fmt::Display for RunsOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runs.is_empty() {
            return write!(f, "no runs: a feeder opens one at its first start");
        }
        let lines: Vec<String> = self.runs.iter().map(RunSummary::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Display for RunSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            name,
            state,
            moved,
            changed,
            failed,
            ..
        } = self;
        let of = self
            .in_scope
            .map_or_else(String::new, |rows| format!(" of {rows}"));
        write!(
            f,
            "{name} (run {id}): {state}, {moved}{of} moved, {changed} changed, {failed} failed; {}{} {} (s3://{}) to {} (s3://{}), since {}",
            self.images_table,
            format_filter(self.row_filter.as_deref()),
            self.old_prefix,
            self.source_bucket,
            self.new_prefix,
            self.destination_bucket,
            self.started_at
        )
    }
}

/// A run's filter behind its table.
pub(crate) fn format_filter(filter: Option<&str>) -> String {
    filter.map_or_else(String::new, |filter| {
        format!(" where {},", printable(filter))
    })
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let settings = args.common.parse(SettingsProblems::default())?;
    let purpose = ConnectionPurpose::Command("runs".into());
    let ledger = connect_to_ledger(&settings.migration.database, &purpose).await?;
    match &ledger {
        Some(pool) if args.history => settings.format.print(&HistoryOutput::read(pool).await?)?,
        Some(pool) => settings.format.print(&RunsOutput {
            runs: run_summaries(pool).await?,
        })?,
        None => settings.format.print(&RunsOutput { runs: Vec::new() })?,
    }
    Ok(exit::DONE)
}

/// All runs, the oldest first.
pub(crate) async fn run_summaries(pool: &PgPool) -> Result<Vec<RunSummary>, StatementError> {
    with_timeout(sqlx::query_as(SELECT_RUNS).fetch_all(pool)).await
}
