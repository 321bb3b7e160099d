//! Who must not be at work at the same time: two commands that prove or undo, or one of these and what
//! would fight it.

use anyhow::Context as _;
use bucket_brigade_common::exit::{self, Refusal};
use bucket_brigade_common::ledger::{FeederLock, Ledger};
use bucket_brigade_common::preflight::patiently;
use bucket_brigade_common::queue::Queue;
use bucket_brigade_common::sqs::SqsQueue;

use super::context::Context;

/// Keeps other commands of this kind out of the run.
///
/// # Errors
/// A [`Refusal`] when one is at work.
pub(super) async fn operator(ledger: &Ledger) -> anyhow::Result<FeederLock> {
    let lock = ledger.lock_operator().await?;
    lock.ok_or_else(|| busy("another verify, rollback or clean of this run is at work"))
}

/// Makes sure that a lock is still there: it ends with its connection.
///
/// # Errors
/// A [`Refusal`] when it is not.
pub(super) async fn still(lock: &mut FeederLock) -> anyhow::Result<()> {
    if lock.is_held().await {
        Ok(())
    } else {
        Err(busy(
            "the connection to the database was lost, and with it the lock that keeps others out; run the same command again",
        ))
    }
}

/// The feeder kept out, and consumers without anything to do: either would move rows again.
pub(super) struct Fleet {
    lock: FeederLock,
    queue: SqsQueue,
}

impl Fleet {
    /// Keeps the feeder out, and makes sure that nothing is in the queue.
    ///
    /// # Errors
    /// A feeder is at work, or the queue is not empty.
    pub(super) async fn keep_still(context: &Context, ledger: &Ledger) -> anyhow::Result<Self> {
        let lock = ledger.lock_feeder().await;
        let fleet = Self {
            lock: lock.context("stop the feeder first: it would move the rows again")?,
            queue: context.queue().await,
        };
        fleet.has_nothing_to_do().await?;
        Ok(fleet)
    }

    /// Makes sure that all is as it was: a retry, or a redrive by other means, may have sent messages.
    ///
    /// # Errors
    /// The lock is lost, or the queue is not empty any more.
    pub(super) async fn is_still(&mut self) -> anyhow::Result<()> {
        still(&mut self.lock).await?;
        self.has_nothing_to_do().await
    }

    async fn has_nothing_to_do(&self) -> anyhow::Result<()> {
        let attributes = patiently(async || self.queue.attributes().await).await?;
        let backlog = attributes.backlog;
        if backlog.total() == 0 {
            return Ok(());
        }
        Err(busy(format!(
            "{} messages wait in the queue and {} are in consumers' hands: let them drain, or stop the consumers and purge the queue (what is lost from it is fed again later)",
            backlog.visible, backlog.in_flight
        )))
    }
}

fn busy(reason: impl Into<String>) -> anyhow::Error {
    Refusal {
        code: exit::ANOTHER_FEEDER,
        reason: reason.into(),
    }
    .into()
}
