//! Decide: does this message's row still ask for the move?

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::batch::BatchConfig;
use bucket_brigade_common::ledger::move_ledger::{CurrentRow, MoveLedger};
use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;
use futures::FutureExt;

use crate::context::ConsumerContext;
use crate::ledger_batcher::{LedgerBatcher, LedgerOutcome};
use crate::protocol::{Event, FailureCause, RowState};

/// Fifty rows are worth a statement; none waits longer for it than a copy takes.
const ROW_READ_BATCHES: BatchConfig = BatchConfig {
    max: 200,
    min: 50,
    linger: Duration::from_millis(50),
    concurrency: 1,
};

pub struct RowReader {
    rows: LedgerBatcher<RowId, Option<CurrentRow>>,
    rule: PathRule,
}

impl RowReader {
    pub fn new(ledger: Arc<dyn MoveLedger>, rule: PathRule, context: &ConsumerContext) -> Self {
        let read = move |ids: Arc<[RowId]>| {
            let ledger = Arc::clone(&ledger);
            async move {
                let rows = ledger.read_rows(&ids).await?;
                Ok(ids.iter().map(|id| rows.get(id).cloned()).collect())
            }
            .boxed()
        };
        Self {
            rows: LedgerBatcher::new(ROW_READ_BATCHES, context, read),
            rule,
        }
    }

    pub async fn read_row(&self, task: &MoveTask) -> Event {
        let row = match self.rows.submit(task.id.clone()).await {
            LedgerOutcome::Done(row) => row,
            LedgerOutcome::Refused(cause) => {
                let message = format!("the row cannot be read: {}", cause.message);
                return Event::RowUnreadable(FailureCause { message, ..cause });
            }
            LedgerOutcome::Interrupted => return Event::Interrupted,
        };
        Event::RowRead(RowState::from_row(row, task, &self.rule))
    }
}
