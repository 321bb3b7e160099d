//! One feeder per run: its lock is the session's, and is taken again when the session is lost.

use std::time::Duration;

use bucket_brigade_common::ledger::{AdvisoryLock, LedgerError, PostgresLedger};
use bucket_brigade_common::preflight::retry_transient;
use tokio::time::{Instant, sleep};

const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(5);

const LOCK_WAIT_INTERVAL: Duration = Duration::from_secs(1);

/// By then the server has given up a session whose client does not answer, after 25 s by the keepalives that
/// it was asked for.
const DEAD_SESSION_TIMEOUT: Duration = Duration::from_secs(40);

/// Waits until the lock is free: a feeder before this one may be ending, or its host have died without a
/// word to the server.
pub async fn wait_for_feeder_lock(ledger: &PostgresLedger) -> Result<AdvisoryLock, LedgerError> {
    let began = Instant::now();
    let mut is_logged = false;
    loop {
        match retry_transient(async || ledger.acquire_feeder_lock().await).await {
            Err(error) if may_end_soon(&error) && began.elapsed() < DEAD_SESSION_TIMEOUT => {
                if !is_logged {
                    tracing::warn!("waiting up to {DEAD_SESSION_TIMEOUT:?} for its end: {error}");
                }
                is_logged = true;
            }
            taken => return taken,
        }
        sleep(LOCK_WAIT_INTERVAL).await;
    }
}

/// A command that excludes feeders is an operator's: its end is nothing to wait for.
fn may_end_soon(error: &LedgerError) -> bool {
    matches!(error, LedgerError::AnotherFeeder { holder, .. } if !holder.is_command())
}

/// Returns only when another feeder has taken over, after the connection that held the lock was lost.
pub async fn hold_feeder_lock(ledger: &PostgresLedger, mut lock: AdvisoryLock) -> LedgerError {
    loop {
        while lock.is_held().await {
            sleep(LOCK_CHECK_INTERVAL).await;
        }
        tracing::warn!("the connection that holds the feeder's lock is lost or silent");
        // Closes the connection, by which the server knows that the lock is free.
        drop(lock);
        match reacquire_lock(ledger).await {
            Ok(taken) => lock = taken,
            Err(error) => return error,
        }
    }
}

/// The lock may still be with the session that fell silent: only after a time it is another feeder's.
async fn reacquire_lock(ledger: &PostgresLedger) -> Result<AdvisoryLock, LedgerError> {
    let lost = Instant::now();
    loop {
        match ledger.acquire_feeder_lock().await {
            Err(error @ LedgerError::AnotherFeeder { .. })
                if lost.elapsed() > DEAD_SESSION_TIMEOUT =>
            {
                return Err(error);
            }
            Err(error) => tracing::debug!(%error, "the feeder's lock is not back yet"),
            taken => return taken,
        }
        sleep(LOCK_CHECK_INTERVAL).await;
    }
}
