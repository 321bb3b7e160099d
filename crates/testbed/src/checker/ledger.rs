//! The ledger as it is, read with SQL of the checker's own.

use std::collections::BTreeMap;

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use crate::application::ImagesTable;

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
    /// What is in it of the run of this table's column; an empty one when there is no ledger.
    pub(super) async fn load(pool: &PgPool, table: &ImagesTable) -> Result<Self> {
        let exists = sqlx::query_scalar("SELECT to_regclass('bucket_brigade.moves') IS NOT NULL");
        if !exists.fetch_one(pool).await? {
            return Ok(Self::default());
        }
        let of_run = find_run_condition(pool, table).await?;
        let sql = format!("SELECT row_id, old_path, new_path FROM bucket_brigade.moves {of_run}");
        let moves: Vec<(String, String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
        let sql = format!("SELECT row_id, code FROM bucket_brigade.failures {of_run}");
        let failures: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
        let sql = format!("SELECT row_id, old_path FROM bucket_brigade.changes {of_run}");
        let changes: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
        Ok(Self {
            moves: moves
                .into_iter()
                .map(|(id, old, new)| (id, (old, new)))
                .collect(),
            failures: failures.into_iter().collect(),
            changes: changes.into_iter().collect(),
            sums: read_counter_sums(pool, &of_run).await?,
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

/// Where one of several runs is meant.
async fn find_run_condition(pool: &PgPool, table: &ImagesTable) -> Result<String> {
    let runs: Vec<(i64, bool)> = sqlx::query_as(
        r#"SELECT id, replace(images_table, '"', '') IN ($1, 'public.' || $1) AND path_column = $2
           FROM bucket_brigade.run"#,
    )
    .bind(&table.name)
    .bind(&table.path_column)
    .fetch_all(pool)
    .await?;
    let meant = runs.iter().find(|(_, is_meant)| *is_meant);
    Ok(match meant {
        Some((run, _)) if runs.len() > 1 => format!("WHERE run_id = {run}"),
        _ => String::new(),
    })
}

async fn read_counter_sums(pool: &PgPool, of_run: &str) -> Result<Vec<(&'static str, i64, i64)>> {
    let mut sums = Vec::new();
    for (counter, table) in COUNTER_TABLES {
        let sql = format!(
            "SELECT (SELECT coalesce(sum({counter}), 0)::bigint FROM bucket_brigade.counters {of_run}), \
                    (SELECT count(*) FROM bucket_brigade.{table} {of_run})"
        );
        let (sum, rows) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(pool).await?;
        sums.push((counter, sum, rows));
    }
    Ok(sums)
}
