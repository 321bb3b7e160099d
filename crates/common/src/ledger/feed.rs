//! The feeder's side of the ledger: pages of the table, the cursor, and the run in numbers.

use async_trait::async_trait;
use sqlx::AssertSqlSafe;

use super::stretch::BACKGROUND_ROWS;
use super::unreadable::failure_applies;
use super::{ApplicationTable, PostgresLedger, with_timeout};
use crate::empty_scope::PathSample;
use crate::ledger::feed_source::{CursorPosition, FeedSource, QueueShare, RowPage, RunProgress};
use crate::ledger::move_ledger::StatementError;
use crate::row_id::RowId;
use crate::sql::like_prefix;

const SELECT_POSITION: &str =
    "SELECT cursor, sweep, sweep_fed FROM bucket_brigade.run WHERE id = $1";

const ADVANCE_CURSOR: &str = "UPDATE bucket_brigade.run
    SET cursor = $2, fed = fed + $3, sweep_fed = sweep_fed + $3 WHERE id = $1";

const BEGIN_SWEEP: &str = "UPDATE bucket_brigade.run
    SET cursor = NULL, sweep_fed = 0, finished_at = NULL, sweep_accounted = (
            SELECT coalesce(sum(moved + changed + failed), 0)::bigint
              FROM bucket_brigade.counters WHERE run_id = $1),
        sweep = sweep + CASE WHEN cursor IS NULL THEN 0 ELSE 1 END WHERE id = $1";

const FINISH_RUN: &str = "UPDATE bucket_brigade.run
    SET finished_at = now(), cursor = NULL, sweep_fed = 0 WHERE id = $1";

/// `$1` run. Null where the ledger has no other run. Each row that was fed in this sweep and has not ended since is
/// a message; some that ended in no way that is counted are not, which the queue's own count bounds.
const SELECT_QUEUE_SHARE: &str = "SELECT
    r.sweep_fed - (coalesce(sum(c.moved + c.changed + c.failed), 0)::bigint - r.sweep_accounted) AS own_messages,
    (SELECT count(DISTINCT w.run_id) FROM bucket_brigade.workers w
      WHERE w.role = 'feeder' AND w.run_id <> $1 AND w.seen_at > now() - interval '10 seconds') AS other_feeders
    FROM bucket_brigade.run r LEFT JOIN bucket_brigade.counters c ON c.run_id = r.id
    WHERE r.id = $1 AND EXISTS (SELECT 1 FROM bucket_brigade.run WHERE id <> $1) GROUP BY r.id";

const SELECT_PROGRESS: &str = "SELECT coalesce(r.in_scope, r.scope_estimate) AS in_scope, r.fed,
        coalesce(sum(c.moved), 0)::bigint AS moved,
        coalesce(sum(c.changed), 0)::bigint AS changed, coalesce(sum(c.failed), 0)::bigint AS failed,
        coalesce(sum(c.orphans), 0)::bigint AS orphans, coalesce(sum(c.poison), 0)::bigint AS poison
    FROM bucket_brigade.run r LEFT JOIN bucket_brigade.counters c ON c.run_id = r.id
    WHERE r.id = $1 GROUP BY r.id";

const SELECT_FAILURE_COUNTS: &str = "SELECT code, sum(failed)::bigint
    FROM bucket_brigade.failure_counts WHERE run_id = $1
    GROUP BY code HAVING sum(failed) > 0 ORDER BY 2 DESC, 1 LIMIT 10";

/// A row of [`SELECT_PROGRESS`].
#[derive(sqlx::FromRow)]
struct ProgressRow {
    in_scope: Option<i64>,
    fed: i64,
    moved: i64,
    changed: i64,
    failed: i64,
    orphans: i64,
    poison: i64,
}

/// What a sweep would feed. `$1` run, `$2` pattern.
fn feed_condition(path: &str, id: &str) -> String {
    format!(
        r#"{path} COLLATE "C" LIKE $2 ESCAPE '\' AND NOT EXISTS (
            SELECT 1 FROM bucket_brigade.failures f
             WHERE f.run_id = $1 AND f.row_id = {id}::text AND f.path = {path} COLLATE "C")"#
    )
}

/// `$1` run, `$2` pattern, `$3` size and, for all but a sweep's first page, `$4` cursor.
///
/// A stretch of fixed length is read and then filtered, rather than a filtered stretch of fixed
/// length: each statement stays small however few rows are left, and no index on the path can tempt
/// the planner to sort the table for a page. The two forms exist because `$4 IS NULL OR id > $4`
/// would keep a generic plan from starting in the middle of the index.
pub(super) fn page_sql(table: &ApplicationTable, is_first: bool) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let id_type = table.id_type.sql_type();
    let wanted = feed_condition("s.path", "s.key");
    let after = if is_first {
        String::new()
    } else {
        format!("WHERE t.{id} > $4::text::{id_type}")
    };
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT t.{id} AS key, t.{path}::text AS path FROM {sql} t {after} ORDER BY t.{id} LIMIT $3
), marked AS (
    SELECT key, path, coalesce({wanted}, false) AS is_wanted,
           lead(key) OVER (ORDER BY key) IS NULL AS is_last
      FROM stretch s
)
SELECT m.key::text AS id, CASE WHEN m.is_wanted THEN m.path ELSE '' END, m.is_wanted FROM marked m
 WHERE m.is_wanted OR m.is_last ORDER BY m.key"
    )
}

/// `$1` run, `$2` pattern, `$3` row of the counters, `$4` cursor, `$5` rows. A failure stands for a row that still asks
/// for the move; when the application has changed the row since, the row ended as changed, not as failed.
pub(super) fn settle_stale_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let id_type = table.id_type.sql_type();
    let applies = failure_applies(table, "f.row_id", "f.path");
    format!(
        r#"WITH stretch AS MATERIALIZED (
    SELECT row_id FROM bucket_brigade.failures
     WHERE run_id = $1 AND row_id >= $4 ORDER BY row_id LIMIT $5
), stale AS (
    DELETE FROM bucket_brigade.failures f USING stretch s
     WHERE f.run_id = $1 AND f.row_id = s.row_id AND NOT {applies}
    RETURNING f.row_id, f.path
), ended AS (
    INSERT INTO bucket_brigade.changes (run_id, row_id, old_path, found_path)
    SELECT $1, s.row_id, s.path, t.{path}::text
      FROM stale s LEFT JOIN {sql} t ON t.{id} = s.row_id::{id_type}
     WHERE (t.{path} COLLATE "C" LIKE $2 ESCAPE '\') IS NOT TRUE
       AND NOT EXISTS (SELECT 1 FROM bucket_brigade.moves m
                        WHERE m.run_id = $1 AND m.row_id = s.row_id)
    ON CONFLICT DO NOTHING RETURNING 1
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, failed, changed)
    SELECT $1, $3, -(SELECT count(*) FROM stale), (SELECT count(*) FROM ended)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        failed = c.failed + excluded.failed, changed = c.changed + excluded.changed, seen_at = now()
)
SELECT (SELECT max(row_id) FROM stretch), (SELECT count(*) FROM stale)"#
    )
}

impl PostgresLedger {
    pub(super) fn scope_pattern(&self) -> String {
        like_prefix(self.rule.old_prefix())
    }

    pub(super) async fn read_page(
        &self,
        cursor: Option<&RowId>,
        size: u32,
    ) -> Result<RowPage, sqlx::Error> {
        let statement = match cursor {
            Some(_) => &self.statements.page_after,
            None => &self.statements.first_page,
        };
        let mut query = sqlx::query_as(AssertSqlSafe(statement.clone()))
            .bind(self.run_id)
            .bind(self.scope_pattern())
            .bind(i64::from(size));
        if let Some(cursor) = cursor {
            query = query.bind(cursor.as_str());
        }
        let found: Vec<(String, String, bool)> = query.fetch_all(&self.pool).await?;
        let last = found
            .last()
            .map(|(id, ..)| RowId::from_database(id.clone()));
        let wanted = found.into_iter().filter(|(.., is_wanted)| *is_wanted);
        let rows = wanted
            .map(|(id, path, _)| (RowId::from_database(id), path))
            .collect();
        Ok(RowPage {
            rows,
            last_id: last,
            ..RowPage::default()
        })
    }

    /// Looks at failures from `cursor` on. Returns the last one, and how many were settled.
    async fn settle_stretch(
        &self,
        cursor: &str,
        rows: u32,
    ) -> Result<(Option<String>, i64), sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(self.statements.settle_stale.clone()))
            .bind(self.run_id)
            .bind(self.scope_pattern())
            .bind(self.counter_row())
            .bind(cursor)
            .bind(i64::from(rows))
            .fetch_one(&self.pool)
            .await
    }

    async fn read_progress(&self) -> Result<RunProgress, sqlx::Error> {
        let row: ProgressRow = sqlx::query_as(SELECT_PROGRESS)
            .bind(self.run_id)
            .fetch_one(&self.pool)
            .await?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(RunProgress {
            in_scope: row.in_scope.map(count),
            fed: count(row.fed),
            moved: count(row.moved),
            changed: count(row.changed),
            failed: count(row.failed),
            orphans: count(row.orphans),
            poison: count(row.poison),
        })
    }

    async fn run_statement(&self, sql: &'static str) -> Result<(), StatementError> {
        with_timeout(sqlx::query(sql).bind(self.run_id).execute(&self.pool))
            .await
            .map(drop)
    }
}

#[async_trait]
impl FeedSource for PostgresLedger {
    async fn cursor_position(&self) -> Result<CursorPosition, StatementError> {
        let query = sqlx::query_as(SELECT_POSITION).bind(self.run_id);
        let (cursor, sweep, sweep_fed): (Option<String>, i64, i64) =
            with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(CursorPosition {
            cursor: cursor.map(RowId::from_database),
            sweep: u64::try_from(sweep).unwrap_or(0),
            sweep_fed: u64::try_from(sweep_fed).unwrap_or(0),
        })
    }

    async fn next_page(
        &self,
        cursor: Option<&RowId>,
        size: u32,
    ) -> Result<RowPage, StatementError> {
        self.read_page_in_halves(cursor, size).await
    }

    async fn advance_cursor(&self, cursor: &RowId, fed: u64) -> Result<(), StatementError> {
        let query = sqlx::query(ADVANCE_CURSOR)
            .bind(self.run_id)
            .bind(cursor.as_str())
            .bind(i64::try_from(fed).unwrap_or(i64::MAX));
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    async fn begin_sweep(&self) -> Result<(), StatementError> {
        self.run_statement(BEGIN_SWEEP).await
    }

    async fn queue_share(&self) -> Result<Option<QueueShare>, StatementError> {
        let query = sqlx::query_as(SELECT_QUEUE_SHARE).bind(self.run_id);
        let found: Option<(i64, i64)> = with_timeout(query.fetch_optional(&self.pool)).await?;
        Ok(found.map(|(own_messages, other_feeders)| QueueShare {
            own_messages: u64::try_from(own_messages).unwrap_or(0),
            other_feeders: u64::try_from(other_feeders).unwrap_or(0),
        }))
    }

    async fn run_progress(&self) -> Result<RunProgress, StatementError> {
        with_timeout(self.read_progress()).await
    }

    async fn has_rows_left(&self) -> Result<bool, StatementError> {
        let mut cursor = None;
        loop {
            let page = self.next_page(cursor.as_ref(), BACKGROUND_ROWS).await?;
            if !page.rows.is_empty() || page.last_id.is_none() {
                return Ok(!page.rows.is_empty());
            }
            cursor = page.last_id;
        }
    }

    async fn settle_stale_failures(&self) -> Result<u64, StatementError> {
        let (mut cursor, mut settled) = (String::new(), 0);
        loop {
            let settle = |rows| self.settle_stretch(&cursor, rows);
            let (last, count) = self.stretch_length.run(BACKGROUND_ROWS, settle).await?;
            settled += u64::try_from(count).unwrap_or(0);
            match last {
                Some(last) if last != cursor => cursor = last,
                _ => return Ok(settled),
            }
        }
    }

    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, StatementError> {
        let query = sqlx::query_as(SELECT_FAILURE_COUNTS).bind(self.run_id);
        let codes: Vec<(String, i64)> = with_timeout(query.fetch_all(&self.pool)).await?;
        let count = |(code, rows)| (code, u64::try_from(rows).unwrap_or(0));
        Ok(codes.into_iter().map(count).collect())
    }

    async fn sample_paths(&self) -> Result<PathSample, StatementError> {
        super::sample_paths(&self.pool, &self.table, &self.rule).await
    }

    async fn finish_run(&self) -> Result<(), StatementError> {
        self.run_statement(FINISH_RUN).await
    }
}
