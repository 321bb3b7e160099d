//! Pages in the order of the heap. Random ids next to each other lie all over the table: each row of a page in the
//! order of ids is a page of the heap.
//!
//! An update moves its row, perhaps from ahead of the cursor to behind it, and a rewrite moves all. So what a sweep
//! in this order finds is fed cheaply, and one in the order of ids proves that nothing is left. A second sweep in this
//! order that finds nothing proves it not: the application may update a row during each, as it does its busiest ones.
//! Under one snapshot each row would stay where it is, but that would be a transaction as long as the sweep.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::feed::wanted_rows;
use super::feed_index::unless_refused;
use super::{ApplicationTable, PostgresLedger, with_timeout};
use crate::ledger::feed_source::RowPage;
use crate::ledger::move_ledger::StatementError;
use crate::row_id::{IdColumnType, RowId};

/// By which a cursor in this order is known, with the next page of the heap. No uuid begins so.
const PREFIX: &str = "heap ";

/// Stretches of the heap are read since Postgres 14. A right to some columns is none to `ctid`.
const MAY_READ: &str = "current_setting('server_version_num')::int >= 140000
       AND has_column_privilege(c.oid, 'ctid', 'SELECT')";

/// `$1` table.
const SELECT_SIZE: &str = "SELECT pg_relation_size(oid) / current_setting('block_size')::bigint,
       ceil(reltuples / nullif(relpages, 0))::bigint FROM pg_class WHERE oid = $1::regclass";

/// Of a page of the heap, while there are no statistics.
const DEFAULT_ROWS_PER_BLOCK: i64 = 50;

/// Whether a table whose ids are random can be read in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeapAccess {
    Granted,
    /// An old server, or the role lacks the right to `ctid`.
    Denied,
}

fn has_uuids(table: &ApplicationTable) -> bool {
    matches!(table.id.id_type().columns(), [IdColumnType::Uuid])
}

/// `$1` table, `$2` column of the id. Without statistics an id's version says whether it is random.
fn random_ids_sql(table: &ApplicationTable) -> String {
    let ApplicationTable { sql, id, .. } = table;
    let (row_id, order) = (id.as_text("t"), id.order("t"));
    format!(
        "SELECT {MAY_READ} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_am m ON m.oid = c.relam AND m.amname = 'heap'
           LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = $2
     WHERE c.oid = $1::regclass AND c.relkind = 'r'
       AND coalesce(abs(s.correlation) < 0.5,
                    (SELECT substr({row_id}, 15, 1) = '4' FROM {sql} t ORDER BY {order} LIMIT 1))"
    )
}

/// Whether ids lie about the table at random; none where they do not. Partitions have a heap each.
pub async fn find_random_ids(
    pool: &PgPool,
    table: &ApplicationTable,
) -> Result<Option<HeapAccess>, sqlx::Error> {
    if !has_uuids(table) {
        return Ok(None);
    }
    let query = sqlx::query_scalar(AssertSqlSafe(random_ids_sql(table)));
    let query = query.bind(&table.sql).bind(&table.id.plain_names()[0]);
    let may_read: Option<bool> = query.fetch_optional(pool).await?;
    let access = |may_read| {
        if may_read {
            HeapAccess::Granted
        } else {
            HeapAccess::Denied
        }
    };
    Ok(may_read.map(access))
}

fn cursor_at(block: i64) -> RowId {
    RowId::from_database(format!("{PREFIX}{block}"))
}

impl PostgresLedger {
    /// The cursor at the heap's beginning, where that is the order for a sweep.
    pub(super) async fn heap_start(&self) -> Result<Option<RowId>, StatementError> {
        let access = unless_refused(find_random_ids(&self.pool, &self.table)).await?;
        Ok((access == Some(HeapAccess::Granted)).then(|| cursor_at(0)))
    }

    /// The next page of the heap by a cursor in this order.
    pub(super) fn heap_block(&self, cursor: &RowId) -> Option<i64> {
        let block = cursor.as_str().strip_prefix(PREFIX)?;
        block.parse().ok().filter(|_| has_uuids(&self.table))
    }

    /// Rows that are refused are left to the sweep by id, which finds out the culprit.
    pub(super) async fn read_heap_page(
        &self,
        block: i64,
        mut size: u32,
    ) -> Result<RowPage, StatementError> {
        loop {
            let read = |rows| self.read_blocks(block, rows);
            let (code, message) = match self.stretch_length.run(size, read).await {
                Err(StatementError::Rejected { code, message }) => (code, message),
                Err(StatementError::Suspect { code, message })
                    if with_timeout(self.read_range(block, block)).await.is_ok() =>
                {
                    (code, message)
                }
                page => return page,
            };
            if size > 1 {
                size /= 2;
                continue;
            }
            tracing::debug!(block, code, "rows are left out: {message}");
            return Ok(RowPage {
                last_id: Some(cursor_at(block + 1)),
                is_spread: true,
                ..RowPage::default()
            });
        }
    }

    /// So many rows, about, and to the end of a page of the heap.
    async fn read_blocks(&self, from: i64, rows: u32) -> Result<RowPage, sqlx::Error> {
        let query = sqlx::query_as(SELECT_SIZE).bind(&self.table.sql);
        let (blocks, rows_per_block): (i64, Option<i64>) = query.fetch_one(&self.pool).await?;
        if from >= blocks {
            return Ok(RowPage::default());
        }
        let rows_per_block = rows_per_block.filter(|rows| *rows > 0);
        let count = i64::from(rows) / rows_per_block.unwrap_or(DEFAULT_ROWS_PER_BLOCK);
        self.read_range(from, blocks.min(from + count.max(1))).await
    }

    async fn read_range(&self, from: i64, until: i64) -> Result<RowPage, sqlx::Error> {
        let stretch = "WHERE t.ctid >= $3::text::tid AND t.ctid < $4::text::tid";
        let query = self.page_query(stretch);
        let query = query
            .bind(format!("({from},0)"))
            .bind(format!("({until},0)"));
        Ok(RowPage {
            rows: wanted_rows(query.fetch_all(&self.pool).await?),
            last_id: Some(cursor_at(until)),
            is_spread: true,
            ..RowPage::default()
        })
    }
}
