//! The ledger as it is, read with SQL of the checker's own.

use std::collections::BTreeMap;

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

/// Each counter with the table whose rows it counts.
const COUNTER_TABLES: [(&str, &str); 5] = [
    ("moved", "moves"),
    ("changed", "changes"),
    ("failed", "failures"),
    ("orphans", "orphans"),
    ("poison", "poison"),
];

#[derive(Default)]
pub(super) struct LedgerContents {
    /// Old and new path by row id.
    pub(super) moves: BTreeMap<String, (String, String)>,
    /// Error codes by row id.
    pub(super) failures: BTreeMap<String, String>,
    /// Old paths by row id.
    pub(super) changes: BTreeMap<String, String>,
    /// Counter, its sum over all workers, and the number of rows it should be.
    sums: Vec<(&'static str, i64, i64)>,
}

impl LedgerContents {
    /// An empty one when there is no ledger.
    pub(super) async fn load(pool: &PgPool) -> Result<Self> {
        let exists = sqlx::query_scalar("SELECT to_regclass('bucket_brigade.moves') IS NOT NULL");
        if !exists.fetch_one(pool).await? {
            return Ok(Self::default());
        }
        let moves: Vec<(String, String, String)> =
            sqlx::query_as("SELECT row_id, old_path, new_path FROM bucket_brigade.moves")
                .fetch_all(pool)
                .await?;
        let failures: Vec<(String, String)> =
            sqlx::query_as("SELECT row_id, code FROM bucket_brigade.failures")
                .fetch_all(pool)
                .await?;
        let changes: Vec<(String, String)> =
            sqlx::query_as("SELECT row_id, old_path FROM bucket_brigade.changes")
                .fetch_all(pool)
                .await?;
        Ok(Self {
            moves: moves
                .into_iter()
                .map(|(id, old, new)| (id, (old, new)))
                .collect(),
            failures: failures.into_iter().collect(),
            changes: changes.into_iter().collect(),
            sums: read_counter_sums(pool).await?,
        })
    }

    /// I4: counters that are not the number of rows they count.
    pub(super) fn counter_mismatches(&self) -> impl Iterator<Item = String> {
        self.sums
            .iter()
            .filter(|(_, sum, rows)| sum != rows)
            .map(|(counter, sum, rows)| {
                format!("ledger: the counters say {sum} {counter}, the table has {rows}")
            })
    }
}

async fn read_counter_sums(pool: &PgPool) -> Result<Vec<(&'static str, i64, i64)>> {
    let mut sums = Vec::new();
    for (counter, table) in COUNTER_TABLES {
        let sql = format!(
            "SELECT (SELECT coalesce(sum({counter}), 0)::bigint FROM bucket_brigade.counters), \
                    (SELECT count(*) FROM bucket_brigade.{table})"
        );
        let (sum, rows) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(pool).await?;
        sums.push((counter, sum, rows));
    }
    Ok(sums)
}
