//! Commit: paths and evidence of many proven copies in one statement.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::batch::BatchConfig;
use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::STATEMENT_CANCELLED;
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove, StatementError};
use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::object_store::CopiedObject;
use futures::FutureExt;
use tokio::time::Instant;

use crate::context::ConsumerContext;
use crate::lease::LeaseWatch;
use crate::ledger_batcher::{LedgerBatcher, LedgerOutcome};
use crate::protocol::Event;

/// Fifty rows are worth a statement; a hundred keep it short for the application's own writers; two
/// statements in flight hide the round trip.
const COMMIT_BATCHES: BatchConfig = BatchConfig {
    max: 100,
    min: 50,
    linger: Duration::from_millis(50),
    concurrency: 2,
};

fn is_timeout<T>(committed: &Result<T, StatementError>) -> bool {
    matches!(committed, Err(StatementError::Rejected { code, .. }) if code == STATEMENT_CANCELLED)
}

/// Commits moves in batches.
pub struct Committer(LedgerBatcher<CommitRequest, CommitOutcome>);

#[derive(Clone)]
struct CommitRequest {
    pending: PendingMove,
    lease: LeaseWatch,
}

enum CommitOutcome {
    Moved,
    NotMoved,
    /// What was proven may not be so any more: others have the message, and operators may have undone their move and
    /// removed the copy since.
    LeaseLost,
}

impl Committer {
    /// The throttle and the counters receive how long each batch took.
    pub fn new(ledger: Arc<dyn MoveLedger>, context: &ConsumerContext) -> Self {
        let (throttle, counters) = (Arc::clone(&context.throttle), Arc::clone(&context.counters));
        let commit = move |requests: Arc<[CommitRequest]>| {
            let (ledger, throttle) = (Arc::clone(&ledger), Arc::clone(&throttle));
            let counters = Arc::clone(&counters);
            async move {
                let began = Instant::now();
                let committed = commit_held(&*ledger, &requests).await;
                // A database that is down is not slow; one that ends a batch at its time limit is.
                let took = began.elapsed();
                if committed.is_ok() || (requests.len() > 1 && is_timeout(&committed)) {
                    throttle.commit_took(took);
                }
                if committed.is_ok() {
                    counters.commits.observe(took.as_secs_f64());
                }
                committed
            }
            .boxed()
        };
        Self(LedgerBatcher::new(COMMIT_BATCHES, context, commit))
    }

    pub async fn commit(
        &self,
        task: &MoveTask,
        lease: &LeaseWatch,
        copied: CopiedObject,
        companions: CompanionCopies,
    ) -> Event {
        let pending = PendingMove {
            companions,
            ..build_move(task, copied)
        };
        let lease = lease.clone();
        match self.0.submit(CommitRequest { pending, lease }).await {
            LedgerOutcome::Done(CommitOutcome::Moved) => Event::Committed,
            LedgerOutcome::Done(CommitOutcome::NotMoved) => Event::NotCommitted,
            LedgerOutcome::Refused(cause) => Event::CommitRefused(cause),
            LedgerOutcome::Done(CommitOutcome::LeaseLost) | LedgerOutcome::Interrupted => {
                Event::Interrupted
            }
        }
    }
}

/// What is committed of a proven copy without companions.
pub fn build_move(task: &MoveTask, copied: CopiedObject) -> PendingMove {
    PendingMove {
        id: task.id.clone(),
        old_path: task.route.old_path.clone(),
        new_path: task.route.new_path.clone(),
        destination_key: task.route.destination_key.clone(),
        etag: copied.etag,
        size_bytes: copied.size_bytes,
        is_source_gone: copied.is_source_gone,
        is_found: copied.is_found,
        companions: CompanionCopies::new(),
        fence: task.fence,
    }
}

/// Those whose leases are held at this moment: a database may have been silent for long.
async fn commit_held(
    ledger: &dyn MoveLedger,
    requests: &[CommitRequest],
) -> Result<Vec<CommitOutcome>, StatementError> {
    let is_held: Vec<bool> = requests.iter().map(|one| one.lease.is_held()).collect();
    let held = requests
        .iter()
        .zip(&is_held)
        .filter(|(_, is_held)| **is_held);
    let moves: Vec<&PendingMove> = held.map(|(one, _)| &one.pending).collect();
    let mut moved = commit_batch(ledger, &moves).await?.into_iter();
    let outcome = |is_held| match is_held {
        false => CommitOutcome::LeaseLost,
        true if moved.next() == Some(true) => CommitOutcome::Moved,
        true => CommitOutcome::NotMoved,
    };
    Ok(is_held.into_iter().map(outcome).collect())
}

/// Two deliveries of one message can meet in a batch, and one id twice would join unpredictably: the
/// second counts as not committed; its row is read again and found moved.
async fn commit_batch(
    ledger: &dyn MoveLedger,
    moves: &[&PendingMove],
) -> Result<Vec<bool>, StatementError> {
    let mut ids = HashSet::new();
    let is_first: Vec<bool> = moves.iter().map(|one| ids.insert(&one.id)).collect();
    let moved = if ids.len() == moves.len() {
        ledger.commit(moves).await?
    } else {
        let pairs = moves.iter().zip(&is_first);
        let distinct = pairs
            .filter(|(_, is_first)| **is_first)
            .map(|(one, _)| *one);
        ledger.commit(&distinct.collect::<Vec<_>>()).await?
    };
    let pairs = moves.iter().zip(is_first);
    Ok(pairs
        .map(|(one, is_first)| is_first && moved.contains(&one.id))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use async_trait::async_trait;
    use bucket_brigade_common::ledger::move_ledger::{
        ChangedRow, CurrentRow, MoveFailure, PoisonRecord,
    };
    use bucket_brigade_common::path_rule::PathRule;
    use bucket_brigade_common::row_id::RowId;
    use bucket_brigade_common::settings::DatabaseLimits;
    use bucket_brigade_common::throttle::Throttle;
    use parking_lot::Mutex;
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Out of reach for so long; then every row moves.
    struct SilentLedger {
        until: Instant,
        committed: Mutex<Vec<RowId>>,
    }

    #[async_trait]
    impl MoveLedger for SilentLedger {
        async fn read_rows(
            &self,
            _: &[RowId],
        ) -> Result<HashMap<RowId, CurrentRow>, StatementError> {
            unreachable!()
        }

        async fn commit(&self, moves: &[&PendingMove]) -> Result<HashSet<RowId>, StatementError> {
            if Instant::now() < self.until {
                return Err(StatementError::Unavailable("silent".into()));
            }
            let ids: Vec<RowId> = moves.iter().map(|one| one.id.clone()).collect();
            self.committed.lock().extend(ids.clone());
            Ok(ids.into_iter().collect())
        }

        async fn record_changed_rows(&self, _: &[ChangedRow]) -> Result<(), StatementError> {
            unreachable!()
        }

        async fn record_failures(&self, _: &[MoveFailure]) -> Result<(), StatementError> {
            unreachable!()
        }

        async fn record_poison(&self, _: &[PoisonRecord]) -> Result<(), StatementError> {
            unreachable!()
        }
    }

    fn task(id: &str) -> MoveTask {
        let rule = PathRule::new("image/", "avatar/", None, None).unwrap();
        MoveTask {
            id: RowId::from_database(id.to_owned()),
            route: rule.route_for(&format!("image/{id}")).unwrap(),
            fence: 0,
        }
    }

    /// Its row may have been moved by others and set back, and its copy removed since.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_in_hand_any_more_is_not_committed() {
        let ledger = Arc::new(SilentLedger {
            until: Instant::now() + Duration::from_mins(1),
            committed: Mutex::default(),
        });
        let throttle = Throttle::for_copies(8, DatabaseLimits::default());
        let visibility = Duration::from_secs(30);
        let context = ConsumerContext::new(throttle, visibility, CancellationToken::new());
        let committer = Committer::new(Arc::clone(&ledger) as _, &context);
        let (lost, held) = (task("lost"), task("held"));
        let copied = || CopiedObject::new("e");
        let lease = context.leases.start_lease("lost".into());
        let watch = lease.watch();
        let of_lost = committer.commit(&lost, &watch, copied(), CompanionCopies::new());
        let of_held = async {
            sleep(Duration::from_secs(50)).await;
            let lease = context.leases.start_lease("held".into());
            let watch = lease.watch();
            committer
                .commit(&held, &watch, copied(), CompanionCopies::new())
                .await
        };
        let (of_lost, of_held) = tokio::join!(of_lost, of_held);
        assert_eq!((of_lost, of_held), (Event::Interrupted, Event::Committed));
        assert_eq!(*ledger.committed.lock(), [held.id]);
    }
}
