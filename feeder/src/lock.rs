//! One feeder per run: its lock is the session's, and is taken again when the session is lost.

use std::time::Duration;

use bucket_brigade_common::ledger::{AdvisoryLock, LedgerError, LockSession, PostgresLedger};
use bucket_brigade_common::preflight::retry_transient;
use tokio::time::{Instant, sleep};

const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(5);

const LOCK_WAIT_INTERVAL: Duration = Duration::from_secs(1);

/// By then the server has given up a session whose client does not answer, after 25 s by the keepalives that
/// it was asked for.
const DEAD_SESSION_TIMEOUT: Duration = Duration::from_secs(40);

/// The session of a command that has just ended may be there for a moment; what is at work is an operator's, and its
/// end nothing to wait for.
const ENDED_COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the lock is free: a feeder before this one may be ending, or its host have died without a
/// word to the server.
async fn wait_for_feeder_lock(ledger: &PostgresLedger) -> Result<AdvisoryLock, LedgerError> {
    let mut refused_at = None::<Instant>;
    loop {
        match retry_transient(async || ledger.acquire_feeder_lock().await).await {
            Err(LedgerError::AnotherFeeder { run, holder }) => {
                let limit = if holder.is_command() {
                    ENDED_COMMAND_TIMEOUT
                } else {
                    DEAD_SESSION_TIMEOUT
                };
                let error = LedgerError::AnotherFeeder { run, holder };
                let since = refused_at.get_or_insert_with(|| {
                    tracing::warn!("waiting up to {limit:?} for its end: {error}");
                    Instant::now()
                });
                if since.elapsed() > limit {
                    return Err(error);
                }
            }
            taken => return taken,
        }
        sleep(LOCK_WAIT_INTERVAL).await;
    }
}

/// Takes the lock, and reads the fence under it.
pub async fn take_feeder_lock(ledger: &PostgresLedger) -> Result<(AdvisoryLock, i64), LedgerError> {
    loop {
        let mut lock = wait_for_feeder_lock(ledger).await?;
        // First: a clean that marks an image later raises it, and what is sent under this one is then not carried out.
        let fence = lock.read_fence().await;
        retry_transient(async || ledger.wait_for_writers().await).await?;
        retry_transient(async || ledger.ensure_no_copy_in_removal().await).await?;
        if let Some(fence) = fence
            && lock.read_fence().await == Some(fence)
        {
            return Ok((lock, fence));
        }
        tracing::warn!(
            "the connection that held the feeder's lock was lost, or a clean began: taking it anew"
        );
        sleep(LOCK_WAIT_INTERVAL).await;
    }
}

/// Returns only when another feeder has taken over, or the run's fence was raised.
pub async fn hold_feeder_lock(
    ledger: &PostgresLedger,
    mut lock: AdvisoryLock,
    fence: i64,
) -> LedgerError {
    loop {
        while lock.is_held().await {
            // What was sent under another is not carried out, whether it can be read now or not.
            if lock.query_fence().await.is_some_and(|now| now != fence) {
                return LedgerError::FenceRaised(ledger.run_id());
            }
            sleep(LOCK_CHECK_INTERVAL).await;
        }
        tracing::warn!("the connection that holds the feeder's lock is lost or silent");
        let session = lock.session();
        // Closes the connection, by which the server knows that the lock is free.
        drop(lock);
        match reacquire_lock(ledger, session).await {
            Ok(taken) => lock = taken,
            Err(error) => return error,
        }
    }
}

/// The lock may still be with the session that fell silent, `own`, which is ended. One that cannot be told from
/// another's counts as another feeder's only after a time, which begins when the database responds.
async fn reacquire_lock(
    ledger: &PostgresLedger,
    own: LockSession,
) -> Result<AdvisoryLock, LedgerError> {
    let mut refused_at = None::<Instant>;
    loop {
        match ledger.acquire_feeder_lock().await {
            Err(LedgerError::AnotherFeeder { holder, .. }) if holder.session() == own => {
                tracing::info!("ending the feeder's own session, which the server still has");
                if let Err(error) = ledger.end_session(own).await {
                    tracing::debug!(%error, "the session ends later");
                }
            }
            Err(error @ LedgerError::AnotherFeeder { .. }) => {
                let since = refused_at.get_or_insert_with(Instant::now);
                if since.elapsed() > DEAD_SESSION_TIMEOUT {
                    return Err(error);
                }
            }
            Err(error) => tracing::debug!(%error, "the feeder's lock is not back yet"),
            taken => return taken,
        }
        sleep(LOCK_CHECK_INTERVAL).await;
    }
}
