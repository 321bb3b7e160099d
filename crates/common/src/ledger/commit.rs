//! The compare-and-set that moves rows and writes the evidence of it in one statement.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::QueryScalar;
use tokio::time::Instant;

use super::errors::{batch_error, is_row_lock_timeout, message_of, statement_error};
use super::runs::opened_at;
use super::update_effects::{has_after_triggers, has_update_rules};
use super::{
    ApplicationTable, LedgerError, PostgresLedger, ensure_all_rows_visible, with_timeout,
    with_timeout_or_else,
};
use crate::ledger::move_ledger::{CurrentRow, PendingMove, StatementError};
use crate::path_rule::PathRule;
use crate::row_id::RowId;
use crate::sql::quote_literal;

/// `$1` run, `$2` ids. A null path reads as empty. Removals are found by path, through an index in the default
/// collation, in which other spellings are not equal either.
pub(super) fn read_rows_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (row_id, is_any) = (id.as_text("t"), id.matches_any("t", "$2"));
    format!(
        r#"SELECT {row_id}, coalesce(t.{path}::text, ''),
                EXISTS (SELECT 1 FROM bucket_brigade.failures f
                         WHERE f.run_id = $1 AND f.row_id = {row_id}
                           AND f.path = t.{path} COLLATE "C" AND f.permanent),
                coalesce((SELECT m.etag FROM bucket_brigade.moves m
                           WHERE m.run_id = $1 AND m.row_id = {row_id}
                             AND m.old_path = t.{path} COLLATE "C"),
                         (SELECT r.copy_etag FROM bucket_brigade.removals r
                           WHERE r.run_id = $1 AND NOT r.is_orphan AND r.path = t.{path}::text COLLATE "default")),
                coalesce((SELECT r.fence FROM bucket_brigade.run r WHERE r.id = $1), 0)
           FROM {sql} t WHERE {is_any}"#
    )
}

/// `$1` ids, `$2` old paths, `$3` new paths, `$4` `ETags`, `$5` sizes, `$6` destination keys.
///
/// A row that the application has locked is skipped rather than waited for: one long transaction
/// of the application must not hold up a batch, and a statement that never waits for a row cannot
/// deadlock. Paths are compared byte by byte, whatever the column's collation. A row that a trigger gives
/// another path than the one asked for makes the whole statement fail.
///
/// `condition` is that of the whole statement.
fn update_ctes(table: &ApplicationTable, condition: &str) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let row_lock = table.row_lock;
    let check = stored_row_check(table, "l.new_path");
    let (columns, order) = (id.as_keys("t"), id.order("t"));
    let (is_row, has_keys) = (id.matches("t", "i.id"), id.matches_keys("t", "l"));
    format!(
        r#"input AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
        AS i (id, old_path, new_path, etag, size_bytes, destination_key) {condition}
), locked AS MATERIALIZED (
    SELECT {columns}, i.* FROM input i JOIN {sql} t ON {is_row}
     WHERE t.{path} COLLATE "C" = i.old_path
     ORDER BY {order} {row_lock} OF t SKIP LOCKED
), moved AS (
    UPDATE {sql} t SET {path} = l.new_path FROM locked l
     WHERE {has_keys} AND t.{path} COLLATE "C" = l.old_path
    RETURNING l.id, l.old_path, l.new_path, l.etag, l.size_bytes, l.destination_key, {check}
)"#
    )
}

/// The update alone, without the evidence, for a plan that rolls it back. Returns the ids that could be
/// locked, and of each whether it was set.
pub fn rehearsal_sql(table: &ApplicationTable) -> String {
    format!(
        "WITH {} SELECT l.id, m.id IS NOT NULL FROM locked l LEFT JOIN moved m ON m.id = l.id",
        update_ctes(table, "")
    )
}

/// The parameters of [`update_ctes`], and `$7` run, `$8` worker, `$9` ids whose source is gone, `$10` its row
/// of the counters, `$11` the lowest fence, `$12` ids whose copies were there already, `$13` the lock timeout; for a run
/// with companions `$14` ids and `$15` the `ETags` of their companions. Returns the ids that moved: none where the run was opened at another
/// time, and may have another rule, or its fence was raised.
pub(super) fn commit_sql(table: &ApplicationTable, rule: &PathRule, opened_at: i64) -> String {
    let is_run = format!(
        "WHERE EXISTS (SELECT 1 FROM bucket_brigade.run r
                   WHERE r.id = $7 AND {} = {opened_at} AND r.fence <= $11)
           AND (SELECT set_config('lock_timeout', $13, true)) IS NOT NULL AND {}",
        opened_at!(),
        new_rules_check(&table.sql)
    );
    let update = update_ctes(table, &is_run);
    let (column, value, set) = if rule.companions().is_empty() {
        ("", "", "")
    } else {
        COMPANION_EVIDENCE
    };
    format!(
        "WITH {update}, evidence AS (
    INSERT INTO bucket_brigade.moves AS m
           (run_id, row_id, old_path, new_path, etag, size_bytes, consumer, is_found, moved_at{column})
    SELECT $7, id, old_path, new_path, etag, size_bytes, $8,
           -- A move that was undone, or failed, has left its copy as an orphan.
           id = ANY ($12::text[]) AND NOT EXISTS (
               SELECT 1 FROM bucket_brigade.orphans o
                WHERE o.run_id = $7 AND o.destination_key = moved.destination_key AND o.etag = moved.etag),
           -- No later than its source was removed, so that the two belong together.
           coalesce((SELECT r.removed_at FROM bucket_brigade.removals r
                      WHERE id = ANY ($9::text[]) AND r.run_id = $7 AND NOT r.is_orphan AND r.path = old_path),
                    now()){value}
      FROM moved
    ON CONFLICT (run_id, row_id) DO UPDATE SET
        old_path = excluded.old_path, new_path = excluded.new_path, etag = excluded.etag,
        size_bytes = excluded.size_bytes, moved_at = excluded.moved_at, consumer = excluded.consumer,
        is_found = excluded.is_found AND (m.is_found OR m.etag <> excluded.etag),
        verified_at = NULL, source_etag = NULL, recopied_at = NULL{set}
    RETURNING (m.xmax = 0) AS is_new
), no_failure AS (
    DELETE FROM bucket_brigade.failures f USING moved m
     WHERE f.run_id = $7 AND f.row_id = m.id RETURNING 1
), no_change AS (
    DELETE FROM bucket_brigade.changes c USING moved m
     WHERE c.run_id = $7 AND c.row_id = m.id RETURNING 1
), no_orphan AS (
    DELETE FROM bucket_brigade.orphans o USING moved m
     WHERE o.run_id = $7 AND o.destination_key = m.destination_key RETURNING 1
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, moved, failed, changed, orphans)
    SELECT $7, $10, (SELECT count(*) FROM evidence WHERE is_new),
           -(SELECT count(*) FROM no_failure), -(SELECT count(*) FROM no_change),
           -(SELECT count(*) FROM no_orphan)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        moved = c.moved + excluded.moved, failed = c.failed + excluded.failed,
        changed = c.changed + excluded.changed, orphans = c.orphans + excluded.orphans,
        seen_at = now()
)
SELECT id FROM moved"
    )
}

/// A column of `moves`, its value, and how it is set anew.
const COMPANION_EVIDENCE: (&str, &str, &str) = (
    ", companions",
    ", (SELECT c.companions::jsonb FROM unnest($14::text[], $15::text[]) AS c (id, companions) WHERE c.id = moved.id)",
    ", companions = excluded.companions",
);

/// Fails the statement where the table has got rules that would set something else, or nothing: their actions would be
/// taken for moves, and some crash the server (15.18).
pub fn new_rules_check(table: &str) -> String {
    let has_rules = has_update_rules(&format!("to_regclass({})", quote_literal(table)));
    format!("(CASE WHEN {has_rules} THEN concat('{NEW_RULES}')::integer END) IS NULL")
}

/// What [`stored_row_check`] has the server complain about.
pub const PATH_REWRITTEN: &str = "PathRewritten";

/// The same: with its id the row would lose its evidence.
pub const ID_REWRITTEN: &str = "IdRewritten";

/// The same where triggers fire after the update that were not there when the table was looked at.
const NEW_TRIGGERS: &str = "NewTriggers";

/// The same of rules.
const NEW_RULES: &str = "NewRules";

/// Set in a transaction that looks at the paths again when all triggers have fired.
const CHECK_LATER: &str = "SET LOCAL bucket_brigade.checks_later = 'on'";

/// A column of RETURNING that fails the statement when the path as stored is not the one asked for, or the
/// row has another id than `l`: a cast that cannot be made is the only error that SQL raises without a function.
pub fn stored_row_check(table: &ApplicationTable, wanted: &str) -> String {
    let ApplicationTable { id, path, sql, .. } = table;
    let (is_same, new_id) = (id.matches_keys("t", "l"), id.as_text("t"));
    let new_triggers = if table.has_after_triggers {
        String::new()
    } else {
        let has_triggers = has_after_triggers(&format!("to_regclass({})::oid", quote_literal(sql)));
        format!(
            "WHEN current_setting('bucket_brigade.checks_later', true) IS DISTINCT FROM 'on'
                AND {has_triggers} THEN concat('{NEW_TRIGGERS}')::integer"
        )
    };
    format!(
        r#"CASE {new_triggers} WHEN t.{path}::text COLLATE "C" IS DISTINCT FROM {wanted} THEN
                concat('{PATH_REWRITTEN} to ', t.{path}::text, ' instead of ', {wanted})::integer
            WHEN ({is_same}) IS NOT TRUE THEN concat('{ID_REWRITTEN} to ', {new_id})::integer END"#
    )
}

/// `$1` ids, `$2` new paths: fails in the same way where a trigger that fired after the update has set another, or the
/// row is not there any more: it is locked, so no other transaction can have deleted it.
pub fn later_path_check_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (is_row, first) = (id.matches("t", "l.id"), id.first("t"));
    format!(
        r#"SELECT CASE WHEN {first} IS NULL THEN concat('{ID_REWRITTEN} to another, or deletes the row')::integer
                  ELSE concat('{PATH_REWRITTEN} to ', t.{path}::text, ' instead of ', l.new_path)::integer END
             FROM unnest($1::text[], $2::text[]) AS l (id, new_path) LEFT JOIN {sql} t ON {is_row}
            WHERE t.{path}::text COLLATE "C" IS DISTINCT FROM l.new_path"#
    )
}

/// Has triggers fire now that wait for the end of the transaction.
pub const FIRE_DEFERRED: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// Sorts the error of a statement that sets a path.
pub fn path_update_error(error: &sqlx::Error) -> StatementError {
    name_rewritten_row(statement_error(error))
}

/// Sorts the error of a statement that sets the paths of so many rows; none of a single one that is locked.
pub fn path_updates_error(error: &sqlx::Error, rows: usize) -> Option<StatementError> {
    if !is_row_lock_timeout(error) {
        return Some(name_rewritten_row(batch_error(error, rows)));
    }
    let (code, message) = ("55P03".into(), message_of(error));
    (rows > 1).then_some(StatementError::Rejected { code, message })
}

fn name_rewritten_row(error: StatementError) -> StatementError {
    let StatementError::Rejected { code, message } = &error else {
        return error;
    };
    if code == "22P02" && is_only(message, NEW_RULES) {
        let problem = "the table has rules ON UPDATE by now: disable them for the migration (ALTER TABLE … DISABLE RULE …)";
        return StatementError::Unavailable(problem.into());
    }
    let (code, what) = match &**code {
        "22P02" if message.contains(PATH_REWRITTEN) => (PATH_REWRITTEN, "the path that is set"),
        "22P02" if message.contains(ID_REWRITTEN) => (ID_REWRITTEN, "the row's id (ID_COLUMN)"),
        _ => return error,
    };
    StatementError::Rejected {
        code: code.into(),
        message: format!("a trigger changes {what}: {}", text_of_complaint(message)),
    }
}

/// Whether the server complains of this text, and not of one that holds it.
fn is_only(message: &str, text: &str) -> bool {
    let quotes = ['"', '“', '„', '«', '»', '”', '\''];
    let trimmed = message.trim_end_matches(quotes);
    let before = trimmed.strip_suffix(text);
    before.is_some_and(|before| before.ends_with(quotes))
}

/// From [`PATH_REWRITTEN`] or [`ID_REWRITTEN`] on: what the server says of the cast before that explains nothing.
fn text_of_complaint(message: &str) -> &str {
    let text = [PATH_REWRITTEN, ID_REWRITTEN]
        .iter()
        .find_map(|name| message.split_once(&format!("{name} ")));
    text.map_or(message, |(_, text)| {
        text.trim_end_matches(['"', '“', '»', '”'])
    })
}

impl PostgresLedger {
    /// Commits a batch. Where a lock of the application's was not granted in time a batch is refused, so that
    /// it is halved, and a row alone is passed over like a locked one.
    pub(super) async fn commit_batch(
        &self,
        moves: &[&PendingMove],
    ) -> Result<HashSet<RowId>, StatementError> {
        let unless_locked = |error| {
            if is_row_lock_timeout(&error) {
                self.lock_patience.record_block();
            }
            let refused = path_updates_error(&error, moves.len());
            refused.map_or_else(|| Ok(HashSet::new()), Err)
        };
        let moved = with_timeout_or_else(self.commit_moves(moves), unless_locked).await?;
        if moved.is_empty() && !moves.is_empty() {
            self.ensure_run_exists().await?;
        }
        Ok(moved)
    }

    /// Rows of a run that is gone look as if they were locked.
    async fn ensure_run_exists(&self) -> Result<(), StatementError> {
        let sql = concat!(
            "SELECT EXISTS (SELECT 1 FROM bucket_brigade.run WHERE id = $1 AND ",
            opened_at!(),
            " = $2)"
        );
        let query = sqlx::query_scalar(sql)
            .bind(self.run_id)
            .bind(self.opened_at);
        let is_there: bool = with_timeout(query.fetch_one(&self.pool)).await?;
        let gone = || statement_error(&sqlx::Error::RowNotFound);
        is_there.then_some(()).ok_or_else(gone)
    }

    pub(super) async fn fetch_rows(
        &self,
        ids: &[RowId],
    ) -> Result<Vec<(RowId, CurrentRow)>, sqlx::Error> {
        let ids: Vec<&str> = ids.iter().map(RowId::as_str).collect();
        let rows: Vec<(String, String, bool, Option<String>, i64)> =
            sqlx::query_as(AssertSqlSafe(self.statements.read_rows.clone()))
                .bind(self.run_id)
                .bind(ids)
                .fetch_all(&self.pool)
                .await?;
        let row = |(id, path, failed_for_good, copy_etag, fence)| {
            let row = CurrentRow {
                path,
                has_permanent_failure: failed_for_good,
                copy_etag,
                fence,
            };
            (RowId::from_database(id), row)
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// A policy may have come since the run was taken on: a row that it hides is not gone.
    pub(super) async fn ensure_none_hidden(&self) -> Result<(), StatementError> {
        let checked = ensure_all_rows_visible(&self.pool, &self.table.sql);
        let unavailable = |error: LedgerError| Err(StatementError::Unavailable(error.to_string()));
        with_timeout_or_else(checked, unavailable).await
    }

    pub(super) async fn commit_moves(
        &self,
        moves: &[&PendingMove],
    ) -> Result<HashSet<RowId>, sqlx::Error> {
        let ids_of = |is_meant: fn(&PendingMove) -> bool| {
            let meant = moves.iter().filter(|m| is_meant(m));
            meant.map(|m| m.id.as_str()).collect::<Vec<&str>>()
        };
        let column =
            |text: fn(&PendingMove) -> &str| moves.iter().map(|m| text(m)).collect::<Vec<&str>>();
        let (lock_timeout, began) = (self.lock_patience.timeout(), Instant::now());
        let query = || {
            let query = sqlx::query_scalar(AssertSqlSafe(self.statements.commit.clone()))
                .bind(column(|m| m.id.as_str()))
                .bind(column(|m| &m.old_path))
                .bind(column(|m| &m.new_path))
                .bind(column(|m| &m.etag))
                .bind(moves.iter().map(|m| m.size_bytes).collect::<Vec<_>>())
                .bind(column(|m| &m.destination_key))
                .bind(self.run_id)
                .bind(&*self.worker)
                .bind(ids_of(|m| m.is_source_gone))
                .bind(self.counter_row())
                .bind(moves.iter().map(|m| m.fence).min())
                .bind(ids_of(|m| m.is_found))
                .bind(&lock_timeout);
            if self.rule.companions().is_empty() {
                return query;
            }
            let with = moves.iter().filter(|m| !m.companions.is_empty());
            let (ids, companions): (Vec<&str>, Vec<String>) = with
                .map(|m| (m.id.as_str(), serde_json::json!(m.companions).to_string()))
                .unzip();
            query.bind(ids).bind(companions)
        };
        let wanted = moves.iter().map(|m| (m.id.as_str(), &*m.new_path));
        let moved = self.set_paths(query, wanted).await?;
        if !moved.is_empty() {
            self.lock_patience
                .record_commit(began.elapsed(), moved.len());
        }
        Ok(moved.into_iter().map(RowId::from_database).collect())
    }

    /// Carries out a statement that sets paths and returns the ids of those that it set. Where triggers fire after it,
    /// they fire now, and it fails as a whole where one of them sets another path than is wanted.
    pub async fn set_paths<'q>(
        &self,
        query: impl Fn() -> QueryScalar<'q, Postgres, String, PgArguments>,
        wanted: impl Iterator<Item = (&'q str, &'q str)>,
    ) -> Result<Vec<String>, sqlx::Error> {
        if !self.has_triggers() {
            match query().fetch_all(&self.pool).await {
                // They have come, or were enabled, since the table was looked at.
                Err(error) if message_of(&error).contains(NEW_TRIGGERS) => {
                    self.new_triggers.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        let mut transaction = self.pool.begin().await?;
        if !self.table.has_after_triggers {
            sqlx::raw_sql(CHECK_LATER)
                .execute(&mut *transaction)
                .await?;
        }
        let set = query().fetch_all(&mut *transaction).await?;
        let is_set: HashSet<&str> = set.iter().map(|id| &**id).collect();
        let (ids, paths): (Vec<&str>, Vec<&str>) =
            wanted.filter(|(id, _)| is_set.contains(id)).unzip();
        sqlx::raw_sql(FIRE_DEFERRED)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(AssertSqlSafe(self.statements.check_later.clone()))
            .bind(ids)
            .bind(paths)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(set)
    }

    fn has_triggers(&self) -> bool {
        self.table.has_after_triggers || self.new_triggers.load(Ordering::Relaxed)
    }
}
