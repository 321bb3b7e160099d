//! The feeder's rate limit, set from outside as an operator would, and how much is left to do.

use std::time::Duration;

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::application::Application;

/// Nothing here is worth waiting for while Postgres restarts: it is asked again soon.
const QUERY_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) struct RateLimitControl {
    pool: PgPool,
    rows_left_sql: String,
    rate_limit: f64,
    is_limited: bool,
}

impl RateLimitControl {
    /// Lets so many rows be fed per second.
    pub(super) fn new(application: &Application, rate_limit: f64) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy(&application.database_url)?;
        let table = &application.table;
        let (name, id, path) = (&table.name, &table.id_column, &table.path_column);
        let is_anything_left = format!(
            "SELECT EXISTS (SELECT 1 FROM {name} t WHERE starts_with(t.{path}, $1) AND NOT EXISTS (
                 SELECT 1 FROM bucket_brigade.failures f WHERE f.row_id = t.{id}::text))"
        );
        Ok(Self {
            pool,
            rows_left_sql: is_anything_left,
            rate_limit,
            is_limited: false,
        })
    }

    /// Sets the limit once there is a run to limit.
    pub(super) async fn apply_limit(&mut self) {
        if !self.is_limited {
            self.is_limited = self.set_limit(Some(self.rate_limit)).await;
        }
    }

    /// Lifts the limit; true when that is done.
    pub(super) async fn lift_limit(&self) -> bool {
        self.set_limit(None).await
    }

    async fn set_limit(&self, limit: Option<f64>) -> bool {
        let set = sqlx::query("UPDATE bucket_brigade.run SET rate_limit = $1").bind(limit);
        let done = tokio::time::timeout(QUERY_TIMEOUT, set.execute(&self.pool)).await;
        matches!(done, Ok(Ok(done)) if done.rows_affected() > 0)
    }

    /// Whether rows are left that have neither moved nor failed, as far as can be known now.
    pub(super) async fn has_rows_left(&self, old_prefix: &str) -> bool {
        let sql = AssertSqlSafe(self.rows_left_sql.clone());
        let ask = sqlx::query_scalar(sql).bind(old_prefix);
        let row = tokio::time::timeout(QUERY_TIMEOUT, ask.fetch_one(&self.pool)).await;
        !matches!(row, Ok(Ok(false)))
    }
}
