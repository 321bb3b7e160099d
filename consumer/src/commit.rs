//! Commit: paths and evidence of many proven copies in one statement.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::move_ledger::{MoveLedger, PendingMove, StatementError};
use bucket_brigade_common::object_store::CopiedObject;
use bucket_brigade_common::throttle::Throttle;
use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::counters::ConsumerCounters;
use crate::desk::{Answer, Desk};
use crate::gather::Limits;
use crate::health::Health;
use crate::protocol::{Event, FailureCause};

/// Fifty rows make a statement worth its while; a hundred keep it short for the application's own
/// writers; two statements in flight hide the round trip.
const COMMIT_BATCHES: Limits = Limits {
    size: 100,
    enough: 50,
    linger: Duration::from_millis(50),
    in_flight: 2,
};

/// Commits moves in batches.
pub struct Committer(Desk<PendingMove, bool>);

impl Committer {
    /// Commits to the catalog; the throttle and the tally hear how long each batch took.
    pub fn new(
        catalog: Arc<dyn MoveLedger>,
        throttle: Arc<Throttle>,
        tally: Arc<ConsumerCounters>,
        health: Health,
        stop: CancellationToken,
    ) -> Self {
        Self(Desk::open(
            COMMIT_BATCHES,
            health,
            stop,
            move |moves: Arc<[PendingMove]>| {
                let (catalog, throttle) = (Arc::clone(&catalog), Arc::clone(&throttle));
                let tally = Arc::clone(&tally);
                async move {
                    let began = Instant::now();
                    let answer = commit_batch(&*catalog, &moves).await;
                    // A database that is away is waited for elsewhere; it is not slow.
                    if answer.is_ok() {
                        let took = began.elapsed();
                        throttle.commit_took(took);
                        tally.commits.observe(took.as_secs_f64());
                    }
                    answer
                }
                .boxed()
            },
        ))
    }

    /// Sets the task's path to the copy.
    pub async fn commit(&self, task: &MoveTask, copied: CopiedObject) -> Event {
        match self.0.submit(build_move(task, copied)).await {
            Answer::Done(true) => Event::Committed,
            Answer::Done(false) => Event::NotCommitted,
            Answer::Refused { code, message } => Event::CommitRefused(FailureCause {
                code,
                message,
                permanent: true,
            }),
            Answer::Interrupted => Event::Interrupted,
        }
    }
}

/// What is committed of a proven copy.
pub fn build_move(task: &MoveTask, copied: CopiedObject) -> PendingMove {
    PendingMove {
        id: task.id.clone(),
        old_path: task.route.old_path.clone(),
        new_path: task.route.new_path.clone(),
        destination_key: task.route.destination_key.clone(),
        etag: copied.etag,
        size_bytes: copied.size_bytes,
    }
}

/// Two deliveries of one message can meet in a batch, and one id twice would join unpredictably: the
/// second is answered as not committed, looks, and finds the row moved.
async fn commit_batch(
    catalog: &dyn MoveLedger,
    moves: &[PendingMove],
) -> Result<Vec<bool>, StatementError> {
    let mut seen = HashSet::new();
    let is_first: Vec<bool> = moves.iter().map(|one| seen.insert(&one.id)).collect();
    let moved = if seen.len() == moves.len() {
        catalog.commit(moves).await?
    } else {
        let pairs = moves.iter().zip(&is_first);
        let distinct = pairs
            .filter(|(_, is_first)| **is_first)
            .map(|(one, _)| one.clone());
        catalog.commit(&distinct.collect::<Vec<_>>()).await?
    };
    let answers = moves.iter().zip(is_first);
    Ok(answers
        .map(|(one, is_first)| is_first && moved.contains(&one.id))
        .collect())
}
