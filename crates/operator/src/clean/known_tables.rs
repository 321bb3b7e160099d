//! The tables that are asked for rows: one that is another by now, or lost a partition, holds rows that name objects
//! unseen.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};

use super::path_references::ReferringColumn;
use crate::locks::busy_refusal;
use crate::statements::retry_statement;

/// `$1` tables, quoted. With what inherits from them; zero for one that is not there.
const SELECT_TABLES: &str = "WITH RECURSIVE tables AS (
    SELECT root, to_regclass(root)::oid AS oid FROM unnest($1::text[]) AS root
    UNION SELECT t.root, i.inhrelid FROM tables t JOIN pg_inherits i ON i.inhparent = t.oid)
SELECT root, coalesce(oid::bigint, 0) FROM tables";

/// As they were when the clean began, by their numbers in the database.
#[derive(Default)]
pub(super) struct KnownTables(Vec<(String, i64)>);

impl KnownTables {
    pub(super) async fn read(
        ledger: &PostgresLedger,
        columns: &[ReferringColumn],
    ) -> Result<Self, StatementError> {
        let tables = columns.iter().map(|column| column.at.table.clone());
        find_tables(ledger, tables.collect()).await.map(Self)
    }

    pub(super) async fn ensure_still_there(&self, ledger: &PostgresLedger) -> anyhow::Result<()> {
        let tables = self.0.iter().map(|(table, _)| table.clone());
        let now = find_tables(ledger, tables.collect()).await?;
        match self.0.iter().find(|known| !now.contains(known)) {
            Some((table, _)) => Err(busy_refusal(format!(
                "table {table} is another one than when this clean began, or has lost a partition, whose rows cannot be asked any more: bring it back, or run the command again"
            ))),
            None => Ok(()),
        }
    }
}

async fn find_tables(
    ledger: &PostgresLedger,
    tables: Vec<String>,
) -> Result<Vec<(String, i64)>, StatementError> {
    retry_statement(async || {
        let query = sqlx::query_as(SELECT_TABLES).bind(&tables);
        with_timeout(query.fetch_all(ledger.pool())).await
    })
    .await
}
