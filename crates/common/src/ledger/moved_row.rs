//! A row that was moved, by the ledger and by the table: what the commands after a migration look at.

use super::ApplicationTable;

/// A row that was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedRow {
    /// The row's id.
    pub id: String,
    /// The path it had.
    pub old_path: String,
    /// The path it got.
    pub new_path: String,
    /// The copy's ETag.
    pub etag: String,
    /// The copy's size in bytes, where it is known.
    pub size_bytes: Option<i64>,
    /// When it was moved, in microseconds since 1970: a row moved once more is another move.
    pub moved_micros: i64,
    /// The path it has now; null reads as empty, none when there is no such row.
    pub current_path: Option<String>,
    /// What clean has done to its source.
    pub source: SourceState,
}

/// What clean has done to a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// Nothing.
    Kept,
    /// It was about to remove it, and did not live to tell.
    InRemoval,
    /// It removed it.
    Removed,
}

/// The columns of [`moved_columns`].
pub(super) type MovedColumns = (
    String,
    String,
    String,
    String,
    Option<i64>,
    i64,
    Option<String>,
    bool,
    bool,
);

impl MovedRow {
    /// Whether the row still names the copy.
    pub fn is_current(&self) -> bool {
        self.current_path.as_deref() == Some(&self.new_path)
    }

    pub(super) fn from_columns(columns: MovedColumns) -> Self {
        let (id, old_path, new_path, etag, size_bytes, moved_micros, current_path, gone, going) =
            columns;
        Self {
            id,
            old_path,
            new_path,
            etag,
            size_bytes,
            moved_micros,
            current_path,
            source: match (gone, going) {
                (true, _) => SourceState::Removed,
                (false, true) => SourceState::InRemoval,
                (false, false) => SourceState::Kept,
            },
        }
    }
}

/// A move's time as a number that compares exactly.
pub(super) const MOVED_MICROS: &str = "(extract(epoch FROM m.moved_at) * 1000000)::bigint";

/// The columns of a [`MovedRow`], from `m` and, joined on by [`joins`], `t` and `r`.
pub(super) fn moved_columns(table: &ApplicationTable) -> String {
    let ApplicationTable { id, path, .. } = table;
    format!(
        "m.row_id, m.old_path, m.new_path, m.etag, m.size_bytes, {MOVED_MICROS},
         CASE WHEN t.{id} IS NOT NULL THEN coalesce(t.{path}::text, '') END,
         coalesce(r.removed_at >= m.moved_at, false),
         r.removing_at IS NOT NULL AND r.removed_at IS NULL"
    )
}

/// The row and the removal that belong to a move.
pub(super) fn moved_joins(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, .. } = table;
    let id_type = table.id_type.sql_type();
    format!(
        "LEFT JOIN {sql} t ON t.{id} = m.row_id::{id_type}
         LEFT JOIN bucket_brigade.removals r
                ON r.run_id = m.run_id AND NOT r.is_orphan AND r.path = m.old_path"
    )
}
