//! Decide: does this message's row still ask for the move?

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::move_ledger::{CurrentRow, MoveLedger};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::desk::{Answer, Desk};
use crate::gather::Limits;
use crate::health::Health;
use crate::protocol::{Event, RowState};

/// Fifty rows make a statement worth its while; nobody waits for them longer than a copy takes.
const ROW_READ_BATCHES: Limits = Limits {
    size: 200,
    enough: 50,
    linger: Duration::from_millis(50),
    in_flight: 1,
};

/// Reads rows in batches and measures them against their messages.
pub struct RowReader {
    rows: Desk<RowId, Option<CurrentRow>>,
    rule: PathRule,
}

impl RowReader {
    /// Decides on what the catalog holds.
    pub fn new(
        catalog: Arc<dyn MoveLedger>,
        rule: PathRule,
        health: Health,
        stop: CancellationToken,
    ) -> Self {
        let rows = Desk::open(ROW_READ_BATCHES, health, stop, move |ids: Arc<[RowId]>| {
            let catalog = Arc::clone(&catalog);
            async move {
                let found = catalog.read_rows(&ids).await?;
                Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
            }
            .boxed()
        });
        Self { rows, rule }
    }

    /// Reads the task's row.
    pub async fn read_row(&self, task: &MoveTask) -> Event {
        let row = match self.rows.submit(task.id.clone()).await {
            Answer::Done(row) => row,
            // An id that the database cannot even read names no row.
            Answer::Refused { .. } => None,
            Answer::Interrupted => return Event::Interrupted,
        };
        Event::RowRead(RowState::from_row(row, &task.route, &self.rule))
    }
}
