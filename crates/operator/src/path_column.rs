//! How rows are found by their paths: through an index that begins with the path, or by reading the table, a
//! stretch of ids at a time.

use std::collections::HashSet;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    ApplicationTable, IdColumns, LedgerError, PostgresLedger, find_index_with, has_path_index,
    is_statement_timeout, statement_error,
};
use sqlx::AssertSqlSafe;

use crate::statements::retry_query;

/// Rows of a table read by one statement.
const STRETCH_ROWS: i64 = 20_000;

#[derive(Debug, Clone)]
pub(crate) struct PathColumn {
    /// Quoted.
    pub(crate) table: String,
    /// Quoted.
    pub(crate) path: String,
    pub(crate) id: IdColumns,
    /// Whether an index leads to a path.
    pub(crate) is_indexed: bool,
}

/// Which rows of a table are wanted.
pub(crate) struct RowSearch<'a> {
    /// Of a row `t`.
    pub(crate) condition: String,
    /// Whether a partial index holds such rows and no others.
    pub(crate) is_indexed: bool,
    /// `$3` of the condition, where it has that.
    pub(crate) paths: Option<&'a [String]>,
}

#[derive(sqlx::FromRow)]
struct StretchRow {
    id: String,
    path: String,
    is_wanted: bool,
    /// Of the stretch.
    rows: i64,
}

impl PathColumn {
    /// That of the run.
    pub(crate) async fn of_run(ledger: &PostgresLedger) -> Result<Self, LedgerError> {
        let ApplicationTable { sql, path, id, .. } = ledger.table().clone();
        Self::open(ledger, sql, path, id).await
    }

    pub(crate) async fn open(
        ledger: &PostgresLedger,
        table: String,
        path: String,
        id: IdColumns,
    ) -> Result<Self, LedgerError> {
        Ok(Self {
            is_indexed: has_path_index(ledger.pool(), &table, &path).await?,
            table,
            path,
            id,
        })
    }

    /// Whether a partial index holds the rows `t` with a condition, and no others.
    pub(crate) async fn has_index_with(
        &self,
        ledger: &PostgresLedger,
        condition: &str,
    ) -> Result<bool, StatementError> {
        let find = async || find_index_with(ledger.pool(), &self.table, &self.id, condition).await;
        let found = retry_query(find)
            .await
            .map_err(|error| statement_error(&error))?;
        Ok(found.is_some())
    }

    /// Those of the paths that some row has for which a further condition holds. Compared under the column's own
    /// collation, so that its index serves: one that is not deterministic finds more rows than have the path, never
    /// fewer.
    pub(crate) async fn find_paths(
        &self,
        ledger: &PostgresLedger,
        paths: &[String],
        condition: &str,
    ) -> Result<HashSet<String>, StatementError> {
        if self.is_indexed {
            let sql = self.lookup_sql(condition);
            let query_paths = async || {
                let query = sqlx::query_scalar(AssertSqlSafe(sql.clone()));
                query.bind(paths).fetch_all(ledger.pool()).await
            };
            match retry_query(query_paths).await {
                // The planner has taken another way.
                Err(error) if is_statement_timeout(&error) => {}
                found => {
                    let found: Vec<String> = found.map_err(|error| statement_error(&error))?;
                    return Ok(found.into_iter().collect());
                }
            }
        }
        let search = RowSearch {
            condition: self.is_one_of("$3", condition),
            is_indexed: false,
            paths: Some(paths),
        };
        let (mut found, mut cursor) = (HashSet::new(), None);
        while let Some((paths, _)) = self.read_stretch(ledger, &search, &mut cursor).await? {
            found.extend(paths);
        }
        Ok(found)
    }

    /// `$1` paths.
    pub(crate) fn lookup_sql(&self, condition: &str) -> String {
        let Self { table, path, .. } = self;
        format!(
            "SELECT DISTINCT t.{path}::text COLLATE \"C\" FROM {table} t WHERE t.{path}::text = ANY ($1::text[]) AND {condition}"
        )
    }

    /// As a subquery, which is hashed whatever the server expects of a parameter.
    pub(crate) fn is_one_of(&self, paths: &str, condition: &str) -> String {
        let path = &self.path;
        format!("t.{path}::text IN (SELECT unnest({paths}::text[])) AND {condition}")
    }

    /// The wanted paths of the next rows, and how many rows these are; none at the end.
    pub(crate) async fn read_stretch(
        &self,
        ledger: &PostgresLedger,
        search: &RowSearch<'_>,
        cursor: &mut Option<String>,
    ) -> Result<Option<(Vec<String>, usize)>, StatementError> {
        let sql = self.stretch_sql(search, cursor.is_some());
        let read = async || {
            let query = sqlx::query_as(AssertSqlSafe(sql.clone()));
            let query = query.bind(STRETCH_ROWS).bind(&*cursor);
            let query = match search.paths {
                Some(paths) => query.bind(paths),
                None => query,
            };
            query.fetch_all(ledger.pool()).await
        };
        let rows = retry_query(read).await;
        let rows: Vec<StretchRow> = rows.map_err(|error| statement_error(&error))?;
        let Some(last) = rows.last() else {
            return Ok(None);
        };
        *cursor = Some(last.id.clone());
        let count = usize::try_from(last.rows).unwrap_or(0);
        let wanted = rows.into_iter().filter(|row| row.is_wanted);
        Ok(Some((wanted.map(|row| row.path).collect(), count)))
    }

    /// An image that stands in the row itself names no object, and may be large.
    ///
    /// `$1` rows, `$2` cursor, and perhaps `$3` paths. Of a stretch the wanted rows, and its last one. Over
    /// partitions an id need not be unique: all rows with the last one are read.
    pub(crate) fn stretch_sql(&self, search: &RowSearch<'_>, has_cursor: bool) -> String {
        let Self {
            table, path, id, ..
        } = self;
        let (columns, order, keys) = (id.as_keys("t"), id.order("t"), id.keys("stretch"));
        let (row_id, key_order) = (id.keys_as_text("marked"), id.key_order("stretch"));
        let marked_order = id.key_order("marked");
        let after = if has_cursor {
            id.is_after("t", "$2")
        } else {
            "$2::text IS NULL".into()
        };
        let (scope, wanted) = match &*search.condition {
            condition if search.is_indexed => (format!("{after} AND {condition}"), "true"),
            condition => (after, condition),
        };
        format!(
            r#"WITH stretch AS MATERIALIZED (
    SELECT {columns}, CASE WHEN t.{path}::text COLLATE "C" LIKE 'data:%' AND t.{path}::text !~ '\s' THEN left(t.{path}::text, 64)
           ELSE t.{path}::text END COLLATE "C" AS path, {wanted} AS is_wanted FROM {table} t WHERE {scope}
     ORDER BY {order} FETCH FIRST $1 ROWS WITH TIES
), marked AS (
    SELECT {keys}, path, is_wanted, lead(1) OVER (ORDER BY {key_order}) IS NULL AS is_last, count(*) OVER () AS rows
      FROM stretch
)
SELECT {row_id} AS id, coalesce(path, '') AS path, coalesce(is_wanted, false) AS is_wanted, rows
  FROM marked WHERE is_wanted OR is_last ORDER BY {marked_order}"#
        )
    }
}
