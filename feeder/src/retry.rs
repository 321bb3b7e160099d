//! Calls that are repeated until the database or the queue answers, or the feeder is stopped.

use std::fmt::Display;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::health::{Dependency, Health};

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(15),
};

/// The feeder was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeederStopped;

/// Calls until they succeed, and keeps the health up to date.
#[derive(Debug, Clone, Copy)]
pub struct Retrier<'a> {
    /// Where outages are noted.
    pub health: &'a Health,
    /// Ends all trying.
    pub stop: &'a CancellationToken,
}

impl Retrier<'_> {
    /// Calls the database until it answers.
    ///
    /// # Errors
    /// [`Stopped`] when the stop comes first.
    pub async fn retry_database<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        self.retry_until_stopped(Dependency::Database, what, call)
            .await
    }

    /// Calls the queue until it answers.
    ///
    /// # Errors
    /// [`Stopped`] when the stop comes first.
    pub async fn retry_queue<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        self.retry_until_stopped(Dependency::Queue, what, call)
            .await
    }

    async fn retry_until_stopped<T, E: Display>(
        self,
        dependency: Dependency,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        for tries in 1.. {
            let began = Instant::now();
            let answer = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(FeederStopped),
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
            self.sleep_unless_stopped(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64()))
                .await?;
        }
        Err(FeederStopped)
    }

    pub async fn sleep_unless_stopped(self, duration: Duration) -> Result<(), FeederStopped> {
        self.wait_unless_stopped(sleep(duration)).await
    }

    pub async fn wait_unless_stopped<T>(
        self,
        event: impl Future<Output = T>,
    ) -> Result<T, FeederStopped> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(FeederStopped),
            output = event => Ok(output),
        }
    }
}
