//! Some paths of the column, for a run that has no row in scope.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::errors::{is_statement_timeout, statement_error};
use super::{ApplicationTable, with_timeout};
use crate::empty_scope::PathSample;
use crate::ledger::move_ledger::StatementError;
use crate::path_rule::PathRule;
use crate::sql::like_prefix;

/// How long paths under another prefix are looked for, where the table's ends hold none.
const SEARCH_TIMEOUT: &str = "SET LOCAL statement_timeout = '10s'";

/// `$1` pattern of the old paths. The first thousands of rows and the last ones: newer rows may look different.
fn table_ends_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (keys, first, last) = (id.as_keys("t"), id.order("t"), id.order_desc("t"));
    let left_out = table.is_left_out("$1");
    let row =
        format!("SELECT {keys}, t.{path}::text AS path, {left_out} AS is_left_out FROM {sql} t");
    format!(
        "SELECT left(s.path, 1000), s.is_left_out FROM (
            ({row} ORDER BY {first} LIMIT 2000) UNION ({row} ORDER BY {last} LIMIT 2000)) s"
    )
}

/// `$1` run, `$2` old prefix: old paths of rows that moved, from both ends, and of the last that are to.
pub(super) fn copyable_paths_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let last = id.order_desc("t");
    format!(
        r#"WITH last AS MATERIALIZED (SELECT t.{path}::text AS path FROM {sql} t ORDER BY {last} LIMIT 1000)
        (SELECT old_path FROM bucket_brigade.moves WHERE run_id = $1 ORDER BY row_id LIMIT 3)
        UNION ALL (SELECT old_path FROM bucket_brigade.moves WHERE run_id = $1 ORDER BY row_id DESC LIMIT 3)
        UNION ALL (SELECT path FROM last WHERE starts_with(path COLLATE "C", $2) LIMIT 3)"#
    )
}

/// `$1` pattern of the new paths.
fn other_paths_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, path, .. } = table;
    format!(
        r#"SELECT left({path}::text, 1000) FROM {sql}
            WHERE {path}::text COLLATE "C" <> '' AND {path}::text COLLATE "C" NOT LIKE $1 ESCAPE '\' LIMIT 100"#
    )
}

/// Where both ends of the table hold nothing but new paths, the rest is searched, for as long as that may take.
pub async fn sample_paths(
    pool: &PgPool,
    table: &ApplicationTable,
    rule: &PathRule,
) -> Result<PathSample, StatementError> {
    let query = sqlx::query_as(AssertSqlSafe(table_ends_sql(table)));
    let query = query.bind(like_prefix(rule.old_prefix()));
    let rows: Vec<(Option<String>, bool)> = with_timeout(query.fetch_all(pool)).await?;
    let mut sample = PathSample {
        rows: rows.len(),
        left_out: rows.iter().filter(|(_, is_left_out)| *is_left_out).count(),
        paths: rows.into_iter().filter_map(|(path, _)| path).collect(),
    };
    sample.paths.retain(|path| !path.is_empty());
    let is_new = |path: &String| path.starts_with(rule.new_prefix());
    if sample.rows > 0 && sample.paths.iter().all(is_new) {
        match search_other_paths(pool, table, rule).await {
            Err(error) if !is_statement_timeout(&error) => return Err(statement_error(&error)),
            others => sample.paths.extend(others.unwrap_or_default()),
        }
    }
    Ok(sample)
}

async fn search_other_paths(
    pool: &PgPool,
    table: &ApplicationTable,
    rule: &PathRule,
) -> Result<Vec<String>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query(SEARCH_TIMEOUT)
        .execute(&mut *transaction)
        .await?;
    sqlx::query_scalar(AssertSqlSafe(other_paths_sql(table)))
        .bind(like_prefix(rule.new_prefix()))
        .fetch_all(&mut *transaction)
        .await
}
