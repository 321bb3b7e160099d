//! What an operator tells the whole fleet, through the run's row: pause, and how much at most.

use serde::Serialize;

use super::{PostgresLedger, with_timeout};
use crate::move_ledger::StatementError;

const PAUSE_RUN: &str = "UPDATE bucket_brigade.run
    SET paused = true, paused_by = $2, pause_reason = $3,
        paused_at = CASE WHEN paused THEN coalesce(paused_at, now()) ELSE now() END
    WHERE id = $1";

const RESUME_RUN: &str = "UPDATE bucket_brigade.run r
    SET paused = false, paused_by = NULL, pause_reason = NULL, paused_at = NULL
    FROM (SELECT id, paused FROM bucket_brigade.run WHERE id = $1 FOR UPDATE) before
    WHERE r.id = before.id RETURNING before.paused";

const UPDATE_LIMITS: &str = "UPDATE bucket_brigade.run
    SET rate_limit = CASE WHEN $2 THEN NULL ELSE coalesce($3, rate_limit) END,
        concurrency_limit = CASE WHEN $2 THEN NULL ELSE coalesce($4, concurrency_limit) END
    WHERE id = $1 RETURNING rate_limit, concurrency_limit";

/// How much the whole fleet may do at most.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct RequestedLimits {
    /// Rows per second; none for no limit.
    pub rate: Option<f64>,
    /// Copies in flight; none for no limit.
    pub concurrency: Option<u32>,
}

impl PostgresLedger {
    /// Pauses the fleet. `by` and `reason` are what `status` tells. Pausing twice changes only these.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn pause(&self, by: &str, reason: Option<&str>) -> Result<(), StatementError> {
        let query = sqlx::query(PAUSE_RUN)
            .bind(self.run_id)
            .bind(by)
            .bind(reason);
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    /// Ends a pause; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn resume(&self) -> Result<bool, StatementError> {
        let query = sqlx::query_as(RESUME_RUN).bind(self.run_id);
        let (was_paused,): (bool,) = with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(was_paused)
    }

    /// Sets the limits that are given, or none of them any more with `lift`. Returns those that stand.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn set_limits(
        &self,
        lift: bool,
        limits: RequestedLimits,
    ) -> Result<RequestedLimits, StatementError> {
        let concurrency = limits
            .concurrency
            .map(|most| i32::try_from(most).unwrap_or(i32::MAX));
        let query = sqlx::query_as(UPDATE_LIMITS)
            .bind(self.run_id)
            .bind(lift)
            .bind(limits.rate)
            .bind(concurrency);
        let (rate, concurrency): (Option<f64>, Option<i32>) =
            with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(RequestedLimits {
            rate,
            concurrency: concurrency.and_then(|most| u32::try_from(most).ok()),
        })
    }
}
