//! Helpers to write and bind statements.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::ErrorKind;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bucket_brigade_common::aws::error_chain;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, before_timeout, is_unavailable, with_timeout};
use bucket_brigade_common::retry::{Backoff, retry};
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{AssertSqlSafe, FromRow};
use tokio_util::sync::CancellationToken;

/// Longer than the failover of a database takes: about two minutes.
pub(crate) const MAX_RETRIES: usize = 20;

pub(crate) const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(200),
    max_delay: Duration::from_secs(10),
};

/// When the process was asked to stop: what the database does not carry out is not made again for long.
static STOPPED_AT: OnceLock<Instant> = OnceLock::new();

/// What follows a removal is worth a few tries.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn watch_stop(stop: CancellationToken) {
    stop.cancelled().await;
    STOPPED_AT.get_or_init(Instant::now);
}

fn is_worth_retrying(error: &impl Display) -> bool {
    let stopped = STOPPED_AT.get();
    let is_worth_it = stopped.is_none_or(|at| at.elapsed() < STOP_PATIENCE);
    if is_worth_it {
        tracing::info!("retrying: {error}");
    }
    is_worth_it
}

/// Makes a statement again while the database does not carry it out. It must do nothing twice.
pub(crate) async fn retry_statement<T>(
    statement: impl AsyncFnMut() -> Result<T, StatementError>,
) -> Result<T, StatementError> {
    let is_transient = |error: &StatementError| {
        !matches!(error, StatementError::Rejected { .. })
            && !error.is_denied()
            && is_worth_retrying(error)
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
    let is_transient =
        |error: &sqlx::Error| is_unavailable(error) && is_worth_retrying(&error_chain(error));
    retry(delays, is_transient, query).await
}

/// A page's statement with `AFTER` written out. Two statements, because `$2 IS NULL OR id > $2` would keep a
/// generic plan from starting in the middle of the index.
pub(crate) fn page_after(sql: &str, cursor: Option<&str>) -> AssertSqlSafe<String> {
    let after = if cursor.is_some() { "> $" } else { ">= $" };
    AssertSqlSafe(sql.replace("AFTER $", after))
}

/// The rows of a statement, page by page: `$1` run, `$2` cursor, and `AFTER` before it. How many make a page stands in
/// the statement itself, so that every plan knows how few they are.
pub(crate) struct Pages<'a> {
    pool: &'a PgPool,
    run: i64,
    sql: Cow<'static, str>,
    cursor: Option<String>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(ledger: &'a PostgresLedger, sql: impl Into<Cow<'static, str>>) -> Self {
        Self::of_run(ledger.pool(), ledger.run_id(), sql)
    }

    pub(crate) fn of_run(pool: &'a PgPool, run: i64, sql: impl Into<Cow<'static, str>>) -> Self {
        Self {
            pool,
            run,
            sql: sql.into(),
            cursor: None,
        }
    }

    /// `cursor_of` a row is what its statement is ordered by. None at the end.
    pub(crate) async fn next<Row>(
        &mut self,
        cursor_of: impl Fn(&Row) -> &String,
    ) -> Result<Option<Vec<Row>>, StatementError>
    where
        Row: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let page: Vec<Row> = retry_statement(async || {
            let sql = page_after(&self.sql, self.cursor.as_deref());
            let query = sqlx::query_as(sql).bind(self.run);
            let query = query.bind(self.cursor.as_deref().unwrap_or_default());
            with_timeout(query.fetch_all(self.pool)).await
        })
        .await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        self.cursor = Some(cursor_of(last).clone());
        Ok(Some(page))
    }
}

/// Rows turned into one of the arrays that `unnest` takes.
pub(crate) fn column<'a, Row, Value>(
    rows: &'a [Row],
    value: impl Fn(&'a Row) -> Value,
) -> Vec<Value> {
    rows.iter().map(value).collect()
}
