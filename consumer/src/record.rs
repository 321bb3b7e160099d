//! Record: the outcomes other than a move. Settled, failed or poison.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bucket_brigade_common::batch::BatchConfig;
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, MoveFailure, MoveLedger, OrphanedCopy, PoisonRecord, StatementError,
};
use bucket_brigade_common::message::MoveTask;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::context::ConsumerContext;
use crate::ledger_batcher::{LedgerBatcher, LedgerOutcome};
use crate::protocol::{Event, FailureCause, RowState};

const RECORD_BATCHES: BatchConfig = BatchConfig {
    max: 100,
    min: 50,
    linger: Duration::from_millis(50),
    concurrency: 1,
};

/// How much of a poison message's body is kept, in characters.
const MAX_EXCERPT_CHARS: usize = 200;

/// Records outcomes in batches.
pub struct OutcomeRecorder {
    settlements: LedgerBatcher<ChangedRow, ()>,
    failures: LedgerBatcher<MoveFailure, ()>,
    poison: LedgerBatcher<PoisonRecord, ()>,
    has_fenced: AtomicBool,
}

type RecordCall<T> =
    for<'a> fn(&'a dyn MoveLedger, &'a [T]) -> BoxFuture<'a, Result<(), StatementError>>;

fn record_batches<T: Clone + Send + Sync + 'static>(
    ledger: &Arc<dyn MoveLedger>,
    context: &ConsumerContext,
    record: RecordCall<T>,
) -> LedgerBatcher<T, ()> {
    let ledger = Arc::clone(ledger);
    LedgerBatcher::new(RECORD_BATCHES, context, move |batch: Arc<[T]>| {
        let ledger = Arc::clone(&ledger);
        async move {
            record(&*ledger, &batch).await?;
            Ok(vec![(); batch.len()])
        }
        .boxed()
    })
}

impl OutcomeRecorder {
    pub fn new(ledger: &Arc<dyn MoveLedger>, context: &ConsumerContext) -> Self {
        Self {
            settlements: record_batches(ledger, context, |ledger, batch| {
                ledger.record_changed_rows(batch)
            }),
            failures: record_batches(ledger, context, |ledger, batch| {
                ledger.record_failures(batch)
            }),
            poison: record_batches(ledger, context, |ledger, batch| ledger.record_poison(batch)),
            has_fenced: AtomicBool::default(),
        }
    }

    pub async fn record_settlement(
        &self,
        task: &MoveTask,
        row: RowState,
        orphan: Option<OrphanedCopy>,
    ) -> Event {
        if row == RowState::Fenced && !self.has_fenced.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "messages that were sent before a rollback or a clean move nothing any more: start the feeder again if their rows are to move"
            );
        }
        if let Some(orphan) = &orphan {
            tracing::debug!(
                row = %task.id, key = orphan.destination_key,
                "row {} was changed while its image was copied: the copy is an orphan", task.id
            );
        }
        let settlement = build_settlement(task, row, orphan);
        recorded_event(self.settlements.submit(settlement).await)
    }

    pub async fn record_failure(
        &self,
        task: &MoveTask,
        cause: FailureCause,
        orphan: Option<OrphanedCopy>,
    ) -> Event {
        tracing::warn!(
            row = %task.id, path = task.route.old_path, code = cause.code,
            "row {} cannot be moved: {} ({})", task.id, cause.message, cause.code
        );
        let failure = build_failure(task, cause, orphan);
        recorded_event(self.failures.submit(failure).await)
    }

    pub async fn record_poison(&self, message_id: &str, reason: String, body: &str) -> Event {
        tracing::warn!(
            message_id,
            reason,
            "message {message_id} is not one of ours: {reason}"
        );
        let record = PoisonRecord {
            message_id: message_id.to_owned(),
            reason,
            excerpt: body.chars().take(MAX_EXCERPT_CHARS).collect(),
        };
        recorded_event(self.poison.submit(record).await)
    }
}

pub fn build_settlement(
    task: &MoveTask,
    row: RowState,
    orphan: Option<OrphanedCopy>,
) -> ChangedRow {
    let (found_path, is_final) = match row {
        RowState::Changed { path, is_in_scope } => (Some(path), !is_in_scope),
        RowState::Moved => (Some(task.route.new_path.clone()), true),
        RowState::Deleted => (None, true),
        // The next sweep feeds it. The protocol never settles a row that asks for its move.
        RowState::Fenced | RowState::NeedsMove { .. } => (Some(task.route.old_path.clone()), false),
    };
    ChangedRow {
        id: task.id.clone(),
        old_path: task.route.old_path.clone(),
        new_path: task.route.new_path.clone(),
        found_path,
        is_final,
        orphan,
    }
}

pub fn build_failure(
    task: &MoveTask,
    cause: FailureCause,
    orphan: Option<OrphanedCopy>,
) -> MoveFailure {
    MoveFailure {
        id: task.id.clone(),
        path: task.route.old_path.clone(),
        code: cause.code,
        message: cause.message,
        permanent: cause.permanent,
        orphan,
    }
}

/// A record that the database refuses (text that its encoding cannot hold) is missing from the ledger, though
/// not from the log; the message ends all the same.
fn recorded_event(outcome: LedgerOutcome<()>) -> Event {
    match outcome {
        LedgerOutcome::Done(()) => Event::Recorded,
        LedgerOutcome::Interrupted => Event::Interrupted,
        LedgerOutcome::Refused(FailureCause { code, message, .. }) => {
            tracing::error!(code, message, "the database refuses to record this");
            Event::Recorded
        }
    }
}
