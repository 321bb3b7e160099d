//! The recorded failures, and their way back into the feeding.

use serde::Serialize;

use super::{PostgresLedger, with_timeout};
use crate::move_ledger::StatementError;

/// `$1` run, `$2` code or null for all, `$3` how many. In the order of the table's own key, which is that
/// of the ids as text.
const SELECT_FAILURES: &str = r#"SELECT row_id, path, code, message, permanent, attempts,
        to_char(last_seen AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS last_seen
    FROM bucket_brigade.failures
    WHERE run_id = $1 AND ($2::text IS NULL OR code = $2) ORDER BY row_id LIMIT $3"#;

/// `$1` run, `$2` code or null for all. A row without a failure is fed by the next sweep.
const DELETE_FAILURES: &str = "WITH gone AS (
    DELETE FROM bucket_brigade.failures
     WHERE run_id = $1 AND ($2::text IS NULL OR code = $2) RETURNING 1
), counted AS (
    INSERT INTO bucket_brigade.counters AS c (run_id, worker, failed)
    SELECT $1, 'operator', -(SELECT count(*) FROM gone)
    ON CONFLICT (run_id, worker) DO UPDATE SET
        failed = c.failed + excluded.failed, seen_at = now()
), reopened AS (
    UPDATE bucket_brigade.run SET finished_at = NULL
     WHERE id = $1 AND EXISTS (SELECT 1 FROM gone)
)
SELECT count(*) FROM gone";

/// A row of [`LIST`].
type FailureColumns = (String, String, String, String, bool, i64, String);

/// A row that could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedRow {
    /// Its id.
    pub row_id: String,
    /// The path it was fed with.
    pub path: String,
    /// A short code: S3's or Postgres's own where there is one.
    pub code: String,
    /// What happened.
    pub message: String,
    /// Whether trying again unchanged is pointless.
    pub permanent: bool,
    /// How often it failed.
    pub attempts: i64,
    /// When it failed last, in UTC.
    pub last_seen: String,
}

impl PostgresLedger {
    /// The first `most` failures, of one code or all.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn failed_rows(
        &self,
        code: Option<&str>,
        most: u32,
    ) -> Result<Vec<FailedRow>, StatementError> {
        let query = sqlx::query_as(SELECT_FAILURES)
            .bind(self.run_id)
            .bind(code)
            .bind(i64::from(most));
        let found: Vec<FailureColumns> = with_timeout(query.fetch_all(&self.pool)).await?;
        let row = |found: FailureColumns| FailedRow {
            row_id: found.0,
            path: found.1,
            code: found.2,
            message: found.3,
            permanent: found.4,
            attempts: found.5,
            last_seen: found.6,
        };
        Ok(found.into_iter().map(row).collect())
    }

    /// Takes failures off the record, of one code or all, so that their rows are fed again. Returns how
    /// many.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn retry_failures(&self, code: Option<&str>) -> Result<u64, StatementError> {
        let query = sqlx::query_as(DELETE_FAILURES).bind(self.run_id).bind(code);
        let (retried,): (i64,) = with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(u64::try_from(retried).unwrap_or(0))
    }
}
