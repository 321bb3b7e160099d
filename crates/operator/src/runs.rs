//! `feeder runs`: the migrations that the ledger knows, and how far each is.

use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{pause_description, with_timeout};
use bucket_brigade_common::printable::printable;
use bucket_brigade_common::settings::SettingsProblems;
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::context::CommonArgs;
use crate::history::HistoryOutput;
use crate::limit::RequestedLimits;
use crate::output::write_lines;

/// `$1` run; null for all. Sums over processes, never a scan.
const SELECT_RUNS: &str = r#"SELECT r.id, r.name, r.images_table, array_to_string(parse_ident(r.images_table), '.') AS "table",
        r.path_column, r.old_prefix, r.new_prefix, r.source_bucket, r.destination_bucket,
        r.options ->> 'ROW_FILTER' AS row_filter, f.sweep, coalesce(r.in_scope, r.scope_estimate) AS in_scope, f.fed,
        c.moved, c.changed, c.failed, c.orphans, c.poison, w.moved_per_second, w.consumers,
        CASE WHEN r.paused THEN 'paused' WHEN r.finished_at IS NOT NULL THEN 'finished'
             WHEN w.processes > 0 THEN 'at work' ELSE 'stopped' END AS state,
        r.paused_by, r.pause_reason, r.rate_limit, r.concurrency_limit,
        (SELECT concat_ws(' ', h.action, h.details, 'by', h.operator) || coalesce(': ' || h.reason, '')
           FROM bucket_brigade.history h WHERE h.run_id = r.id ORDER BY h.id DESC LIMIT 1) AS last_action,
        to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS started_at,
        to_char(r.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS finished_at,
        extract(epoch FROM coalesce(r.finished_at, now()) - r.started_at)::double precision AS elapsed_seconds,
        current_setting('transaction_read_only')::boolean AND NOT pg_is_in_recovery() AS is_read_only
    FROM bucket_brigade.run r JOIN bucket_brigade.feed_cursors f ON f.run_id = r.id CROSS JOIN LATERAL (
        SELECT coalesce(sum(moved), 0)::bigint AS moved, coalesce(sum(changed), 0)::bigint AS changed,
               coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(orphans), 0)::bigint AS orphans,
               coalesce(sum(poison), 0)::bigint AS poison
          FROM bucket_brigade.counters WHERE run_id = r.id) c
    CROSS JOIN LATERAL (
        SELECT count(*) AS processes, count(*) FILTER (WHERE role = 'consumer') AS consumers,
               coalesce(sum(moved_per_second) FILTER (WHERE role = 'consumer'), 0) AS moved_per_second
          FROM bucket_brigade.workers WHERE run_id = r.id AND seen_at > now() - interval '10 seconds') w
    WHERE $1::bigint IS NULL OR r.id = $1 ORDER BY r.id"#;

pub(crate) const NO_RUNS: &str = "no runs: a feeder opens one at its first start";

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

/// A run, from its row and the sums over its processes.
#[derive(Debug, Clone, Default, Serialize, sqlx::FromRow)]
pub struct RunSummary {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// `paused`, `finished`, `at work` or `stopped`.
    pub(crate) state: String,
    /// Quoted as in SQL, and as people write it.
    pub(crate) images_table: String,
    pub(crate) table: String,
    pub(crate) path_column: String,
    pub(crate) old_prefix: String,
    pub(crate) new_prefix: String,
    pub(crate) source_bucket: String,
    pub(crate) destination_bucket: String,
    /// Which rows with the old prefix are to move; none for all.
    pub(crate) row_filter: Option<String>,
    pub(crate) sweep: i64,
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub(crate) progress: RunProgress,
    /// Over the last minute.
    pub(crate) moved_per_second: f64,
    /// The time left at this rate; none when it cannot be known.
    #[sqlx(skip)]
    pub(crate) eta: Option<String>,
    pub(crate) consumers: i64,
    /// By whom, and why; none while it is not paused.
    #[sqlx(skip)]
    pub(crate) paused: Option<String>,
    pub(crate) paused_by: Option<String>,
    pub(crate) pause_reason: Option<String>,
    #[sqlx(flatten)]
    pub(crate) limits: RequestedLimits,
    /// What an operator did last, who, and why.
    pub(crate) last_action: Option<String>,
    pub(crate) started_at: String,
    /// When a sweep last found nothing left, in UTC.
    pub(crate) finished_at: Option<String>,
    /// From its start to its end, or to now.
    pub(crate) elapsed_seconds: f64,
    /// The database: nothing that is at work can say so there.
    #[serde(skip)]
    pub(crate) is_read_only: bool,
}

impl fmt::Display for RunsOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, &self.runs, NO_RUNS)
    }
}

impl fmt::Display for RunSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id, name, state, ..
        } = self;
        let RunProgress {
            in_scope,
            moved,
            changed,
            failed,
            ..
        } = self.progress;
        let of = in_scope.map_or_else(String::new, |rows| format!(" of {rows}"));
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

pub(crate) fn format_filter(filter: Option<&str>) -> String {
    filter.map_or_else(String::new, |filter| {
        format!(" where {},", printable(filter))
    })
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let settings = args.common.parse(SettingsProblems::default())?;
    match settings.connect_to_ledger().await? {
        Some(pool) if args.history => settings.format.print(&HistoryOutput::read(&pool).await?)?,
        Some(pool) => settings.format.print(&RunsOutput {
            runs: run_summaries(&pool, None).await?,
        })?,
        None => settings.format.print(&RunsOutput { runs: Vec::new() })?,
    }
    Ok(exit::DONE)
}

/// One run, or all, the oldest first.
pub async fn run_summaries(
    pool: &PgPool,
    run: Option<i64>,
) -> Result<Vec<RunSummary>, StatementError> {
    let query = sqlx::query_as(SELECT_RUNS).bind(run);
    let mut runs: Vec<RunSummary> = with_timeout(query.fetch_all(pool)).await?;
    runs.iter_mut().for_each(RunSummary::complete);
    Ok(runs)
}

impl RunSummary {
    /// Adds what follows from its row.
    fn complete(&mut self) {
        let progress = &mut self.progress;
        if self.finished_at.is_some() {
            // Less than were counted where the application deleted or changed rows before they were fed.
            progress.in_scope = Some(progress.accounted_rows());
        } else {
            let eta = progress.format_eta(self.moved_per_second);
            self.eta = Some(eta).filter(|eta| eta != "N/A");
        }
        let (by, why) = (self.paused_by.clone(), self.pause_reason.clone());
        self.paused = (self.state == "paused").then(|| pause_description(by, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_finished_run_nothing_is_left() {
        let mut run = RunSummary {
            progress: RunProgress {
                in_scope: Some(20),
                moved: 7,
                changed: 2,
                failed: 1,
                ..RunProgress::default()
            },
            moved_per_second: 2.0,
            ..RunSummary::default()
        };
        run.complete();
        assert_eq!(
            (run.progress.in_scope, run.eta.as_deref()),
            (Some(20), Some("5s"))
        );
        run.eta = None;
        run.finished_at = Some("2026-01-01T01:00:00Z".into());
        run.complete();
        assert_eq!((run.progress.in_scope, run.eta), (Some(10), None));
    }
}
