//! Helpers to write and bind statements.

use std::io::ErrorKind;
use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{before_timeout, is_unavailable};
use bucket_brigade_common::retry::{Backoff, retry};
use sqlx::AssertSqlSafe;

/// Longer than the failover of a database takes: about two minutes.
pub(crate) const MAX_RETRIES: usize = 20;

pub(crate) const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(200),
    max_delay: Duration::from_secs(10),
};

/// Makes a statement again while the database does not carry it out. It must do nothing twice.
pub(crate) async fn retry_statement<T>(
    statement: impl AsyncFnMut() -> Result<T, StatementError>,
) -> Result<T, StatementError> {
    let is_transient = |error: &StatementError| {
        let is_transient = !matches!(error, StatementError::Rejected { .. });
        if is_transient {
            tracing::info!("retrying: {error}");
        }
        is_transient
    };
    let delays = RETRY_BACKOFF.delays().take(MAX_RETRIES);
    retry(delays, is_transient, statement).await
}

/// The same for a statement over tables of others, which may be gone: only a server that is away, or silent, is
/// waited for.
pub(crate) async fn retry_query<T>(
    mut query: impl AsyncFnMut() -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let delays = RETRY_BACKOFF.delays().take(MAX_RETRIES);
    let query = async || {
        let silence = || Err(sqlx::Error::Io(ErrorKind::TimedOut.into()));
        before_timeout(query()).await.unwrap_or_else(silence)
    };
    retry(delays, is_unavailable, query).await
}

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
