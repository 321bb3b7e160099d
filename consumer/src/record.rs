//! Record: how a message ended that did not move its row. Settled, failed or poison.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::catalog::{Catalog, Failure, Orphan, PoisonRecord, Settlement};
use bucket_brigade_common::message::Task;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::desk::{Answer, Desk};
use crate::gather::Limits;
use crate::health::Health;
use crate::step::{Event, Seen, Trouble};

const LIMITS: Limits = Limits {
    size: 100,
    enough: 50,
    linger: Duration::from_millis(20),
    in_flight: 1,
};

/// How much of a poison message's body is kept, in characters.
const EXCERPT: usize = 200;

/// Writes endings to the ledger in batches.
pub struct Record {
    settlements: Desk<Settlement, ()>,
    failures: Desk<Failure, ()>,
    poison: Desk<PoisonRecord, ()>,
}

impl Record {
    /// Records in the catalog.
    pub fn new(catalog: &Arc<dyn Catalog>, health: &Health, stop: &CancellationToken) -> Self {
        let (settle, fail, poison) = (
            Arc::clone(catalog),
            Arc::clone(catalog),
            Arc::clone(catalog),
        );
        Self {
            settlements: Desk::open(
                LIMITS,
                health.clone(),
                stop.clone(),
                move |batch: Arc<[Settlement]>| {
                    let catalog = Arc::clone(&settle);
                    async move { catalog.settle(&batch).await.map(|()| vec![(); batch.len()]) }
                        .boxed()
                },
            ),
            failures: Desk::open(
                LIMITS,
                health.clone(),
                stop.clone(),
                move |batch: Arc<[Failure]>| {
                    let catalog = Arc::clone(&fail);
                    async move { catalog.fail(&batch).await.map(|()| vec![(); batch.len()]) }
                        .boxed()
                },
            ),
            poison: Desk::open(
                LIMITS,
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
    pub async fn settle(&self, task: &Task, seen: Seen, orphan: Option<Orphan>) -> Event {
        if let Some(orphan) = &orphan {
            tracing::warn!(
                row = %task.id, key = orphan.destination_key,
                "row {} was changed by the application while its image was copied: the copy is an orphan", task.id
            );
        }
        let settlement = settlement(task, seen, orphan);
        recorded(self.settlements.submit(settlement).await)
    }

    /// The row cannot be moved.
    pub async fn fail(&self, task: &Task, trouble: Trouble) -> Event {
        tracing::warn!(
            row = %task.id, path = task.route.old_path, code = trouble.code,
            "row {} cannot be moved: {} ({})", task.id, trouble.message, trouble.code
        );
        recorded(self.failures.submit(failure(task, trouble)).await)
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
            excerpt: body.chars().take(EXCERPT).collect(),
        };
        recorded(self.poison.submit(record).await)
    }
}

/// What is written down of a row that needs no move any more.
pub fn settlement(task: &Task, seen: Seen, orphan: Option<Orphan>) -> Settlement {
    let (found_path, is_final) = match seen {
        Seen::Changed { path, is_in_scope } => (Some(path), !is_in_scope),
        Seen::Moved => (Some(task.route.new_path.clone()), true),
        Seen::Gone => (None, true),
        // The protocol never settles a row that asks for its move.
        Seen::Wanted { .. } => (Some(task.route.old_path.clone()), false),
    };
    Settlement {
        id: task.id.clone(),
        old_path: task.route.old_path.clone(),
        new_path: task.route.new_path.clone(),
        found_path,
        is_final,
        orphan,
    }
}

/// What is written down of a row that cannot be moved.
pub fn failure(task: &Task, trouble: Trouble) -> Failure {
    Failure {
        id: task.id.clone(),
        path: task.route.old_path.clone(),
        code: trouble.code,
        message: trouble.message,
        permanent: trouble.permanent,
    }
}

/// A record that the database refuses (text its encoding cannot hold) is lost to the ledger, though
/// not to the log; the message goes its way all the same.
fn recorded(answer: Answer<()>) -> Event {
    match answer {
        Answer::Done(()) => Event::Recorded,
        Answer::Interrupted => Event::Interrupted,
        Answer::Refused { code, message } => {
            tracing::error!(code, message, "the database refuses to record this");
            Event::Recorded
        }
    }
}
