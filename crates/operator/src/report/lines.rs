//! One line per row of the run, page by page: how each row ended.

/// How one row ended. The order of the fields is that of the columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, sqlx::FromRow)]
pub(super) struct ReportLine {
    pub(super) id: String,
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

/// A row that was set back and has ended otherwise since is reported by its later end. The first rows of each table
/// hold all lines of the first rows of them all.
pub(crate) const SELECT_PAGE: &str = r#"WITH moved AS (
    SELECT row_id, 1 AS rank, 'moved' AS state, old_path, new_path, etag, size_bytes, moved_at AS at,
           consumer AS by, verified_at, NULL AS code, NULL AS message
      FROM bucket_brigade.moves WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 1000
), failed AS (
    SELECT row_id, 2, 'failed', path, NULL, NULL, NULL::bigint, last_seen, NULL, NULL::timestamptz, code, message
      FROM bucket_brigade.failures WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 1000
), changed AS (
    SELECT row_id, 3, 'changed', old_path, found_path, NULL, NULL::bigint, seen_at, NULL, NULL::timestamptz, NULL,
           CASE WHEN found_path IS NULL THEN 'the application deleted the row' END
      FROM bucket_brigade.changes WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 1000
), set_back AS (
    SELECT row_id, 4, 'rolled back', old_path, new_path, etag, size_bytes, rolled_back_at, operator,
           NULL::timestamptz, NULL, NULL
      FROM bucket_brigade.rollbacks WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 1000
), lines AS MATERIALIZED (
    SELECT DISTINCT ON (row_id) * FROM (
        TABLE moved UNION ALL TABLE failed UNION ALL TABLE changed UNION ALL TABLE set_back) AS ends
     ORDER BY row_id, rank LIMIT 1000
)
SELECT l.row_id AS id, state, l.old_path, l.new_path, l.etag, l.size_bytes,
       to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at, by,
       to_char(verified_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS verified_at,
       to_char(r.removed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS source_removed_at,
       coalesce(l.code, w.code) AS code, coalesce(l.message, w.message) AS message
  FROM lines l
  LEFT JOIN bucket_brigade.removals r ON l.state = 'moved' AND r.run_id = $1 AND NOT r.is_orphan
                                     AND r.path = l.old_path AND r.removed_at >= l.at
  LEFT JOIN bucket_brigade.mismatches w ON l.state = 'moved' AND w.run_id = $1 AND w.row_id = l.row_id
                                       AND w.found_at >= l.at
 ORDER BY l.row_id"#;

impl ReportLine {
    /// Makes cells that a spreadsheet would take for a formula into text, by an apostrophe before them.
    pub(super) fn disarm_formulas(&mut self) {
        let texts = [&mut self.id, &mut self.old_path].into_iter();
        let optional = [
            &mut self.new_path,
            &mut self.etag,
            &mut self.by,
            &mut self.code,
            &mut self.message,
        ];
        for text in texts.chain(optional.into_iter().flatten()) {
            let is_number = text.parse::<i64>().is_ok();
            if text.starts_with(FORMULA_STARTS) && !is_number {
                text.insert(0, '\'');
            }
        }
    }
}

/// By what a spreadsheet knows a formula, fullwidth forms included. Source: OWASP, "CSV injection".
const FORMULA_STARTS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_become_text_and_numbers_stay() {
        let mut line = ReportLine {
            id: "-5".into(),
            old_path: "=HYPERLINK(\"http://x\")".into(),
            new_path: Some("\t=1+1".into()),
            message: Some("＝1".into()),
            by: Some("a=b".into()),
            ..ReportLine::default()
        };
        line.disarm_formulas();
        assert_eq!(line.id, "-5");
        assert_eq!(line.old_path, "'=HYPERLINK(\"http://x\")");
        assert_eq!(line.new_path.as_deref(), Some("'\t=1+1"));
        assert_eq!(line.message.as_deref(), Some("'＝1"));
        assert_eq!(line.by.as_deref(), Some("a=b"));
    }
}
