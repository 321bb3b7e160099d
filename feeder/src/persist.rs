//! Calls that are repeated until the database or the queue answers, or the feeder is stopped.

use std::fmt::Display;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const AGAIN: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(15),
};

/// The feeder was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Calls until it succeeds. The first failure and the recovery are logged, what is between is not.
///
/// # Errors
/// [`Stopped`] when the stop comes first.
pub async fn persist<T, E: Display>(
    what: &str,
    stop: &CancellationToken,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, Stopped> {
    for tries in 1.. {
        let answer = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Stopped),
            answer = call() => answer,
        };
        match answer {
            Ok(answer) => {
                if tries > 2 {
                    tracing::info!("{what}: works again, going on");
                }
                return Ok(answer);
            }
            Err(error) if tries == 2 => {
                tracing::error!(%error, "{what}: {error}; trying again until it works");
            }
            Err(error) => tracing::debug!(%error, tries, "{what}"),
        }
        pause(AGAIN.delay(tries, fastrand::f64()), stop).await?;
    }
    Err(Stopped)
}

/// Waits.
///
/// # Errors
/// [`Stopped`] when the stop comes first.
pub async fn pause(duration: Duration, stop: &CancellationToken) -> Result<(), Stopped> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Stopped),
        () = sleep(duration) => Ok(()),
    }
}
