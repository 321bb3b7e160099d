//! `feeder runs`: the migrations that the ledger knows, and how far each is.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{ConnectionPurpose, connect_to_ledger, with_timeout};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;

use crate::context::CommonArgs;

/// Sums over processes, never a scan.
const SELECT_RUNS: &str = r#"SELECT r.id, r.name, r.images_table, r.path_column, r.old_prefix, r.new_prefix,
        r.source_bucket, r.destination_bucket, r.options ->> 'ROW_FILTER' AS row_filter, r.in_scope, coalesce(c.moved, 0) AS moved,
        coalesce(c.changed, 0) AS changed, coalesce(c.failed, 0) AS failed,
        CASE WHEN r.paused THEN 'paused' WHEN r.finished_at IS NOT NULL THEN 'finished'
             WHEN EXISTS (SELECT 1 FROM bucket_brigade.workers w WHERE w.run_id = r.id
                             AND w.seen_at > now() - interval '10 seconds') THEN 'at work'
             ELSE 'stopped' END AS state,
        to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS started_at
    FROM bucket_brigade.run r LEFT JOIN LATERAL (
        SELECT sum(moved)::bigint AS moved, sum(changed)::bigint AS changed, sum(failed)::bigint AS failed
          FROM bucket_brigade.counters WHERE run_id = r.id) c ON true
    ORDER BY r.id"#;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder runs\n\nNeeds the database alone. Exit codes: 0 printed; 1 unexpected error; 64 wrong settings; 69 the database\ncannot be reached; 77 a right is missing."
)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct RunsOutput {
    runs: Vec<RunSummary>,
}

#[derive(Serialize, sqlx::FromRow)]
struct RunSummary {
    id: i64,
    name: String,
    /// `paused`, `finished`, `at work` or `stopped`.
    state: String,
    images_table: String,
    path_column: String,
    old_prefix: String,
    new_prefix: String,
    source_bucket: String,
    destination_bucket: String,
    /// Which rows with the old prefix are to move; none for all.
    row_filter: Option<String>,
    /// None until they are counted.
    in_scope: Option<i64>,
    moved: i64,
    changed: i64,
    failed: i64,
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
    let runs = match &ledger {
        Some(pool) => with_timeout(sqlx::query_as(SELECT_RUNS).fetch_all(pool)).await?,
        None => Vec::new(),
    };
    settings.format.print(&RunsOutput { runs })?;
    Ok(exit::DONE)
}
