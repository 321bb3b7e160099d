//! Who must not be at work at the same time: two commands that prove or undo, or one of these and what
//! would fight it.

use anyhow::Context as _;
use bucket_brigade_common::exit::{self, Refusal};
use bucket_brigade_common::ledger::{FeederLock, Ledger};
use bucket_brigade_common::queue::Queue;

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

/// Keeps the feeder out, and makes sure that no consumer has anything to do: either would move rows again.
///
/// # Errors
/// A feeder is at work, or the queue is not empty.
pub(super) async fn fleet(context: &Context, ledger: &Ledger) -> anyhow::Result<FeederLock> {
    let lock = ledger.lock_feeder().await;
    let lock = lock.context("stop the feeder first: it would move the rows again")?;
    let backlog = context.queue().await.attributes().await?.backlog;
    if backlog.total() == 0 {
        return Ok(lock);
    }
    Err(busy(format!(
        "{} messages wait in the queue and {} are in consumers' hands: let them drain, or stop the consumers and purge the queue (what is lost from it is fed again later)",
        backlog.visible, backlog.in_flight
    )))
}

fn busy(reason: impl Into<String>) -> anyhow::Error {
    Refusal {
        code: exit::ANOTHER_FEEDER,
        reason: reason.into(),
    }
    .into()
}
