//! One line per row of the run, streamed out of one snapshot: how each row ended.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, statement_error};
use futures::TryStreamExt;
use futures::stream::BoxStream;

/// How one row ended. The order of the fields is that of the columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, sqlx::FromRow)]
pub(super) struct ReportLine {
    id: String,
    /// moved, changed, failed, or rolled back.
    state: String,
    /// The path it was fed with.
    old_path: String,
    /// The path it got; of a changed row the one the application set.
    new_path: Option<String>,
    etag: Option<String>,
    /// The copy's, where it is known: `verify` finds it out.
    size_bytes: Option<i64>,
    /// When it ended so, in UTC.
    at: String,
    /// Which consumer or operator did it.
    by: Option<String>,
    verified_at: Option<String>,
    source_removed_at: Option<String>,
    /// The code of its failure, or of what `verify` found wrong.
    code: Option<String>,
    /// The same as a sentence.
    message: Option<String>,
}

/// The fields of a [`ReportLine`], which an empty report has too.
pub(super) const CSV_HEADER: [&str; 12] = [
    "id",
    "state",
    "old_path",
    "new_path",
    "etag",
    "size_bytes",
    "at",
    "by",
    "verified_at",
    "source_removed_at",
    "code",
    "message",
];

/// `$1` run. A row that was set back and has ended otherwise since is reported by its later end.
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
SELECT row_id AS id, state, old_path, new_path, etag, size_bytes,
       to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS at, by,
       to_char(verified_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS verified_at,
       to_char(removed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS source_removed_at, code, message
  FROM lines";

/// The lines of the report, read as they are asked for.
pub(super) fn report_lines(
    ledger: &PostgresLedger,
) -> BoxStream<'_, Result<ReportLine, StatementError>> {
    let query = sqlx::query_as(SELECT_REPORT).bind(ledger.run_id());
    let rows = query.fetch(ledger.pool());
    Box::pin(rows.map_err(|error| statement_error(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_the_fields() {
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.serialize(ReportLine::default()).unwrap();
        let text = String::from_utf8(csv.into_inner().unwrap()).unwrap();
        assert_eq!(text.lines().next().unwrap(), CSV_HEADER.join(","));
    }
}
