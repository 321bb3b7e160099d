//! Helpers to write and bind statements.

use sqlx::AssertSqlSafe;

/// A page's statement with `AFTER` written out. Two statements, because `$2 IS NULL OR id > $2` would keep a
/// generic plan from starting in the middle of the index.
pub(crate) fn page_after(sql: &str, cursor: Option<&str>) -> AssertSqlSafe<String> {
    AssertSqlSafe(sql.replace("AFTER", if cursor.is_some() { ">" } else { ">=" }))
}

/// Rows turned into one of the arrays that `unnest` takes.
pub(crate) fn column<'a, Row, Value>(
    rows: &'a [Row],
    value: impl Fn(&'a Row) -> Value,
) -> Vec<Value> {
    rows.iter().map(value).collect()
}
