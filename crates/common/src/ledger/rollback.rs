//! The compare-and-set that sets rows back to their old path, and takes the evidence of the move out of
//! `moves` in the same statement.
//!
//! A row that was set back is to do again: it has no line in `moves`, `changes` or `failures`, and its copy
//! is an orphan until it moves once more. `rollbacks` keeps the evidence.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::AssertSqlSafe;

use super::commit::{path_update_error, stored_path_check};
use super::errors::is_row_lock_timeout;
use super::moved_row::{MOVED_MICROS, MovedColumns, moved_columns, moved_joins};
use super::{ApplicationTable, MovedRow, PostgresLedger, before_timeout, no_answer, with_timeout};
use crate::move_ledger::StatementError;

/// Which moves are to be undone.
#[derive(Debug, Clone, PartialEq)]
pub enum MoveSelection {
    /// All of them.
    All,
    /// Those made since then.
    Since(SystemTime),
    /// Those made within this time until now, by the database's clock.
    Within(Duration),
    /// Those of these rows.
    Ids(Vec<String>),
}

/// A move to undo, and the key of its copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoTarget {
    /// The move.
    pub row: MovedRow,
    /// The copy's key.
    pub destination_key: String,
}

/// `$1` run, `$2` cursor, `$3` size, `$4` what the selection needs.
fn moves_to_undo_sql(
    table: &ApplicationTable,
    selection: &MoveSelection,
    is_first: bool,
) -> String {
    let (columns, joins) = (moved_columns(table), moved_joins(table));
    let after = if is_first { ">=" } else { ">" };
    let selected = match selection {
        MoveSelection::All => "$4::text IS NULL",
        MoveSelection::Since(_) => "m.moved_at >= to_timestamp($4)",
        MoveSelection::Within(_) => "m.moved_at >= now() - make_interval(secs => $4)",
        MoveSelection::Ids(_) => "m.row_id = ANY ($4::text[])",
    };
    format!(
        "SELECT {columns} FROM bucket_brigade.moves m {joins}
          WHERE m.run_id = $1 AND m.row_id {after} $2 AND {selected} ORDER BY m.row_id LIMIT $3"
    )
}

/// `$1` run, `$2` ids, `$3` old paths, `$4` new paths, `$5` `ETags`, `$6` times of the moves, `$7` keys of
/// the copies, `$8` operator. Returns the ids that were set back.
///
/// As on the way there: paths are compared byte by byte, and a locked row is passed over. The copy has no
/// row any more and becomes an orphan; should another row share it, clean finds that row.
fn undo_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let id_type = table.id_type.sql_type();
    let row_lock = table.row_lock;
    let check = stored_path_check(path, "l.old_path");
    format!(
        r#"WITH input AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
        AS i (id, old_path, new_path, etag, moved, destination_key)
), locked AS MATERIALIZED (
    SELECT t.{id} AS key, i.* FROM input i
      JOIN bucket_brigade.moves m ON m.run_id = $1 AND m.row_id = i.id
       AND m.old_path = i.old_path AND m.etag = i.etag AND {MOVED_MICROS} = i.moved
      JOIN {sql} t ON t.{id} = i.id::{id_type}
     WHERE t.{path} COLLATE "C" = i.new_path
     ORDER BY t.{id} {row_lock} OF t SKIP LOCKED
), back AS (
    UPDATE {sql} t SET {path} = l.old_path FROM locked l
     WHERE t.{id} = l.key AND t.{path} COLLATE "C" = l.new_path
    RETURNING l.id, l.new_path, l.etag, l.destination_key, {check}
), undone AS (
    DELETE FROM bucket_brigade.moves m USING back b WHERE m.run_id = $1 AND m.row_id = b.id
    RETURNING m.*
), kept AS (
    INSERT INTO bucket_brigade.rollbacks AS k
           (run_id, row_id, old_path, new_path, etag, size_bytes, moved_at, consumer, operator)
    SELECT run_id, row_id, old_path, new_path, etag, size_bytes, moved_at, consumer, $8 FROM undone
    ON CONFLICT (run_id, row_id) DO UPDATE SET
        old_path = excluded.old_path, new_path = excluded.new_path, etag = excluded.etag,
        size_bytes = excluded.size_bytes, moved_at = excluded.moved_at, consumer = excluded.consumer,
        rolled_back_at = excluded.rolled_back_at, operator = excluded.operator, looked_at = NULL
), orphaned AS (
    INSERT INTO bucket_brigade.orphans AS o (run_id, destination_key, new_path, etag, row_id)
    SELECT DISTINCT ON (destination_key) $1, destination_key, new_path, etag, id FROM back
    ON CONFLICT (run_id, destination_key) DO UPDATE SET
        etag = excluded.etag, row_id = excluded.row_id, seen_at = now()
    RETURNING (o.xmax = 0) AS is_new
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, moved, orphans)
    SELECT $1, $8, -(SELECT count(*) FROM undone), (SELECT count(*) FROM orphaned WHERE is_new)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        moved = c.moved + excluded.moved, orphans = c.orphans + excluded.orphans, seen_at = now()
)
SELECT id FROM back"#
    )
}

/// `$1` run, `$2` cursor, `$3` size.
fn undone_unchecked_sql(table: &ApplicationTable, is_first: bool) -> String {
    let (columns, joins) = (moved_columns(table), moved_joins(table));
    let after = if is_first { ">=" } else { ">" };
    format!(
        "SELECT {columns} FROM bucket_brigade.rollbacks m {joins}
          WHERE m.run_id = $1 AND m.looked_at IS NULL AND m.row_id {after} $2
          ORDER BY m.row_id LIMIT $3"
    )
}

const MARK_CHECKED: &str = "UPDATE bucket_brigade.rollbacks SET looked_at = now()
    WHERE run_id = $1 AND row_id = ANY ($2)";

impl PostgresLedger {
    /// The next rows that were set back, and whose copy nobody has looked at since: whoever set them back was
    /// killed before it could.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn undone_unchecked(
        &self,
        cursor: Option<&str>,
        size: i64,
    ) -> Result<Vec<MovedRow>, StatementError> {
        let sql = undone_unchecked_sql(&self.table, cursor.is_none());
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.run_id);
        let query = query.bind(cursor.unwrap_or_default()).bind(size);
        let found: Vec<MovedColumns> = with_timeout(query.fetch_all(&self.pool)).await?;
        Ok(found.into_iter().map(MovedRow::from_columns).collect())
    }

    /// Writes down that the copies of these rows were looked at after the rows were set back.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn mark_undone_checked(&self, ids: &[String]) -> Result<(), StatementError> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(MARK_CHECKED).bind(self.run_id).bind(ids);
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    /// The next moves of the selection, by row id.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn moves_to_undo(
        &self,
        selection: &MoveSelection,
        cursor: Option<&str>,
        size: i64,
    ) -> Result<Vec<MovedRow>, StatementError> {
        let sql = moves_to_undo_sql(&self.table, selection, cursor.is_none());
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.run_id);
        let query = query.bind(cursor.unwrap_or_default()).bind(size);
        let query = match selection {
            MoveSelection::All => query.bind(None::<&str>),
            MoveSelection::Since(time) => query.bind(epoch_seconds(*time)),
            MoveSelection::Within(time) => query.bind(time.as_secs_f64()),
            MoveSelection::Ids(ids) => query.bind(ids),
        };
        let found: Vec<MovedColumns> = with_timeout(query.fetch_all(&self.pool)).await?;
        Ok(found.into_iter().map(MovedRow::from_columns).collect())
    }

    /// Sets rows back to their old path where they still carry the new one and are not locked. Returns the
    /// ids of those that were.
    ///
    /// # Errors
    /// [`CatalogError::Rejected`] when the database refuses a row; then none was set back.
    pub async fn undo_moves(&self, undos: &[UndoTarget]) -> Result<Vec<String>, StatementError> {
        let column = |of: fn(&UndoTarget) -> &str| undos.iter().map(of).collect::<Vec<&str>>();
        let moved = undos.iter().map(|undo| undo.row.moved_micros);
        let query = sqlx::query_as(AssertSqlSafe(undo_sql(&self.table))).bind(self.run_id);
        let query = query.bind(column(|undo| &undo.row.id));
        let query = query.bind(column(|undo| &undo.row.old_path));
        let query = query.bind(column(|undo| &undo.row.new_path));
        let query = query.bind(column(|undo| &undo.row.etag));
        let query = query.bind(moved.collect::<Vec<_>>());
        let query = query.bind(column(|undo| &undo.destination_key));
        let query = query.bind(&*self.worker);
        let Some(answer) = before_timeout(query.fetch_all(&self.pool)).await else {
            return Err(no_answer());
        };
        let back: Vec<(String,)> = match answer {
            // Passed over like any locked row.
            Err(error) if is_row_lock_timeout(&error) => Vec::new(),
            answer => answer.map_err(|error| path_update_error(&error))?,
        };
        Ok(back.into_iter().map(|(id,)| id).collect())
    }
}

fn epoch_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
