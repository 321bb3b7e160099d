//! Where the ids of the table begin and end.

use sqlx::AssertSqlSafe;

use super::{PostgresLedger, with_timeout};
use crate::ledger::move_ledger::StatementError;

impl PostgresLedger {
    /// The smallest and the largest id of a table whose ids are whole numbers; none where it has no rows.
    pub async fn id_range(&self) -> Result<Option<(i64, i64)>, StatementError> {
        let (id, table) = (self.table.id.first("t"), &self.table.sql);
        let sql = format!("SELECT min({id})::bigint, max({id})::bigint FROM {table} t");
        let query = sqlx::query_as(AssertSqlSafe(sql));
        let (first, last): (Option<i64>, Option<i64>) =
            with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(first.zip(last))
    }
}
