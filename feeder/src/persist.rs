//! Calls that are repeated until the database or the queue answers, or the feeder is stopped.

use std::fmt::Display;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::health::{Dependency, Health};

const AGAIN: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(15),
};

/// The feeder was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Calls until they succeed, and keeps the health up to date.
#[derive(Debug, Clone, Copy)]
pub struct Persist<'a> {
    /// Where outages are noted.
    pub health: &'a Health,
    /// Ends all trying.
    pub stop: &'a CancellationToken,
}

impl Persist<'_> {
    /// Calls the database until it answers.
    ///
    /// # Errors
    /// [`Stopped`] when the stop comes first.
    pub async fn database<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, Stopped> {
        self.until_answered(Dependency::Database, what, call).await
    }

    /// Calls the queue until it answers.
    ///
    /// # Errors
    /// [`Stopped`] when the stop comes first.
    pub async fn queue<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, Stopped> {
        self.until_answered(Dependency::Queue, what, call).await
    }

    async fn until_answered<T, E: Display>(
        self,
        dependency: Dependency,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, Stopped> {
        for tries in 1.. {
            let began = Instant::now();
            let answer = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Stopped),
                answer = call() => answer,
            };
            match answer {
                Ok(answer) => {
                    self.health.answered(dependency);
                    return Ok(answer);
                }
                Err(error) => {
                    tracing::debug!(%error, tries, "{what}");
                    let reason = format!("{what}: {error}");
                    self.health.failed(dependency, began, tries, &reason);
                }
            }
            self.pause(AGAIN.delay(tries, fastrand::f64())).await?;
        }
        Err(Stopped)
    }

    /// Waits.
    ///
    /// # Errors
    /// [`Stopped`] when the stop comes first.
    pub async fn pause(self, duration: Duration) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            () = sleep(duration) => Ok(()),
        }
    }
}
