//! The table and the ledger as the feeder reaches them.

use async_trait::async_trait;
use bucket_brigade_common::catalog::CatalogError;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::{Page, Position, Progress, Scope};

use super::Client;
use crate::world::Table;

#[async_trait]
impl Scope for Client {
    async fn position(&self) -> Result<Position, CatalogError> {
        self.statement("position", |things| Position {
            cursor: things.table.cursor.clone().map(RowId::from_database),
            sweep: things.table.sweep,
            sweep_fed: things.table.sweep_fed,
            paused: things.orders.paused.is_some(),
            rate_limit: things.orders.rate,
        })
        .await
    }

    async fn page(&self, cursor: Option<&RowId>, size: u32) -> Result<Page, CatalogError> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        self.statement("page", |things| things.table.page(cursor, size))
            .await
    }

    async fn advance(&self, cursor: &RowId, fed: u64) -> Result<(), CatalogError> {
        self.statement("advance", |things| things.table.advance(cursor, fed))
            .await
    }

    async fn begin_sweep(&self) -> Result<(), CatalogError> {
        self.statement("begin", |things| things.table.begin_sweep())
            .await
    }

    async fn count_scope(&self) -> Result<u64, CatalogError> {
        let count = |table: &Table| {
            let wanted = table.rows.iter();
            wanted
                .filter(|(id, path)| table.is_wanted(id, path))
                .count()
        };
        self.statement("count", |things| number(count(&things.table)))
            .await
    }

    async fn progress(&self) -> Result<Progress, CatalogError> {
        self.statement("progress", |things| Progress {
            in_scope: None,
            fed: things.table.fed,
            moved: number(things.table.moves.len()),
            changed: number(things.table.changes.len()),
            failed: number(things.table.failures.len()),
            orphans: number(things.table.orphans.len()),
            poison: number(things.table.poison.len()),
        })
        .await
    }

    async fn anything_left(&self) -> Result<bool, CatalogError> {
        self.statement("left", |things| things.table.anything_left())
            .await
    }

    async fn settle_stale_failures(&self) -> Result<u64, CatalogError> {
        self.statement("stale", |things| things.table.settle_stale_failures())
            .await
    }

    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, CatalogError> {
        self.statement("codes", |things| {
            let codes = things.table.failures.values();
            codes.map(|failed| (failed.code.clone(), 1)).collect()
        })
        .await
    }

    async fn finish(&self) -> Result<(), CatalogError> {
        self.statement("finish", |things| things.table.begin_sweep())
            .await
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
