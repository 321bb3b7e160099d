//! A row that was moved, by the ledger and by the table: what verify and rollback read.

use bucket_brigade_common::companions::{Companion, CompanionCopies};
use bucket_brigade_common::ledger::ApplicationTable;
use bucket_brigade_common::path_rule::PathRule;

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "columns of a query")]
pub(crate) struct MovedRow {
    #[sqlx(rename = "row_id")]
    pub(crate) id: String,
    pub(crate) old_path: String,
    pub(crate) new_path: String,
    pub(crate) etag: String,
    /// The copy's, where it is known.
    pub(crate) size_bytes: Option<i64>,
    /// When it was moved, in microseconds since 1970: a row moved once more is another move.
    pub(crate) moved_micros: i64,
    /// The path it has now; null reads as empty, none when there is no such row.
    pub(crate) current_path: Option<String>,
    pub(crate) is_source_removed: bool,
    /// A clean was killed after it decided to remove the source.
    pub(crate) is_source_in_removal: bool,
    /// The copy stood there when the consumer came: it may be the application's.
    #[sqlx(default)]
    pub(crate) is_found: bool,
    /// The source's ETag as verify saw it.
    #[sqlx(default)]
    pub(crate) source_etag: Option<String>,
    /// Whether it stands for a companion of the image.
    #[sqlx(skip)]
    pub(crate) is_companion: bool,
    #[sqlx(try_from = "String")]
    pub(crate) companions: RecordedCompanions,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecordedCompanions(pub(crate) CompanionCopies);

impl TryFrom<String> for RecordedCompanions {
    type Error = serde_json::Error;

    fn try_from(json: String) -> Result<Self, Self::Error> {
        serde_json::from_str(&json).map(Self)
    }
}

impl MovedRow {
    pub(crate) fn is_current(&self) -> bool {
        self.current_path.as_deref() == Some(&self.new_path)
    }

    /// The move of a companion, by the ETag of its copy.
    pub(crate) fn of_companion(&self, etag: &str) -> Self {
        Self {
            etag: etag.to_owned(),
            size_bytes: None,
            source_etag: None,
            is_companion: true,
            ..self.clone()
        }
    }
}

/// The companions that were copied with a row's image, and the ETags of their copies.
pub(crate) fn recorded_companions<'a>(
    rule: &'a PathRule,
    row: &'a MovedRow,
) -> Vec<(Companion<'a>, &'a str)> {
    let recorded = &row.companions.0;
    let Ok(route) = rule.route_for(&row.old_path) else {
        return Vec::new();
    };
    let companions = rule.companions_of(&route).into_iter();
    let with_etag = companions.filter_map(|companion| {
        let etag = recorded.get(companion.pattern)?;
        Some((companion, etag.as_str()))
    });
    with_etag.collect()
}

/// A move's time as a number that compares exactly.
pub(crate) const MOVED_MICROS: &str = "(extract(epoch FROM m.moved_at) * 1000000)::bigint";

/// The columns of a [`MovedRow`], from `m` and, joined on by [`moved_joins`], `t` and `r`.
pub(crate) fn moved_columns(table: &ApplicationTable) -> String {
    let ApplicationTable { id, path, .. } = table;
    let first = id.first("t");
    format!(
        "m.row_id, m.old_path, m.new_path, m.etag, m.size_bytes, {MOVED_MICROS} AS moved_micros,
         CASE WHEN {first} IS NOT NULL THEN coalesce(t.{path}::text, '') END AS current_path,
         coalesce(r.removed_at >= m.moved_at, false) AS is_source_removed,
         r.removing_at IS NOT NULL AND r.removed_at IS NULL AS is_source_in_removal,
         coalesce(m.companions::text, '{{}}') AS companions"
    )
}

/// `$1` run, `$2` ids.
pub(crate) fn moves_by_id_sql(table: &ApplicationTable) -> String {
    moves_sql(table, "m.row_id = ANY ($2)")
}

/// The same, `$3` the first of them and `$4` the last, as the ledger sorts them: where these are neighbours, the server
/// would rather read a table of some 100,000 moves whole.
pub(crate) fn moves_of_stretch_sql(table: &ApplicationTable) -> String {
    moves_sql(table, "m.row_id BETWEEN $3 AND $4 AND m.row_id = ANY ($2)")
}

fn moves_sql(table: &ApplicationTable, condition: &str) -> String {
    let (columns, joins) = (moved_columns(table), moved_joins(table));
    format!(
        "SELECT {columns}, m.is_found, m.source_etag FROM bucket_brigade.moves m {joins}
          WHERE m.run_id = $1 AND {condition} ORDER BY m.row_id"
    )
}

/// The row and the removal that belong to a move. `OFFSET 0` keeps the planner from reading the whole table for a page.
pub(crate) fn moved_joins(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (ids, is_row) = (id.list(), id.matches("t", "m.row_id"));
    format!(
        "LEFT JOIN LATERAL (SELECT {ids}, {path} FROM {sql} t WHERE {is_row} OFFSET 0) t ON true
         LEFT JOIN bucket_brigade.removals r
                ON r.run_id = m.run_id AND NOT r.is_orphan AND r.path = m.old_path"
    )
}
