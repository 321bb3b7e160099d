//! One line per row of the run, streamed out of one snapshot: how each row ended.

use futures::TryStreamExt;
use futures::stream::BoxStream;

use super::PostgresLedger;
use super::errors::statement_error;
use crate::move_ledger::StatementError;

/// How one row ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct ReportLine {
    /// The row's id.
    pub id: String,
    /// moved, changed, failed, or rolled back.
    pub state: String,
    /// The path it was fed with.
    pub old_path: String,
    /// The path it got; of a changed row the one the application set.
    pub new_path: Option<String>,
    /// The copy's ETag.
    pub etag: Option<String>,
    /// The copy's size in bytes, where it is known: `verify` finds it out.
    pub size_bytes: Option<i64>,
    /// When it ended so, in UTC.
    pub at: String,
    /// Which consumer or operator brought it there.
    pub by: Option<String>,
    /// When the move was last verified, in UTC.
    pub verified_at: Option<String>,
    /// When its source was removed by `clean`, in UTC.
    pub source_removed_at: Option<String>,
    /// The code of its failure, or of what `verify` found wrong.
    pub code: Option<String>,
    /// The same as a sentence.
    pub message: Option<String>,
}

/// `$1` run. A row that was set back and has ended otherwise since is told by its later end.
const SELECT_REPORT: &str = "WITH lines AS (
    SELECT m.row_id, 'moved' AS state, m.old_path, m.new_path, m.etag, m.size_bytes, m.moved_at AS at,
           m.consumer AS by, m.verified_at,
           CASE WHEN r.removed_at >= m.moved_at THEN r.removed_at END AS removed_at, w.code, w.message
      FROM bucket_brigade.moves m
      LEFT JOIN bucket_brigade.removals r ON r.run_id = $1 AND NOT r.is_orphan AND r.path = m.old_path
      LEFT JOIN bucket_brigade.mismatches w ON w.run_id = $1 AND w.row_id = m.row_id
                                                AND w.found_at >= m.moved_at
     WHERE m.run_id = $1
    UNION ALL
    SELECT row_id, 'failed', path, NULL, NULL, NULL, last_seen, NULL, NULL, NULL, code, message
      FROM bucket_brigade.failures WHERE run_id = $1
    UNION ALL
    SELECT row_id, 'changed', old_path, found_path, NULL, NULL, seen_at, NULL, NULL, NULL, NULL,
           CASE WHEN found_path IS NULL THEN 'the application deleted the row' END
      FROM bucket_brigade.changes WHERE run_id = $1
    UNION ALL
    SELECT k.row_id, 'rolled back', k.old_path, k.new_path, k.etag, k.size_bytes, k.rolled_back_at,
           k.operator, NULL, NULL, NULL, NULL
      FROM bucket_brigade.rollbacks k WHERE k.run_id = $1
       AND NOT EXISTS (SELECT 1 FROM bucket_brigade.moves x WHERE x.run_id = $1 AND x.row_id = k.row_id)
       AND NOT EXISTS (SELECT 1 FROM bucket_brigade.failures x WHERE x.run_id = $1 AND x.row_id = k.row_id)
       AND NOT EXISTS (SELECT 1 FROM bucket_brigade.changes x WHERE x.run_id = $1 AND x.row_id = k.row_id)
)
SELECT row_id, state, old_path, new_path, etag, size_bytes,
       to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), by,
       to_char(verified_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'),
       to_char(removed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), code, message
  FROM lines";

type ReportColumns = (
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<i64>,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

fn report_line(columns: ReportColumns) -> ReportLine {
    let (id, state, old_path, new_path, etag, size_bytes, at, by, verified, removed, code, message) =
        columns;
    ReportLine {
        id,
        state,
        old_path,
        new_path,
        etag,
        size_bytes,
        at,
        by,
        verified_at: verified,
        source_removed_at: removed,
        code,
        message,
    }
}

impl PostgresLedger {
    /// The lines of the report, read as they are asked for.
    pub fn report_lines(&self) -> BoxStream<'_, Result<ReportLine, StatementError>> {
        let rows = sqlx::query_as(SELECT_REPORT)
            .bind(self.run_id)
            .fetch(&self.pool);
        Box::pin(
            rows.map_ok(report_line)
                .map_err(|error| statement_error(&error)),
        )
    }
}
