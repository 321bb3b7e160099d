//! A mark on the table, kept as its comment: whether it is the testbed's to drop, and whether an
//! application has used it.

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Seeded, and untouched.
    Seeded,
    /// An application began to read and write.
    Used,
}

impl Mark {
    fn text(self) -> &'static str {
        match self {
            Self::Seeded => "seeded by the testbed, which may drop it",
            Self::Used => "seeded by the testbed, which may drop it; used by an application",
        }
    }
}

/// The mark of a table; none when it is not the testbed's.
pub(super) async fn of(pool: &PgPool, table: &str) -> Result<Option<Mark>> {
    let sql = "SELECT obj_description(to_regclass($1), 'pg_class')";
    let comment: Option<String> = sqlx::query_scalar(sql).bind(table).fetch_one(pool).await?;
    let has = |mark: &Mark| comment.as_deref() == Some(mark.text());
    Ok([Mark::Seeded, Mark::Used].into_iter().find(has))
}

pub(super) async fn set(pool: &PgPool, table: &str, mark: Mark) -> Result<()> {
    execute(
        pool,
        format!("COMMENT ON TABLE {table} IS '{}'", mark.text()),
    )
    .await
}

pub(super) async fn execute(pool: &PgPool, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await?;
    Ok(())
}
