//! Everything a row or a message can end in besides moved: changed, failed, poison.
//!
//! Each statement counts what it really inserted, so that doing it twice counts once.

use sqlx::AssertSqlSafe;

use super::runs::opened_at;
use super::unreadable::failure_applies;
use super::{ApplicationTable, PostgresLedger};
use crate::ledger::move_ledger::{ChangedRow, MoveFailure, OrphanedCopy, PoisonRecord};

/// Copies in the input that no row names. `$1` run. Another delivery may have moved the row since it was read.
fn insert_orphans(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, path, .. } = table;
    let is_row = table.id.matches("t", "i.id");
    format!(
        r#"orphaned AS (
    INSERT INTO bucket_brigade.orphans AS o (run_id, destination_key, etag, row_id, new_path)
    SELECT DISTINCT ON (orphan_key) $1, orphan_key, orphan_etag, id, new_path FROM input i
     WHERE orphan_key IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM {sql} t WHERE {is_row} AND t.{path}::text COLLATE "C" = i.new_path OFFSET 0)
    ON CONFLICT (run_id, destination_key) DO UPDATE SET
        etag = excluded.etag, row_id = excluded.row_id, seen_at = now()
    RETURNING (o.xmax = 0) AS is_new
)"#
    )
}

/// Whether the run is still the one that was opened then, and no other of its number.
fn is_run_sql(opened_at: i64) -> String {
    format!(
        "EXISTS (SELECT 1 FROM bucket_brigade.run r WHERE r.id = $1 AND {} = {opened_at})",
        opened_at!()
    )
}

/// `$1` run, `$2` row of the counters, `$3` ids, `$4` old paths, `$5` found paths, `$6` whether final,
/// `$7` orphans' keys, `$8` orphans' `ETags`, `$9` new paths.
pub(super) fn insert_changes_sql(table: &ApplicationTable, opened_at: i64) -> String {
    let (insert_orphans, is_run) = (insert_orphans(table), is_run_sql(opened_at));
    format!(
        "WITH input AS (
    SELECT * FROM unnest($3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::text[], $9::text[])
        AS i (id, old_path, found_path, is_final, orphan_key, orphan_etag, new_path)
     WHERE {is_run}
), changed AS (
    INSERT INTO bucket_brigade.changes (run_id, row_id, old_path, found_path)
    SELECT $1, id, old_path, found_path FROM input i
     WHERE is_final AND NOT EXISTS (SELECT 1 FROM bucket_brigade.moves m
                                     WHERE m.run_id = $1 AND m.row_id = i.id)
    ON CONFLICT DO NOTHING RETURNING 1
), no_failure AS (
    DELETE FROM bucket_brigade.failures f USING input i
     WHERE f.run_id = $1 AND f.row_id = i.id AND (i.is_final OR f.path = i.old_path) RETURNING 1
), {insert_orphans}
INSERT INTO bucket_brigade.counters AS c (run_id, worker, changed, failed, orphans)
SELECT $1, $2, (SELECT count(*) FROM changed), -(SELECT count(*) FROM no_failure),
       (SELECT count(*) FROM orphaned WHERE is_new)
ON CONFLICT (run_id, worker) DO UPDATE SET
    changed = c.changed + excluded.changed, failed = c.failed + excluded.failed,
    orphans = c.orphans + excluded.orphans, seen_at = now()"
    )
}

/// `$1` run, `$2` row of the counters, `$3` ids, `$4` paths, `$5` codes, `$6` messages, `$7` permanent, `$8` orphans'
/// keys, `$9` orphans' `ETags`, `$10` new paths.
///
/// Only rows that still hold the path are written down: between the look that decided on a failure and
/// this statement another delivery may have moved the row, and its evidence must stay. A move on record
/// for a row that does hold its old path was undone since, and a row has one state only; one that is
/// committed while this statement waits for it is newer than what was seen, and stays. A copy has no row in either
/// case; where one names it after all, clean finds that.
pub(super) fn insert_failures_sql(table: &ApplicationTable, opened_at: i64) -> String {
    let applies = failure_applies(table, "i.id", "i.path");
    let (insert_orphans, is_run) = (insert_orphans(table), is_run_sql(opened_at));
    format!(
        "WITH input AS (
    SELECT * FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[], $8::text[], $9::text[], $10::text[])
        AS i (id, path, code, message, permanent, orphan_key, orphan_etag, new_path)
     WHERE {is_run}
), standing AS (
    SELECT DISTINCT ON (i.id) i.*, earlier.moved_at FROM input i
      LEFT JOIN bucket_brigade.moves earlier ON earlier.run_id = $1 AND earlier.row_id = i.id
     WHERE {applies}
     ORDER BY i.id
), failed AS (
    INSERT INTO bucket_brigade.failures AS f (run_id, row_id, path, code, message, permanent)
    SELECT $1, id, path, code, message, permanent FROM standing
    ON CONFLICT (run_id, row_id) DO UPDATE SET
        path = excluded.path, code = excluded.code, message = excluded.message,
        permanent = excluded.permanent, attempts = f.attempts + 1, last_seen = now()
    RETURNING (f.xmax = 0) AS is_new
), no_change AS (
    DELETE FROM bucket_brigade.changes c USING standing i
     WHERE c.run_id = $1 AND c.row_id = i.id RETURNING 1
), no_move AS (
    DELETE FROM bucket_brigade.moves m USING standing i
     WHERE m.run_id = $1 AND m.row_id = i.id AND m.moved_at = i.moved_at RETURNING 1
), {insert_orphans}
INSERT INTO bucket_brigade.counters AS c (run_id, worker, failed, changed, moved, orphans)
SELECT $1, $2, (SELECT count(*) FROM failed WHERE is_new), -(SELECT count(*) FROM no_change),
       -(SELECT count(*) FROM no_move), (SELECT count(*) FROM orphaned WHERE is_new)
ON CONFLICT (run_id, worker) DO UPDATE SET
    failed = c.failed + excluded.failed, changed = c.changed + excluded.changed,
    moved = c.moved + excluded.moved, orphans = c.orphans + excluded.orphans, seen_at = now()"
    )
}

/// `$1` run, `$2` row of the counters, `$3` message ids, `$4` reasons, `$5` excerpts.
const INSERT_POISON: &str = "WITH recorded AS (
    INSERT INTO bucket_brigade.poison AS p (run_id, message_id, reason, excerpt)
    SELECT DISTINCT ON (id) $1, id, reason, excerpt
      FROM unnest($3::text[], $4::text[], $5::text[]) AS i (id, reason, excerpt) ORDER BY id
    ON CONFLICT (run_id, message_id) DO UPDATE SET
        reason = excluded.reason, attempts = p.attempts + 1, last_seen = now()
    RETURNING (p.xmax = 0) AS is_new
)
INSERT INTO bucket_brigade.counters AS c (run_id, worker, poison)
SELECT $1, $2, (SELECT count(*) FROM recorded WHERE is_new)
ON CONFLICT (run_id, worker) DO UPDATE SET poison = c.poison + excluded.poison, seen_at = now()";

impl PostgresLedger {
    pub(super) async fn write_changed_rows(&self, rows: &[ChangedRow]) -> Result<(), sqlx::Error> {
        let column = |text: fn(&ChangedRow) -> Option<&str>| {
            rows.iter().map(text).collect::<Vec<Option<&str>>>()
        };
        sqlx::query(AssertSqlSafe(self.statements.insert_changes.clone()))
            .bind(self.run_id)
            .bind(self.counter_row())
            .bind(column(|row| Some(row.id.as_str())))
            .bind(column(|row| Some(&row.old_path)))
            .bind(column(|row| row.found_path.as_deref()))
            .bind(rows.iter().map(|row| row.is_final).collect::<Vec<_>>())
            .bind(column(|row| Some(&row.orphan.as_ref()?.destination_key)))
            .bind(column(|row| Some(&row.orphan.as_ref()?.etag)))
            .bind(column(|row| Some(&row.new_path)))
            .execute(&self.pool)
            .await
            .map(drop)
    }

    pub(super) async fn write_failures(&self, failures: &[MoveFailure]) -> Result<(), sqlx::Error> {
        let column =
            |text: fn(&MoveFailure) -> &str| failures.iter().map(text).collect::<Vec<&str>>();
        let orphans = |text: fn(&OrphanedCopy) -> &str| {
            let orphans = failures.iter().map(|failure| failure.orphan.as_ref());
            orphans
                .map(|one| one.map(text))
                .collect::<Vec<Option<&str>>>()
        };
        let new_path = |failure: &MoveFailure| {
            let route = self.rule.route_for(&failure.path).ok();
            route.map(|route| route.new_path)
        };
        let messages = failures.iter();
        let messages: Vec<String> = messages.map(|f| replace_nul(&f.message)).collect();
        let permanent: Vec<bool> = failures.iter().map(|failure| failure.permanent).collect();
        sqlx::query(AssertSqlSafe(self.statements.insert_failures.clone()))
            .bind(self.run_id)
            .bind(self.counter_row())
            .bind(column(|failure| failure.id.as_str()))
            .bind(column(|failure| &failure.path))
            .bind(column(|failure| &failure.code))
            .bind(messages)
            .bind(permanent)
            .bind(orphans(|orphan| &orphan.destination_key))
            .bind(orphans(|orphan| &orphan.etag))
            .bind(failures.iter().map(new_path).collect::<Vec<_>>())
            .execute(&self.pool)
            .await
            .map(drop)
    }

    pub(super) async fn write_poison(&self, records: &[PoisonRecord]) -> Result<(), sqlx::Error> {
        let column = |text: fn(&PoisonRecord) -> &str| {
            let texts = records.iter().map(text);
            texts.map(replace_nul).collect::<Vec<String>>()
        };
        sqlx::query(INSERT_POISON)
            .bind(self.run_id)
            .bind(self.counter_row())
            .bind(column(|record| &record.message_id))
            .bind(column(|record| &record.reason))
            .bind(column(|record| &record.excerpt))
            .execute(&self.pool)
            .await
            .map(drop)
    }
}

/// Text from outside may hold NUL, which Postgres text cannot.
fn replace_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
