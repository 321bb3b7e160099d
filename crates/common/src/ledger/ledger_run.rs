//! A run by the ledger alone, whatever has become of the application's table.

use sqlx::postgres::PgPool;

use super::errors::has_sqlstate;
use super::run::{OPEN_TIMEOUT, OPENING_RUN, find_run_row, no_run_error, within};
use super::run_options::OptionMatch;
use super::runs::{RunRow, RunSpec, SEVERAL_RUNS, list_runs, no_run};
use super::table::table_name_parts;
use super::{
    ConnectionPurpose, DatabasePool, LedgerError, TABLE_NAME_PROBLEM, TableAccess, connection,
    schema,
};

/// What needs no more of a run: its rows in the ledger.
pub struct LedgerRun {
    pub pool: DatabasePool,
    pub id: i64,
}

/// `$1` a table as settings write it, perhaps without its schema, `$2` tables as the ledger has them.
const SELECT_SAME_TABLES: &str = concat!(
    "SELECT DISTINCT t FROM unnest($2::text[]) t, ",
    table_name_parts!(),
    " AS given WHERE (parse_ident(t))[3 - cardinality(given):] = given"
);

/// SQLSTATE `invalid_parameter_value`: what `parse_ident` cannot read.
const INVALID_NAME: &str = "22023";

impl LedgerRun {
    /// The run with these settings.
    pub async fn find(
        pool: DatabasePool,
        spec: &RunSpec,
        purpose: &ConnectionPurpose,
    ) -> Result<Self, LedgerError> {
        match within(
            &pool,
            OPEN_TIMEOUT,
            OPENING_RUN,
            find_id(&pool, spec, purpose),
        )
        .await?
        {
            Some(id) => Ok(Self { pool, id }),
            None => Err(no_run_error(&pool).await?),
        }
    }
}

async fn find_id(
    pool: &DatabasePool,
    spec: &RunSpec,
    purpose: &ConnectionPurpose,
) -> Result<Option<i64>, LedgerError> {
    connection::prepare_pool(pool, purpose, TableAccess::Read).await?;
    if !schema::is_ready(pool).await? {
        return Ok(None);
    }
    let runs = list_runs(pool).await?;
    let mut found = Vec::new();
    for table in find_same_tables(pool, &spec.table.table, &runs).await? {
        found.extend(find_run_row(pool, spec, &table, OptionMatch::Given).await?);
    }
    match &*found {
        [] => Ok(None),
        [run] => Ok(Some(run.id)),
        _ => Err(no_run(SEVERAL_RUNS, &runs)),
    }
}

async fn find_same_tables(
    pool: &PgPool,
    table: &str,
    runs: &[RunRow],
) -> Result<Vec<String>, LedgerError> {
    let known: Vec<&str> = runs.iter().map(|run| &*run.images_table).collect();
    let query = sqlx::query_scalar(SELECT_SAME_TABLES);
    match query.bind(table).bind(known).fetch_all(pool).await {
        Err(error) if has_sqlstate(&error, &[INVALID_NAME]) => Err(LedgerError::setting(
            "IMAGES_TABLE",
            TABLE_NAME_PROBLEM.into(),
        )),
        tables => Ok(tables?),
    }
}
