//! A mark on the table, kept as its comment: whether it is the testbed's to drop, and whether an
//! application has used it.

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableMark {
    Seeded,
    /// An application began to read and write.
    Used,
}

impl TableMark {
    fn comment_text(self) -> &'static str {
        match self {
            Self::Seeded => "seeded by the testbed, which may drop it",
            Self::Used => "seeded by the testbed, which may drop it; used by an application",
        }
    }
}

/// The mark of a table; none when it is not the testbed's.
pub(super) async fn read_mark(pool: &PgPool, table: &str) -> Result<Option<TableMark>> {
    let sql = "SELECT obj_description(to_regclass($1), 'pg_class')";
    let comment: Option<String> = sqlx::query_scalar(sql).bind(table).fetch_one(pool).await?;
    let has = |mark: &TableMark| comment.as_deref() == Some(mark.comment_text());
    Ok([TableMark::Seeded, TableMark::Used].into_iter().find(has))
}

pub(super) async fn write_mark(pool: &PgPool, table: &str, mark: TableMark) -> Result<()> {
    execute_sql(
        pool,
        format!("COMMENT ON TABLE {table} IS '{}'", mark.comment_text()),
    )
    .await
}

pub(super) async fn execute_sql(pool: &PgPool, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await?;
    Ok(())
}
