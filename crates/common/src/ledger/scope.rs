//! The rows in scope, counted once per run: by the table's statistics first, then stretch by stretch, across
//! the feeders that come and go.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use super::feed::id_stretch;
use super::stretch::BACKGROUND_ROWS;
use super::{ApplicationTable, PostgresLedger, with_timeout};
use crate::ledger::move_ledger::StatementError;

const SELECT_CURSOR: &str = "SELECT r.in_scope IS NOT NULL, f.scope_cursor
    FROM bucket_brigade.run r JOIN bucket_brigade.feed_cursors f ON f.run_id = r.id WHERE r.id = $1";

const SAVE_ESTIMATE: &str = "UPDATE bucket_brigade.run
    SET scope_estimate = coalesce(scope_estimate, $2) WHERE id = $1";

/// `$1` run, `$2` pattern, `$3` rows, `$4` the last row that is counted, null before the first.
///
/// What has moved or changed since the run began was in scope. The lookups are scalar so that no plan reads
/// all moves for them. A stretch whose response was lost is not counted twice: its cursor is another.
fn count_stretch_sql(table: &ApplicationTable, is_first: bool) -> String {
    let ApplicationTable { sql, id, .. } = table;
    let (in_scope, columns) = (table.in_scope("$2"), id.as_keys("t"));
    let (row_id, newest_first) = (id.keys_as_text("s"), id.key_order_desc("s"));
    let stretch = id_stretch(table, is_first, None);
    let ended = |in_table: &str| {
        format!(
            "(SELECT true FROM bucket_brigade.{in_table} e WHERE e.run_id = $1 AND e.row_id = {row_id})"
        )
    };
    let (moved, changed) = (ended("moves"), ended("changes"));
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT {columns}, {in_scope} AS is_in_scope FROM {sql} t {stretch}
), counted AS (
    SELECT count(*) AS rows, count(*) FILTER (WHERE is_in_scope OR {moved} OR {changed}) AS in_scope FROM stretch s
), last AS (
    SELECT (SELECT {row_id} FROM stretch s ORDER BY {newest_first} LIMIT 1) AS id
), advanced AS (
    UPDATE bucket_brigade.feed_cursors f
       SET scope_cursor = coalesce(last.id, f.scope_cursor), scope_counted = f.scope_counted + c.in_scope
      FROM counted c, last WHERE f.run_id = $1 AND f.scope_cursor IS NOT DISTINCT FROM $4
    RETURNING f.scope_counted, c.rows < $3 AS is_end
)
UPDATE bucket_brigade.run r SET in_scope = a.scope_counted
  FROM advanced a WHERE r.id = $1 AND r.in_scope IS NULL AND a.is_end"
    )
}

/// `$1` pattern.
fn estimate_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, path, .. } = table;
    let filter = table.filter.as_ref();
    let filter = filter.map_or(String::new(), |filter| format!("AND {}", filter.sql()));
    format!(
        r#"EXPLAIN SELECT 1 FROM {sql} t WHERE {path}::text COLLATE "C" LIKE $1 ESCAPE '\' {filter}"#
    )
}

impl PostgresLedger {
    /// Counts one stretch more. Returns whether all are counted.
    pub async fn count_scope_stretch(&self) -> Result<bool, StatementError> {
        let query = sqlx::query_as(SELECT_CURSOR).bind(self.run_id);
        let (is_counted, cursor): (bool, Option<String>) =
            with_timeout(query.fetch_one(&self.pool)).await?;
        if is_counted {
            return Ok(true);
        }
        let statement: Arc<str> = count_stretch_sql(&self.table, cursor.is_none()).into();
        let count = |rows: u32| {
            let query = sqlx::query(AssertSqlSafe(statement.clone()))
                .bind(self.run_id)
                .bind(self.scope_pattern())
                .bind(i64::from(rows));
            query.bind(cursor.clone()).execute(&self.pool)
        };
        self.stretch_length.run(BACKGROUND_ROWS, count).await?;
        Ok(false)
    }

    /// What the table's statistics say; the count takes its place.
    pub async fn estimate_scope(&self) -> Result<(), StatementError> {
        let query = sqlx::query_scalar(AssertSqlSafe(estimate_sql(&self.table)));
        let plan = query.bind(self.scope_pattern()).fetch_one(&self.pool);
        let first_line: String = with_timeout(plan).await?;
        let rows = rows_of_plan(&first_line);
        let save = sqlx::query(SAVE_ESTIMATE).bind(self.run_id).bind(rows);
        with_timeout(save.execute(&self.pool)).await.map(drop)
    }
}

/// Of a plan's first line, which is about all of it.
fn rows_of_plan(line: &str) -> Option<i64> {
    let (_, rows) = line.rsplit_once("rows=")?;
    rows.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_how_many_rows() {
        let line = r#"Seq Scan on "rows=7"  (cost=0.00..35.50 rows=1200 width=4)"#;
        assert_eq!(rows_of_plan(line), Some(1200));
        assert_eq!(rows_of_plan("Result"), None);
    }
}
