//! Who must not be at work at the same time: two commands that prove or undo, or one of these and what
//! would fight it.

use std::time::Duration;

use anyhow::Context as _;
use bucket_brigade_common::exit::{self, CommandError};
use bucket_brigade_common::ledger::{
    AdvisoryLock, LedgerError, LockClaims, PostgresLedger, with_timeout,
};
use bucket_brigade_common::may_be_bucket;
use bucket_brigade_common::preflight::retry_transient;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::queue::sqs::SqsQueue;
use tokio::time::{Instant, sleep};

use crate::context::CommandContext;
use crate::statements::{MAX_RETRIES, RETRY_BACKOFF, retry_statement};

/// Between two tries with locks that are lost again and again.
const LOST_LOCKS_DELAY: Duration = Duration::from_millis(200);

const LOCK_TRIES: usize = 10;

const LOCK_WAIT_INTERVAL: Duration = Duration::from_millis(200);

/// How often locks and queue are looked at, which lags by seconds itself.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// What keeps others out of the run while a command works.
pub(super) struct CommandLocks<'a> {
    ledger: &'a PostgresLedger,
    /// The run's.
    operator: AdvisoryLock,
    /// That of all runs, of a command that moves rows back or removes objects.
    undo: Option<AdvisoryLock>,
    fleet: Option<QuiescedFleet>,
    /// The bucket and the prefix of the keys that are removed.
    removes_from: Option<(String, String)>,
    checked_at: Option<Instant>,
}

/// The locks were lost before a page was done: it is read anew.
#[derive(Debug, thiserror::Error)]
#[error("the locks that keep others out were lost")]
pub(super) struct LocksLost;

impl<'a> CommandLocks<'a> {
    /// Keeps other commands of this kind out.
    pub(super) async fn acquire(ledger: &'a PostgresLedger) -> anyhow::Result<Self> {
        let acquire = async || ledger.acquire_operator_lock().await;
        let lock = wait_for_lock(acquire, |lock| matches!(lock, Ok(None))).await?;
        let busy = "another verify, rollback or clean of this run is at work: wait for its end, or stop it";
        Ok(Self {
            ledger,
            operator: lock.ok_or_else(|| busy_refusal(busy))?,
            undo: None,
            fleet: None,
            removes_from: None,
            checked_at: None,
        })
    }

    /// Keeps the commands of other runs out, too.
    pub(super) async fn exclude_other_runs(&mut self) -> anyhow::Result<()> {
        let acquire = async || self.ledger.acquire_undo_lock().await;
        let lock = wait_for_lock(acquire, |lock| matches!(lock, Ok(None))).await?;
        let busy = "a rollback or clean of another run is at work: wait for its end, or stop it";
        self.undo = Some(lock.ok_or_else(|| busy_refusal(busy))?);
        Ok(())
    }

    /// Keeps the feeder out too, and makes sure that consumers have nothing to do: either would move rows again.
    pub(super) async fn quiesce_fleet(&mut self, context: &CommandContext) -> anyhow::Result<()> {
        let acquire = async || self.ledger.acquire_feeder_lock().await;
        let is_held = |lock: &_| matches!(lock, Err(LedgerError::AnotherFeeder { .. }));
        let lock = wait_for_lock(acquire, is_held).await;
        let fleet = QuiescedFleet {
            lock: lock.context("stop the feeder first: it would move the rows again")?,
            fence: None,
            queue: context.sqs_queue().await?,
        };
        // A command that is refused leaves the messages as good as they were.
        fleet.ensure_queue_empty().await?;
        self.fleet = Some(fleet);
        Ok(())
    }

    /// Shuts out, under all locks, what others began before: of processes that are dead, or stand still.
    pub(super) async fn shut_out(
        &mut self,
        removes_from: Option<(&str, &str)>,
    ) -> anyhow::Result<()> {
        let owned = |(bucket, prefix): (&str, &str)| (bucket.to_owned(), prefix.to_owned());
        self.removes_from = removes_from.map(owned);
        self.raise_fences().await
    }

    async fn raise_fences(&mut self) -> anyhow::Result<()> {
        let (ledger, claims) = (self.ledger, self.claims());
        if let Some((bucket, prefix)) = &self.removes_from {
            shut_out_other_fleets(ledger, bucket, prefix, &claims).await?;
        }
        if let Some(fleet) = &mut self.fleet {
            let expected = fleet.fence;
            let raise = async || ledger.raise_fence(expected, &claims).await;
            fleet.fence = retry_transient(raise).await?;
            fleet.fence.ok_or_else(|| busy_refusal(LOST_LOCKS))?;
        }
        retry_transient(async || ledger.wait_for_writers().await).await?;
        if self.removes_from.is_none() {
            retry_transient(async || ledger.ensure_no_source_in_removal().await).await?;
        }
        match &self.fleet {
            Some(fleet) => fleet.ensure_queue_empty().await,
            None => Ok(()),
        }
    }

    /// The run's, raised; none where the fleet is at work.
    pub(super) fn fence(&self) -> Option<i64> {
        self.fleet.as_ref()?.fence
    }

    /// For statements that are right only as long as all of these locks are held.
    pub(super) fn claims(&self) -> LockClaims {
        let fleet = self.fleet.as_ref().map(|fleet| &fleet.lock);
        let locks = [Some(&self.operator), self.undo.as_ref(), fleet];
        locks
            .into_iter()
            .flatten()
            .map(AdvisoryLock::claim)
            .collect()
    }

    /// Makes sure that all is as it was: a connection may be lost, and a retry, or a redrive by other means, may have
    /// sent messages.
    pub(super) async fn ensure_held(&mut self) -> anyhow::Result<()> {
        let is_fresh = |at: Instant| at.elapsed() < CHECK_INTERVAL;
        if self.checked_at.is_some_and(is_fresh) {
            return Ok(());
        }
        self.check_locks().await
    }

    /// After a statement found that a lock is lost.
    pub(super) async fn reacquire_lost(&mut self) -> anyhow::Result<()> {
        sleep(LOST_LOCKS_DELAY).await;
        self.check_locks().await
    }

    /// Where a lock was lost, others may have been at work: what they left behind is shut out again.
    async fn check_locks(&mut self) -> anyhow::Result<()> {
        let before = self.claims();
        ensure_held(self.ledger, &mut self.operator).await?;
        if let Some(lock) = &mut self.undo {
            ensure_held(self.ledger, lock).await?;
        }
        if let Some(fleet) = &mut self.fleet {
            ensure_held(self.ledger, &mut fleet.lock).await?;
            fleet.ensure_queue_empty().await?;
        }
        if self.undo.is_some() && self.claims() != before {
            self.raise_fences().await?;
        }
        self.checked_at = Some(Instant::now());
        Ok(())
    }
}

pub(super) const LOST_LOCKS: &str = "the connection to the database was lost, and with it the lock that keeps others out; run the same command again";

/// Makes sure that a lock is still there. It ends with its connection, and is taken anew: what is read from
/// then on is what others left.
async fn ensure_held(ledger: &PostgresLedger, lock: &mut AdvisoryLock) -> anyhow::Result<()> {
    if lock.is_held().await {
        return Ok(());
    }
    tracing::warn!("the connection that holds the lock is lost: taking the lock anew");
    for delay in RETRY_BACKOFF.delays().take(MAX_RETRIES) {
        match ledger.reacquire(lock).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the lock is not back yet"),
        }
        sleep(delay).await;
    }
    Err(busy_refusal(LOST_LOCKS))
}

/// The sessions of a command that has just ended, the one before in a script, may be there for a moment.
async fn wait_for_lock<T>(acquire: impl AsyncFn() -> T, is_held: impl Fn(&T) -> bool) -> T {
    for _ in 0..LOCK_TRIES {
        let lock = acquire().await;
        if !is_held(&lock) {
            return lock;
        }
        sleep(LOCK_WAIT_INTERVAL).await;
    }
    acquire().await
}

struct QuiescedFleet {
    lock: AdvisoryLock,
    /// The run's, once it is raised.
    fence: Option<i64>,
    queue: SqsQueue,
}

impl QuiescedFleet {
    async fn ensure_queue_empty(&self) -> anyhow::Result<()> {
        let attributes = retry_transient(async || self.queue.queue_attributes().await).await?;
        let backlog = attributes.backlog;
        if backlog.total_messages() == 0 {
            return Ok(());
        }
        Err(busy_refusal(format!(
            "{} in the queue and {} in consumers' hands: let them drain, or stop the consumers and purge the queue (what is lost from it is fed again later)",
            counted(backlog.visible, "message waits", "messages wait"),
            counted(backlog.in_flight, "is", "are")
        )))
    }
}

/// `$1` run, `$2` bucket, `$3` prefix of the keys that are removed. Who sends a heartbeat may point a row at a copy
/// that is about to go.
const SELECT_OTHER_FLEET: &str = concat!(
    "SELECT r.name || ': ' || w.worker
    FROM bucket_brigade.run r JOIN bucket_brigade.workers w ON w.run_id = r.id
    WHERE r.id <> $1 AND ",
    may_be_bucket!("r.destination_bucket", "$2"),
    "
      AND (starts_with(r.destination_key_prefix, $3) OR starts_with($3, r.destination_key_prefix)) AND w.seen_at > now() - interval '10 seconds'
      AND w.role IN ('feeder', 'consumer')
    ORDER BY 1 LIMIT 1"
);

/// Once a page is marked: a fleet of another run that began since the first time is shut out too, and one that begins
/// later finds the marks.
pub(super) async fn shut_out_later_fleets(
    ledger: &PostgresLedger,
    bucket: &str,
    key_prefix: &str,
    claims: &LockClaims,
) -> anyhow::Result<()> {
    // Where no other run copies into the bucket, whose commits are under way does not matter.
    if shut_out_other_fleets(ledger, bucket, key_prefix, claims).await? > 0 {
        retry_transient(async || ledger.wait_for_writers().await).await?;
    }
    Ok(())
}

/// Makes sure that no process of another run copies into this bucket, and shuts out what it may have sent before.
/// Returns how many such runs there are.
async fn shut_out_other_fleets(
    ledger: &PostgresLedger,
    bucket: &str,
    key_prefix: &str,
    claims: &LockClaims,
) -> anyhow::Result<u64> {
    ensure_no_other_fleet(ledger, bucket, key_prefix).await?;
    let raise = async || {
        ledger
            .raise_fences_of_others(bucket, key_prefix, claims)
            .await
    };
    Ok(retry_transient(raise).await?)
}

/// Makes sure that no process of another run copies into this bucket.
pub(super) async fn ensure_no_other_fleet(
    ledger: &PostgresLedger,
    bucket: &str,
    key_prefix: &str,
) -> anyhow::Result<()> {
    let other: Option<String> = retry_statement(async || {
        let query = sqlx::query_scalar(SELECT_OTHER_FLEET).bind(ledger.run_id());
        let query = query.bind(bucket).bind(key_prefix);
        with_timeout(query.fetch_optional(ledger.pool())).await
    })
    .await?;
    other.map_or(Ok(()), |other| {
        Err(busy_refusal(format!(
            "another run copies into bucket {bucket} ({other}): stop its feeder and consumers first"
        )))
    })
}

pub(super) fn busy_refusal(reason: impl Into<String>) -> anyhow::Error {
    CommandError {
        code: exit::ANOTHER_FEEDER,
        reason: reason.into(),
    }
    .into()
}
