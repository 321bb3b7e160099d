//! The compare-and-set that sets rows back to their old path, and takes the evidence of the move out of
//! `moves` in the same statement.
//!
//! A row that was set back is to move again: it has no line in `moves`, `changes` or `failures`, and its copy
//! is an orphan until it does. `rollbacks` keeps the evidence.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    ApplicationTable, LockClaims, PostgresLedger, holds_locks_sql, new_rules_check,
    path_updates_error, stored_row_check, with_timeout, with_timeout_or_else,
};
use sqlx::AssertSqlSafe;

use crate::moved_row::{MOVED_MICROS, MovedRow, moved_columns, moved_joins, moves_by_id_sql};
use crate::statements::column;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UndoTarget {
    pub(super) row: MovedRow,
    pub(super) destination_key: String,
    /// When it was set back, in seconds since 1970.
    pub(super) undone_at: Option<i64>,
}

/// A row that an earlier rollback has set back.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct UncheckedRow {
    #[sqlx(flatten)]
    pub(super) row: MovedRow,
    pub(super) undone_at: i64,
}

/// `$1` run, `$2` ids, `$3` old paths, `$4` new paths, `$5` `ETags`, `$6` times of the moves, `$7` keys of
/// the copies, `$8` operator, `$9` the locks that are held since before the sources were looked at. Returns the ids
/// that were set back: none where a lock was lost, since a source may be gone by now.
///
/// As on the way there: paths are compared byte by byte, and a locked row is passed over. The copy has no
/// row any more and becomes an orphan; should another row share it, clean finds that row.
pub(super) fn undo_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (columns, order) = (id.as_keys("t"), id.order("t"));
    let (is_row, has_keys) = (id.matches("t", "i.id"), id.matches_keys("t", "l"));
    let row_lock = table.row_lock;
    let check = stored_row_check(table, "l.old_path");
    let is_locked = holds_locks_sql("$9");
    let no_rules = new_rules_check(sql);
    format!(
        r#"WITH input AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
        AS i (id, old_path, new_path, etag, moved, destination_key)
     WHERE {is_locked} AND {no_rules}
), locked AS MATERIALIZED (
    SELECT {columns}, i.* FROM input i
      JOIN bucket_brigade.moves m ON m.run_id = $1 AND m.row_id = i.id
       AND m.old_path = i.old_path AND m.etag = i.etag AND {MOVED_MICROS} = i.moved
      JOIN {sql} t ON {is_row}
     WHERE t.{path} COLLATE "C" = i.new_path
     ORDER BY {order} {row_lock} OF t SKIP LOCKED
), back AS (
    UPDATE {sql} t SET {path} = l.old_path FROM locked l
     WHERE {has_keys} AND t.{path} COLLATE "C" = l.new_path
    RETURNING l.id, l.new_path, l.etag, l.destination_key, {check}
), undone AS (
    DELETE FROM bucket_brigade.moves m USING back b WHERE m.run_id = $1 AND m.row_id = b.id
    RETURNING m.*
), kept AS (
    INSERT INTO bucket_brigade.rollbacks AS k
           (run_id, row_id, old_path, new_path, etag, size_bytes, moved_at, consumer, operator, companions)
    SELECT run_id, row_id, old_path, new_path, etag, size_bytes, moved_at, consumer, $8, companions FROM undone
    ON CONFLICT (run_id, row_id) DO UPDATE SET
        old_path = excluded.old_path, new_path = excluded.new_path, etag = excluded.etag,
        size_bytes = excluded.size_bytes, moved_at = excluded.moved_at, consumer = excluded.consumer,
        rolled_back_at = excluded.rolled_back_at, operator = excluded.operator, looked_at = NULL,
        companions = excluded.companions
), orphaned AS (
    INSERT INTO bucket_brigade.orphans AS o (run_id, destination_key, new_path, etag, row_id)
    -- What was there before the run is the application's.
    SELECT DISTINCT ON (destination_key) $1, destination_key, b.new_path, b.etag, b.id
      FROM back b JOIN undone u ON u.row_id = b.id WHERE NOT u.is_found
    ON CONFLICT (run_id, destination_key) DO UPDATE SET
        etag = excluded.etag, row_id = excluded.row_id, seen_at = now()
    RETURNING (o.xmax = 0) AS is_new
), no_message AS (
    UPDATE bucket_brigade.feed_cursors SET sweep_accounted = sweep_accounted - (SELECT count(*) FROM undone)
     WHERE run_id = $1 AND EXISTS (SELECT 1 FROM undone) RETURNING 1
), reopened AS (
    -- After the cursor's row, as the feeder locks them.
    UPDATE bucket_brigade.run SET finished_at = NULL
     WHERE id = $1 AND finished_at IS NOT NULL AND EXISTS (SELECT 1 FROM no_message)
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, moved, orphans)
    SELECT $1, $8, -(SELECT count(*) FROM undone), (SELECT count(*) FROM orphaned WHERE is_new)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        moved = c.moved + excluded.moved, orphans = c.orphans + excluded.orphans, seen_at = now()
)
SELECT id FROM back"#
    )
}

/// Rows that were set back by a rollback that was killed before it checked their copies once more: a page.
pub(super) fn undone_unchecked_sql(table: &ApplicationTable) -> String {
    let (columns, joins) = (moved_columns(table), moved_joins(table));
    format!(
        "SELECT {columns}, extract(epoch FROM m.rolled_back_at)::bigint AS undone_at FROM bucket_brigade.rollbacks m {joins}
          WHERE m.run_id = $1 AND m.looked_at IS NULL AND m.row_id AFTER $2
          ORDER BY m.row_id LIMIT 100"
    )
}

pub(super) const MARK_CHECKED: &str = "UPDATE bucket_brigade.rollbacks SET looked_at = now()
    WHERE run_id = $1 AND row_id = ANY ($2)";

/// Records that the copies of these rows were checked after the rows were set back.
pub(super) async fn mark_undone_checked(
    ledger: &PostgresLedger,
    ids: &[String],
) -> Result<(), StatementError> {
    if ids.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(MARK_CHECKED).bind(ledger.run_id()).bind(ids);
    with_timeout(query.execute(ledger.pool())).await.map(drop)
}

pub(super) async fn moves_by_id(
    ledger: &PostgresLedger,
    ids: &[String],
) -> Result<Vec<MovedRow>, StatementError> {
    let query = sqlx::query_as(AssertSqlSafe(moves_by_id_sql(ledger.table())));
    let query = query.bind(ledger.run_id()).bind(ids);
    with_timeout(query.fetch_all(ledger.pool())).await
}

/// Sets rows back to their old path where they still carry the new one and are not locked. Returns the ids of
/// those that were; none was where the database refuses a row.
pub(super) async fn undo_moves(
    ledger: &PostgresLedger,
    targets: &[UndoTarget],
    claims: &LockClaims,
) -> Result<Vec<String>, StatementError> {
    let query = || {
        sqlx::query_scalar(AssertSqlSafe(undo_sql(ledger.table())))
            .bind(ledger.run_id())
            .bind(column(targets, |target| target.row.id.as_str()))
            .bind(column(targets, |target| target.row.old_path.as_str()))
            .bind(column(targets, |target| target.row.new_path.as_str()))
            .bind(column(targets, |target| target.row.etag.as_str()))
            .bind(column(targets, |target| target.row.moved_micros))
            .bind(column(targets, |target| target.destination_key.as_str()))
            .bind(ledger.worker())
            .bind(claims)
    };
    let wanted = targets.iter();
    let wanted = wanted.map(|target| (target.row.id.as_str(), target.row.old_path.as_str()));
    // A locked row is passed over.
    let unless_locked = |error| match path_updates_error(&error, targets.len()) {
        Some(error) => Err(error),
        None => Ok(Vec::new()),
    };
    with_timeout_or_else(Box::pin(ledger.set_paths(query, wanted)), unless_locked).await
}

/// Whether the locks are still held.
pub(super) async fn holds_locks(
    ledger: &PostgresLedger,
    claims: &LockClaims,
) -> Result<bool, StatementError> {
    let sql = format!("SELECT {}", holds_locks_sql("$1"));
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(claims);
    with_timeout(query.fetch_one(ledger.pool())).await
}

/// `$1` run, `$2` ids, `$3` moved when, `$4` the name of this process.
pub(super) const SELECT_UNDONE: &str = "SELECT b.row_id FROM bucket_brigade.rollbacks b
    JOIN unnest($2::text[], $3::bigint[]) AS i (id, moved) ON b.row_id = i.id
     AND (extract(epoch FROM b.moved_at) * 1000000)::bigint = i.moved
    WHERE b.run_id = $1 AND b.operator = $4";

/// Those that this process has set back: after a statement whose response was lost.
pub(super) async fn undone_by_us(
    ledger: &PostgresLedger,
    targets: &[UndoTarget],
) -> Result<Vec<String>, StatementError> {
    let query = sqlx::query_scalar(SELECT_UNDONE)
        .bind(ledger.run_id())
        .bind(column(targets, |target| target.row.id.as_str()))
        .bind(column(targets, |target| target.row.moved_micros))
        .bind(ledger.worker());
    with_timeout(query.fetch_all(ledger.pool())).await
}
