//! Who must not be at work at the same time: two commands that prove or undo, or one of these and what
//! would fight it.

use anyhow::Context as _;
use bucket_brigade_common::exit::{self, CommandError};
use bucket_brigade_common::ledger::{AdvisoryLock, PostgresLedger};
use bucket_brigade_common::preflight::retry_transient;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::queue::sqs::SqsQueue;

use crate::context::CommandContext;

/// Keeps other commands of this kind out of the run.
///
/// # Errors
/// A [`Refusal`] when one is at work.
pub(super) async fn acquire_operator_lock(ledger: &PostgresLedger) -> anyhow::Result<AdvisoryLock> {
    let lock = ledger.acquire_operator_lock().await?;
    lock.ok_or_else(|| busy_refusal("another verify, rollback or clean of this run is at work"))
}

/// Makes sure that a lock is still there: it ends with its connection.
///
/// # Errors
/// A [`Refusal`] when it is not.
pub(super) async fn ensure_held(lock: &mut AdvisoryLock) -> anyhow::Result<()> {
    if lock.is_held().await {
        Ok(())
    } else {
        Err(busy_refusal(
            "the connection to the database was lost, and with it the lock that keeps others out; run the same command again",
        ))
    }
}

/// The feeder kept out, and consumers without anything to do: either would move rows again.
pub(super) struct QuiescedFleet {
    lock: AdvisoryLock,
    queue: SqsQueue,
}

impl QuiescedFleet {
    /// Keeps the feeder out, and makes sure that nothing is in the queue.
    ///
    /// # Errors
    /// A feeder is at work, or the queue is not empty.
    pub(super) async fn quiesce(
        context: &CommandContext,
        ledger: &PostgresLedger,
    ) -> anyhow::Result<Self> {
        let lock = ledger.acquire_feeder_lock().await;
        let fleet = Self {
            lock: lock.context("stop the feeder first: it would move the rows again")?,
            queue: context.sqs_queue().await?,
        };
        fleet.ensure_queue_empty().await?;
        Ok(fleet)
    }

    /// Makes sure that all is as it was: a retry, or a redrive by other means, may have sent messages.
    ///
    /// # Errors
    /// The lock is lost, or the queue is not empty any more.
    pub(super) async fn ensure_quiesced(&mut self) -> anyhow::Result<()> {
        ensure_held(&mut self.lock).await?;
        self.ensure_queue_empty().await
    }

    async fn ensure_queue_empty(&self) -> anyhow::Result<()> {
        let attributes = retry_transient(async || self.queue.queue_attributes().await).await?;
        let backlog = attributes.backlog;
        if backlog.total_messages() == 0 {
            return Ok(());
        }
        Err(busy_refusal(format!(
            "{} messages wait in the queue and {} are in consumers' hands: let them drain, or stop the consumers and purge the queue (what is lost from it is fed again later)",
            backlog.visible, backlog.in_flight
        )))
    }
}

fn busy_refusal(reason: impl Into<String>) -> anyhow::Error {
    CommandError {
        code: exit::ANOTHER_FEEDER,
        reason: reason.into(),
    }
    .into()
}
