//! Indexes without which a clean reads whole tables: named before the first removal, with what it costs.

use std::fmt;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, create_concurrently_sql, statement_error};
use serde::Serialize;

use super::path_references::ReferringColumn;
use crate::path_column::PathColumn;
use crate::statements::retry_query;

/// A smaller table is read within a second or two.
const MIN_ROWS: i64 = 1_000_000;

/// Objects of a page where each of its questions to the rows reads the table.
pub(super) const LARGE_PAGE_ROWS: i64 = 16_000;

/// `$1` table: how many rows it has, by the statistics, and whether it is partitioned.
const SELECT_SIZE: &str = "WITH RECURSIVE tables AS (
        SELECT $1::regclass::oid AS oid
        UNION SELECT i.inhrelid FROM pg_inherits i JOIN tables t ON t.oid = i.inhparent)
    SELECT coalesce(sum(CASE WHEN reltuples < 0 THEN pg_relation_size(oid) / 100 ELSE reltuples END)
                        FILTER (WHERE relkind <> 'p'), 0)::bigint, bool_or(relkind = 'p')
      FROM tables JOIN pg_class USING (oid)";

/// `$1` table and `$2` column, both quoted.
const IS_TEXT: &str = "SELECT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = $1::regclass
    AND format('\"%s\"', replace(a.attname, '\"', '\"\"')) = $2
    AND a.atttypid IN ('text'::regtype, 'varchar'::regtype))";

#[derive(Debug, Serialize)]
pub(super) struct MissingIndex {
    sql: String,
    without_it: String,
}

impl fmt::Display for MissingIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; an index spares that: {}", self.without_it, self.sql)
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct MissingIndexes {
    pub(super) all: Vec<MissingIndex>,
    /// Whether all rows of a large table are read to find other spellings.
    #[serde(skip)]
    pub(super) reads_tables: bool,
    /// Whether a large table is read for each page.
    #[serde(skip)]
    pub(super) reads_tables_by_page: bool,
}

impl MissingIndexes {
    pub(super) async fn find(
        ledger: &PostgresLedger,
        columns: &[ReferringColumn],
    ) -> Result<Self, StatementError> {
        let mut missing = Self::default();
        for ReferringColumn { at, rules } in columns {
            let (rows, is_partitioned) = read_size(ledger, at).await?;
            if rows < MIN_ROWS {
                continue;
            }
            let PathColumn {
                table, path, id, ..
            } = at;
            let mut add = |columns: &str, without_it| {
                let sql = create_concurrently_sql(table, is_partitioned, columns);
                missing.all.push(MissingIndex { sql, without_it });
            };
            if !at.is_indexed {
                add(
                    &format!("({})", text_expression(ledger, at).await?),
                    format!(
                        "table {table} (about {rows} rows) is read three times for each {LARGE_PAGE_ROWS} objects"
                    ),
                );
                missing.reads_tables_by_page = true;
            }
            let odd = rules.odd_condition(&format!("t.{path}"));
            if !at.has_index_with(ledger, &odd).await? {
                add(
                    &format!("({}) WHERE {}", id.index_list(), rules.odd_condition(path)),
                    format!(
                        "table {table} (about {rows} rows) is read once before the first removal, for rows that spell a path otherwise"
                    ),
                );
                missing.reads_tables = true;
            }
        }
        Ok(missing)
    }
}

/// The path as a text, as it is looked for: of another type an index of its own does not serve.
async fn text_expression(
    ledger: &PostgresLedger,
    PathColumn { table, path, .. }: &PathColumn,
) -> Result<String, StatementError> {
    let read = async || {
        let query = sqlx::query_scalar(IS_TEXT).bind(table).bind(path);
        query.fetch_one(ledger.pool()).await
    };
    let is_text: bool = retry_query(read)
        .await
        .map_err(|error| statement_error(&error))?;
    Ok(if is_text {
        path.clone()
    } else {
        format!("({path}::text)")
    })
}

async fn read_size(
    ledger: &PostgresLedger,
    column: &PathColumn,
) -> Result<(i64, bool), StatementError> {
    let read = async || {
        let query = sqlx::query_as(SELECT_SIZE).bind(&column.table);
        query.fetch_one(ledger.pool()).await
    };
    retry_query(read)
        .await
        .map_err(|error| statement_error(&error))
}
