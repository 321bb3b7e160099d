//! Record: how a message ended that did not move its row. Settled, failed or poison.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::move_ledger::{
    ChangedRow, MoveFailure, MoveLedger, OrphanedCopy, PoisonRecord,
};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::desk::{Answer, Desk};
use crate::gather::Limits;
use crate::health::Health;
use crate::protocol::{Event, FailureCause, RowState};

const RECORD_BATCHES: Limits = Limits {
    size: 100,
    enough: 50,
    linger: Duration::from_millis(50),
    in_flight: 1,
};

/// How much of a poison message's body is kept, in characters.
const MAX_EXCERPT_CHARS: usize = 200;

/// Writes endings to the ledger in batches.
pub struct OutcomeRecorder {
    settlements: Desk<ChangedRow, ()>,
    failures: Desk<MoveFailure, ()>,
    record_poison: Desk<PoisonRecord, ()>,
}

impl OutcomeRecorder {
    /// Records in the catalog.
    pub fn new(catalog: &Arc<dyn MoveLedger>, health: &Health, stop: &CancellationToken) -> Self {
        let (settle, fail, poison) = (
            Arc::clone(catalog),
            Arc::clone(catalog),
            Arc::clone(catalog),
        );
        Self {
            settlements: Desk::open(
                RECORD_BATCHES,
                health.clone(),
                stop.clone(),
                move |batch: Arc<[ChangedRow]>| {
                    let catalog = Arc::clone(&settle);
                    async move {
                        catalog
                            .record_changed_rows(&batch)
                            .await
                            .map(|()| vec![(); batch.len()])
                    }
                    .boxed()
                },
            ),
            failures: Desk::open(
                RECORD_BATCHES,
                health.clone(),
                stop.clone(),
                move |batch: Arc<[MoveFailure]>| {
                    let catalog = Arc::clone(&fail);
                    async move {
                        catalog
                            .record_failures(&batch)
                            .await
                            .map(|()| vec![(); batch.len()])
                    }
                    .boxed()
                },
            ),
            record_poison: Desk::open(
                RECORD_BATCHES,
                health.clone(),
                stop.clone(),
                move |batch: Arc<[PoisonRecord]>| {
                    let catalog = Arc::clone(&poison);
                    async move {
                        catalog
                            .record_poison(&batch)
                            .await
                            .map(|()| vec![(); batch.len()])
                    }
                    .boxed()
                },
            ),
        }
    }

    /// The row needs no move any more.
    pub async fn record_settlement(
        &self,
        task: &MoveTask,
        seen: RowState,
        orphan: Option<OrphanedCopy>,
    ) -> Event {
        if let Some(orphan) = &orphan {
            tracing::warn!(
                row = %task.id, key = orphan.destination_key,
                "row {} was changed by the application while its image was copied: the copy is an orphan", task.id
            );
        }
        let settlement = build_settlement(task, seen, orphan);
        recorded_event(self.settlements.submit(settlement).await)
    }

    /// The row cannot be moved.
    pub async fn record_failure(&self, task: &MoveTask, trouble: FailureCause) -> Event {
        tracing::warn!(
            row = %task.id, path = task.route.old_path, code = trouble.code,
            "row {} cannot be moved: {} ({})", task.id, trouble.message, trouble.code
        );
        recorded_event(self.failures.submit(build_failure(task, trouble)).await)
    }

    /// The message was not understood.
    pub async fn poison(&self, message_id: &str, reason: String, body: &str) -> Event {
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
        recorded_event(self.record_poison.submit(record).await)
    }
}

/// What is written down of a row that needs no move any more.
pub fn build_settlement(
    task: &MoveTask,
    seen: RowState,
    orphan: Option<OrphanedCopy>,
) -> ChangedRow {
    let (found_path, is_final) = match seen {
        RowState::Changed { path, is_in_scope } => (Some(path), !is_in_scope),
        RowState::Moved => (Some(task.route.new_path.clone()), true),
        RowState::Deleted => (None, true),
        // The protocol never settles a row that asks for its move.
        RowState::NeedsMove { .. } => (Some(task.route.old_path.clone()), false),
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

/// What is written down of a row that cannot be moved.
pub fn build_failure(task: &MoveTask, trouble: FailureCause) -> MoveFailure {
    MoveFailure {
        id: task.id.clone(),
        path: task.route.old_path.clone(),
        code: trouble.code,
        message: trouble.message,
        permanent: trouble.permanent,
    }
}

/// A record that the database refuses (text its encoding cannot hold) is lost to the ledger, though
/// not to the log; the message goes its way all the same.
fn recorded_event(answer: Answer<()>) -> Event {
    match answer {
        Answer::Done(()) => Event::Recorded,
        Answer::Interrupted => Event::Interrupted,
        Answer::Refused { code, message } => {
            tracing::error!(code, message, "the database refuses to record this");
            Event::Recorded
        }
    }
}
