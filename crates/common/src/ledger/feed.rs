//! The feeder's side of the ledger: pages of the table, the cursor, and the run in numbers.

use std::ops::ControlFlow;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, Row as _};

use super::feed_index::begin_index_only;
use super::stretch::BACKGROUND_ROWS;
use super::unreadable::failure_applies;
use super::{ApplicationTable, PostgresLedger, with_timeout};
use crate::empty_scope::PathSample;
use crate::ledger::feed_source::{
    CursorPosition, FeedSource, PageReader, QueueShare, RowPage, RunProgress, SweepAccess,
};
use crate::ledger::move_ledger::StatementError;
use crate::row_id::RowId;
use crate::sql::like_prefix;

const SELECT_POSITION: &str =
    "SELECT cursor, sweep, sweep_fed FROM bucket_brigade.feed_cursors WHERE run_id = $1";

/// Made again after a lost response, it counts nothing twice.
const ADVANCE_CURSOR: &str = "UPDATE bucket_brigade.feed_cursors
    SET cursor = $2, fed = fed + $3, sweep_fed = sweep_fed + $3 WHERE run_id = $1 AND cursor IS DISTINCT FROM $2";

const BEGIN_SWEEP: &str = "WITH unfinished AS (
    UPDATE bucket_brigade.run SET finished_at = NULL WHERE id = $1 AND finished_at IS NOT NULL
)
UPDATE bucket_brigade.feed_cursors SET cursor = NULL, sweep_fed = 0, sweep_accounted = (
            SELECT coalesce(sum(moved + changed + failed), 0)::bigint
              FROM bucket_brigade.counters WHERE run_id = $1),
        sweep = sweep + CASE WHEN cursor IS NULL THEN 0 ELSE 1 END WHERE run_id = $1";

/// Not where rows came to be left during the sweep: a retry counts in `sweep_fed`. What the application changed or
/// deleted before it was fed was in scope no more.
const FINISH_RUN: &str = "WITH ended AS (
    UPDATE bucket_brigade.feed_cursors SET cursor = NULL WHERE run_id = $1 AND sweep_fed = 0 RETURNING 1
), finished AS (
    UPDATE bucket_brigade.run SET finished_at = now(), in_scope = CASE WHEN in_scope IS NOT NULL THEN (
            SELECT coalesce(sum(moved + changed + failed), 0)::bigint FROM bucket_brigade.counters WHERE run_id = $1) END
     WHERE id = $1 AND EXISTS (SELECT 1 FROM ended)
)
SELECT EXISTS (SELECT 1 FROM ended)";

/// `$1` run. Each row that was fed in this sweep and has not ended since is
/// a message; some that ended in no way that is counted are not, which the queue's own count bounds.
const SELECT_QUEUE_SHARE: &str = "SELECT
    f.sweep_fed - (coalesce(sum(c.moved + c.changed + c.failed), 0)::bigint - f.sweep_accounted) AS own_messages,
    f.sweep_fed, EXISTS (SELECT 1 FROM bucket_brigade.run WHERE id <> $1) AS is_shared,
    EXISTS (SELECT 1 FROM bucket_brigade.feed_cursors o WHERE o.run_id <> $1 AND o.sweep_fed + o.sweep_accounted > (
        SELECT coalesce(sum(moved + changed + failed), 0) FROM bucket_brigade.counters c WHERE c.run_id = o.run_id
    )) AS others_have_messages,
    EXISTS (SELECT 1 FROM bucket_brigade.workers w
             WHERE w.role = 'consumer' AND w.seen_at > now() - interval '3 seconds') AS has_consumers,
    (SELECT count(DISTINCT w.run_id) FROM bucket_brigade.workers w
      WHERE w.role = 'feeder' AND w.run_id <> $1 AND w.seen_at > now() - interval '10 seconds') AS other_feeders
    FROM bucket_brigade.feed_cursors f LEFT JOIN bucket_brigade.counters c USING (run_id)
    WHERE f.run_id = $1 GROUP BY f.run_id";

const SELECT_PROGRESS: &str = "SELECT coalesce(r.in_scope, r.scope_estimate) AS in_scope, f.fed,
        coalesce(sum(c.moved), 0)::bigint AS moved,
        coalesce(sum(c.changed), 0)::bigint AS changed, coalesce(sum(c.failed), 0)::bigint AS failed,
        coalesce(sum(c.orphans), 0)::bigint AS orphans, coalesce(sum(c.poison), 0)::bigint AS poison
    FROM bucket_brigade.run r JOIN bucket_brigade.feed_cursors f ON f.run_id = r.id
        LEFT JOIN bucket_brigade.counters c ON c.run_id = r.id
    WHERE r.id = $1 GROUP BY r.id, f.run_id";

const SELECT_FAILURE_COUNTS: &str = "SELECT code, sum(failed)::bigint
    FROM bucket_brigade.failure_counts WHERE run_id = $1
    GROUP BY code HAVING sum(failed) > 0 ORDER BY 2 DESC, 1";

/// Id, path where it is wanted, and whether it is.
pub(super) type MarkedRow = (String, String, bool);

pub(super) type PageQuery<'q> = QueryAs<'q, Postgres, MarkedRow, PgArguments>;

pub(super) fn wanted_rows(found: Vec<MarkedRow>) -> Vec<(RowId, String)> {
    let wanted = found.into_iter().filter(|(.., is_wanted)| *is_wanted);
    let row = |(id, path, _)| (RowId::from_database(id), path);
    wanted.map(row).collect()
}

/// From columns of these names.
impl FromRow<'_, PgRow> for RunProgress {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let whole = |count: i64| u64::try_from(count).unwrap_or(0);
        let count = |name: &str| row.try_get(name).map(whole);
        let mut progress = Self {
            in_scope: row.try_get::<Option<i64>, _>("in_scope")?.map(whole),
            fed: count("fed")?,
            moved: count("moved")?,
            changed: count("changed")?,
            failed: count("failed")?,
            orphans: count("orphans")?,
            poison: count("poison")?,
        };
        // Rows that were added since they were counted.
        let accounted = progress.accounted_rows();
        progress.in_scope = progress.in_scope.map(|rows| rows.max(accounted));
        Ok(progress)
    }
}

/// `$3` rows after `$4` cursor, which a sweep's first page has not: `$4 IS NULL OR id > $4` would keep a generic plan
/// from starting in the middle of the index.
///
/// A stretch of fixed length is read and then filtered, rather than a filtered stretch of fixed
/// length: each statement stays small however few rows are left, and no index on the path can tempt
/// the planner to sort the table for a page. With the condition of a partial index, the stretch holds only rows of
/// that index.
pub(super) fn id_stretch(
    table: &ApplicationTable,
    is_first: bool,
    indexed: Option<&str>,
) -> String {
    let after = (!is_first).then(|| table.id.is_after("t", "$4"));
    let conditions: Vec<String> = indexed
        .map(ToOwned::to_owned)
        .into_iter()
        .chain(after)
        .collect();
    let filter = match &*conditions {
        [] => String::new(),
        conditions => format!("WHERE {}", conditions.join(" AND ")),
    };
    format!("{filter} ORDER BY {} LIMIT $3", table.id.order("t"))
}

/// `$1` run: whether a row of a stretch is to be fed; null where it has no path. The lookup is scalar so that no plan
/// reads all failures for it.
pub(super) fn is_wanted(table: &ApplicationTable) -> String {
    let row_id = table.id.keys_as_text("s");
    format!(
        r#"is_in_scope AND (SELECT true FROM bucket_brigade.failures f
            WHERE f.run_id = $1 AND f.row_id = {row_id} AND f.path = s.path COLLATE "C") IS NULL"#
    )
}

/// `$1` run, `$2` pattern, and what the stretch takes.
fn page_sql(table: &ApplicationTable, stretch: &str) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (in_scope, columns, is_wanted) = (table.in_scope("$2"), id.as_keys("t"), is_wanted(table));
    let (keys, key_order) = (id.keys("s"), id.key_order("s"));
    let (marked_id, marked_order) = (id.keys_as_text("m"), id.key_order("m"));
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT {columns}, t.{path}::text AS path, {in_scope} AS is_in_scope FROM {sql} t {stretch}
), marked AS (
    SELECT {keys}, path, coalesce({is_wanted}, false) AS is_wanted,
           lead(1) OVER (ORDER BY {key_order}) IS NULL AS is_last
      FROM stretch s
)
SELECT {marked_id} AS id, CASE WHEN m.is_wanted THEN m.path ELSE '' END, m.is_wanted FROM marked m
 WHERE m.is_wanted OR m.is_last ORDER BY {marked_order}"
    )
}

/// `$1` run, `$2` pattern, `$3` row of the counters, `$4` cursor, `$5` rows. A failure stands for a row that still asks
/// for the move; when the application has changed the row since, the row ended as changed, not as failed.
pub(super) fn settle_stale_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let applies = failure_applies(table, "f.row_id", "f.path");
    let is_row = id.matches("t", "s.row_id");
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
      FROM stale s LEFT JOIN {sql} t ON {is_row}
     WHERE (t.{path}::text COLLATE "C" LIKE $2 ESCAPE '\') IS NOT TRUE
       AND NOT EXISTS (SELECT 1 FROM bucket_brigade.moves m
                        WHERE m.run_id = $1 AND m.row_id = s.row_id)
    ON CONFLICT DO NOTHING RETURNING 1
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, failed, changed)
    SELECT $1, $3, -(SELECT count(*) FROM stale), (SELECT count(*) FROM ended)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        failed = c.failed + excluded.failed, changed = c.changed + excluded.changed, seen_at = now()
)
SELECT max(row_id) FROM stretch"#
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
        let indexed = self.feed_index.condition();
        let stretch = id_stretch(&self.table, cursor.is_none(), indexed.as_deref());
        let query = self.page_query(&stretch).bind(i64::from(size));
        let query = match cursor {
            Some(cursor) => query.bind(cursor.as_str()),
            None => query,
        };
        let found = if indexed.is_some() {
            let mut transaction = begin_index_only(&self.pool).await?;
            // Planned anew for each page: a generic plan does not know how short the page is.
            query.persistent(false).fetch_all(&mut *transaction).await?
        } else {
            query.fetch_all(&self.pool).await?
        };
        let last_id = found
            .last()
            .map(|(id, ..)| RowId::from_database(id.clone()));
        Ok(RowPage {
            rows: wanted_rows(found),
            last_id,
            ..RowPage::default()
        })
    }

    /// A page, but for the parameters of the stretch.
    pub(super) fn page_query<'q>(&self, stretch: &str) -> PageQuery<'q> {
        sqlx::query_as(AssertSqlSafe(page_sql(&self.table, stretch)))
            .bind(self.run_id)
            .bind(self.scope_pattern())
    }

    /// Looks at failures from `cursor` on. Returns the last one.
    async fn settle_stretch(&self, cursor: &str, rows: u32) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(settle_stale_sql(&self.table)))
            .bind(self.run_id)
            .bind(self.scope_pattern())
            .bind(self.counter_row())
            .bind(cursor)
            .bind(i64::from(rows))
            .fetch_one(&self.pool)
            .await
    }

    /// The smallest and the largest id of a table whose ids are whole numbers; none where it has no rows.
    pub async fn id_range(&self) -> Result<Option<(i64, i64)>, StatementError> {
        let (id, table) = (self.table.id.first("t"), &self.table.sql);
        let sql = format!("SELECT min({id})::bigint, max({id})::bigint FROM {table} t");
        let query = sqlx::query_as(AssertSqlSafe(sql));
        let (first, last): (Option<i64>, Option<i64>) =
            with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(first.zip(last))
    }

    async fn run_statement(&self, sql: &'static str) -> Result<(), StatementError> {
        with_timeout(sqlx::query(sql).bind(self.run_id).execute(&self.pool))
            .await
            .map(drop)
    }
}

#[async_trait]
impl PageReader for PostgresLedger {
    async fn prepare(&self) -> Result<SweepAccess, StatementError> {
        self.choose_access().await
    }

    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError> {
        match cursor.and_then(|cursor| self.heap_block(cursor)) {
            Some(block) => self.read_heap_page(block, size).await,
            None => self.read_page_in_halves(cursor, size).await,
        }
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
        with_timeout(query.fetch_optional(&self.pool)).await
    }

    async fn run_progress(&self) -> Result<RunProgress, StatementError> {
        let query = sqlx::query_as(SELECT_PROGRESS).bind(self.run_id);
        with_timeout(query.fetch_one(&self.pool)).await
    }

    async fn has_rows_left(
        &self,
        cursor: Option<&RowId>,
    ) -> Result<ControlFlow<bool, RowId>, StatementError> {
        let start = match cursor {
            Some(cursor) => Some(cursor.clone()),
            None => match with_timeout(self.probe_index()).await {
                Ok(Some(has_rows)) => return Ok(ControlFlow::Break(has_rows)),
                _ => self.heap_start().await?,
            },
        };
        self.wait_for_page().await;
        let page = self.read(start.as_ref(), BACKGROUND_ROWS).await?;
        Ok(match page.last_id {
            Some(last) if page.rows.is_empty() => ControlFlow::Continue(last),
            _ => ControlFlow::Break(!page.rows.is_empty()),
        })
    }

    async fn settle_stale_failures(
        &self,
        cursor: Option<&RowId>,
    ) -> Result<ControlFlow<(), RowId>, StatementError> {
        self.wait_for_page().await;
        let cursor = cursor.map_or("", RowId::as_str);
        let settle = |rows| self.settle_stretch(cursor, rows);
        let last = self.stretch_length.run(BACKGROUND_ROWS, settle).await?;
        Ok(match last {
            Some(last) if last != cursor => ControlFlow::Continue(RowId::from_database(last)),
            _ => ControlFlow::Break(()),
        })
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

    async fn finish_run(&self) -> Result<bool, StatementError> {
        let query = sqlx::query_scalar(FINISH_RUN).bind(self.run_id);
        with_timeout(query.fetch_one(&self.pool)).await
    }
}
