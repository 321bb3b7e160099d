//! Batches that the queue refuses.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::ledger::fleet_control::WorkerRole;
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, CurrentRow, PendingMove, PoisonRecord,
};
use bucket_brigade_common::queue::{DeadLetter, QueueAttributes, QueueError, ReceivedMessage};
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::*;

type Entries = Result<Vec<EntryOutcome>, QueueError>;

/// Refuses each request that holds the row `bad`, with this code.
struct RefusingQueue {
    code: &'static str,
    sent: Mutex<HashSet<String>>,
}

#[async_trait]
impl MessageQueue for RefusingQueue {
    async fn send_batch(&self, messages: &[OutgoingMessage]) -> Entries {
        if messages.iter().any(|message| message.body.contains("bad")) {
            return Err(QueueError::Refused {
                operation: "SendMessageBatch",
                code: self.code.into(),
                message: "Message must be shorter than 1024 bytes".into(),
            });
        }
        let bodies = messages.iter().map(|message| message.body.clone());
        self.sent.lock().extend(bodies);
        Ok(vec![EntryOutcome::Done; messages.len()])
    }

    async fn receive_batch(
        &self,
        _: usize,
        _: Duration,
        _: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        unreachable!()
    }

    async fn delete_batch(&self, _: &[String]) -> Entries {
        unreachable!()
    }

    async fn change_visibility(&self, _: &[(String, Duration)]) -> Entries {
        unreachable!()
    }

    async fn send_dead_letters(&self, _: &[DeadLetter]) -> Entries {
        unreachable!()
    }

    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        unreachable!()
    }
}

#[derive(Default)]
struct FailureLedger(Mutex<Vec<MoveFailure>>);

#[async_trait]
impl MoveLedger for FailureLedger {
    async fn read_rows(&self, _: &[RowId]) -> Result<HashMap<RowId, CurrentRow>, StatementError> {
        unreachable!()
    }

    async fn commit(&self, _: &[&PendingMove]) -> Result<HashSet<RowId>, StatementError> {
        unreachable!()
    }

    async fn record_changed_rows(&self, _: &[ChangedRow]) -> Result<(), StatementError> {
        unreachable!()
    }

    async fn record_failures(&self, failures: &[MoveFailure]) -> Result<(), StatementError> {
        self.0.lock().extend_from_slice(failures);
        Ok(())
    }

    async fn record_poison(&self, _: &[PoisonRecord]) -> Result<(), StatementError> {
        unreachable!()
    }
}

/// What became of ten rows of which one is bad, when the feeder is stopped after a minute: the failures, the rows
/// that were sent, and whether the queue is up.
async fn send_refused(code: &'static str) -> (Vec<MoveFailure>, usize, bool) {
    let (queue, ledger) = (
        Arc::new(RefusingQueue {
            code,
            sent: Mutex::default(),
        }),
        FailureLedger::default(),
    );
    let (health, stop) = (Health::new(WorkerRole::Feeder), CancellationToken::new());
    let sender = BatchSender {
        origin: MessageOrigin::from(1),
        queue: Arc::<RefusingQueue>::clone(&queue),
        ledger: &ledger,
        unrecorded: AtomicU64::default(),
        retrier: Retrier {
            health: &health,
            stop: &stop,
        },
    };
    let name = |number| {
        if number == 7 {
            "bad".into()
        } else {
            format!("{number}")
        }
    };
    let rows: Vec<_> = (0..10)
        .map(|number| (RowId::from_database(name(number)), "image/a".to_owned()))
        .collect();
    let stopping = async {
        sleep(Duration::from_mins(1)).await;
        stop.cancel();
    };
    tokio::select! {
        _ = sender.send_all(&rows) => {}
        () = stopping => {}
    }
    let sent = queue.sent.lock().len();
    (ledger.0.into_inner(), sent, health.is_up(Dependency::Queue))
}

#[tokio::test(start_paused = true)]
async fn a_row_for_which_a_whole_batch_is_refused_fails_alone() {
    for code in [
        "InvalidParameterValue",
        "InvalidMessageContents",
        "AWS.SimpleQueueService.BatchRequestTooLong",
    ] {
        let (failures, sent, is_up) = send_refused(code).await;
        let [failure] = &*failures else {
            panic!("{code}: {failures:?}");
        };
        assert_eq!(
            (&*failure.code, failure.id.as_str()),
            ("RefusedByQueue", "bad")
        );
        assert!(failure.message.contains("1024 bytes"), "{failure:?}");
        assert!(sent == 9 && is_up, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_to_every_row_is_an_outage() {
    for code in [
        "AccessDenied",
        "SignatureDoesNotMatch",
        "QueueDoesNotExist",
        "KmsDisabled",
        "OptInRequired",
    ] {
        let (failures, sent, is_up) = send_refused(code).await;
        assert!(failures.is_empty() && sent == 0 && !is_up, "{code}");
    }
}
