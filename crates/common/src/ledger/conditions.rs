//! What an operator lets the database decide: a condition of theirs, and the time of day where they are.

use sqlx::AssertSqlSafe;

use super::{DatabasePool, is_unavailable, statement_error, with_timeout_or_else};
use crate::ledger::move_ledger::StatementError;

/// An operator's condition that takes longer is an answer, too: the database is busy.
const CONDITION_TIMEOUT: &str = "SET LOCAL statement_timeout = '2s'";

const SELECT_LOCAL_TIME: &str =
    "SELECT extract(isodow FROM t)::int, extract(epoch FROM t::time)::int
    FROM (SELECT now() AT TIME ZONE $1 AS t) AS local";

/// A moment as the clocks of a time zone show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// 1 for Monday to 7.
    pub weekday: u8,
    /// Since midnight.
    pub minutes: u16,
}

/// The value of a SQL expression, or of a SELECT of one value, as text. It can change nothing.
pub async fn evaluate_condition(
    pool: &DatabasePool,
    sql: &str,
) -> Result<Option<String>, StatementError> {
    let condition = select_condition(pool, sql);
    with_timeout_or_else(condition, |error| Err(sort_error(&error))).await
}

async fn select_condition(pool: &DatabasePool, sql: &str) -> Result<Option<String>, sqlx::Error> {
    let mut transaction = pool.begin_with("BEGIN READ ONLY").await?;
    sqlx::query(CONDITION_TIMEOUT)
        .execute(&mut *transaction)
        .await?;
    // A comment at its end must not hide the bracket.
    let sql = AssertSqlSafe(format!("SELECT ({sql}\n)::text"));
    let value = sqlx::query_scalar(sql).persistent(false);
    let value = value.fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(value)
}

/// # Errors
/// [`StatementError::Rejected`]: the server knows no such time zone.
pub async fn local_time(pool: &DatabasePool, time_zone: &str) -> Result<LocalTime, StatementError> {
    let query = sqlx::query_as(SELECT_LOCAL_TIME).bind(time_zone);
    let found = with_timeout_or_else(query.fetch_one(&**pool), |error| Err(sort_error(&error)));
    let (weekday, seconds): (i32, i32) = found.await?;
    Ok(LocalTime {
        weekday: u8::try_from(weekday).unwrap_or(0),
        minutes: u16::try_from(seconds / 60).unwrap_or(0),
    })
}

/// Whatever a server that is there refuses is the operator's own.
fn sort_error(error: &sqlx::Error) -> StatementError {
    match error.as_database_error() {
        Some(refusal) if !is_unavailable(error) => StatementError::Rejected {
            code: refusal.code().unwrap_or_default().into_owned(),
            message: refusal.message().to_owned(),
        },
        _ => statement_error(error),
    }
}
