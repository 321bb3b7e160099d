//! The table and the ledger as the feeder reaches them.

use std::ops::ControlFlow;

use async_trait::async_trait;
use bucket_brigade_common::empty_scope::PathSample;
use bucket_brigade_common::ledger::feed_source::{
    CursorPosition, FeedSource, PageReader, QueueShare, RowPage, RunProgress, SweepAccess,
};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::row_id::RowId;

use super::SimulatedClient;

#[async_trait]
impl PageReader for SimulatedClient {
    async fn prepare(&self) -> Result<SweepAccess, StatementError> {
        Ok(SweepAccess::Stretches)
    }

    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        self.run_statement("page", |things| things.table.read_page(cursor, size))
            .await
    }
}

#[async_trait]
impl FeedSource for SimulatedClient {
    async fn cursor_position(&self) -> Result<CursorPosition, StatementError> {
        self.run_statement("position", |things| CursorPosition {
            cursor: things.table.cursor.clone().map(RowId::from_database),
            sweep: things.table.sweep,
            sweep_fed: things.table.sweep_fed,
        })
        .await
    }

    async fn advance_cursor(&self, cursor: &RowId, fed: u64) -> Result<(), StatementError> {
        self.run_statement("advance", |things| things.table.advance_cursor(cursor, fed))
            .await
    }

    async fn begin_sweep(&self) -> Result<(), StatementError> {
        self.run_statement("begin", |things| things.table.begin_sweep())
            .await
    }

    async fn queue_share(&self) -> Result<Option<QueueShare>, StatementError> {
        self.run_statement("share", |things| {
            let table = &things.table;
            let ended = table.accounted_rows() - table.sweep_accounted;
            let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            Some(QueueShare {
                own_messages: number(table.sweep_fed) - number(ended),
                sweep_fed: number(table.sweep_fed),
                is_shared: self.shares_queue,
                other_feeders: u8::from(self.shares_queue).into(),
                others_have_messages: false,
                has_consumers: true,
            })
        })
        .await
    }

    async fn run_progress(&self) -> Result<RunProgress, StatementError> {
        self.run_statement("progress", |things| RunProgress {
            in_scope: None,
            fed: things.table.fed,
            moved: saturating_u64(things.table.moves.len()),
            changed: saturating_u64(things.table.changes.len()),
            failed: saturating_u64(things.table.failures.len()),
            orphans: saturating_u64(things.table.orphans.len()),
            poison: saturating_u64(things.table.poison.len()),
        })
        .await
    }

    async fn has_rows_left(
        &self,
        _: Option<&RowId>,
    ) -> Result<ControlFlow<bool, RowId>, StatementError> {
        let left = self.run_statement("left", |things| things.table.has_rows_left());
        left.await.map(ControlFlow::Break)
    }

    async fn settle_stale_failures(
        &self,
        _: Option<&RowId>,
    ) -> Result<ControlFlow<(), RowId>, StatementError> {
        let settle = self.run_statement("stale", |things| things.table.settle_stale_failures());
        settle.await.map(ControlFlow::Break)
    }

    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, StatementError> {
        self.run_statement("codes", |things| {
            let codes = things.table.failures.values();
            codes.map(|failed| (failed.code.clone(), 1)).collect()
        })
        .await
    }

    async fn sample_paths(&self) -> Result<PathSample, StatementError> {
        self.run_statement("paths", |things| PathSample {
            rows: things.table.rows.len(),
            left_out: 0,
            paths: things.table.rows.values().cloned().collect(),
        })
        .await
    }

    async fn finish_run(&self) -> Result<bool, StatementError> {
        self.run_statement("finish", |things| things.table.begin_sweep())
            .await?;
        Ok(true)
    }
}

fn saturating_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
