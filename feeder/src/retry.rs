//! Calls to the database and the queue, retried until they succeed or the feeder is stopped.

use std::fmt::Display;
use std::time::Duration;

use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::retry::{Backoff, retry_until_stopped};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(15),
};

/// The feeder was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeederStopped;

/// Retries calls, and keeps the health up to date.
#[derive(Debug, Clone, Copy)]
pub struct Retrier<'a> {
    pub health: &'a Health,
    pub stop: &'a CancellationToken,
}

impl Retrier<'_> {
    pub async fn retry_database<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        self.retry(Dependency::Database, what, call).await
    }

    pub async fn retry_queue<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        self.retry(Dependency::Queue, what, call).await
    }

    async fn retry<T, E: Display>(
        self,
        dependency: Dependency,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        let mut tries = 0;
        let attempt = async || {
            tries += 1;
            let began = Instant::now();
            let result = call().await;
            match &result {
                Ok(_) => self.health.record_success(dependency, what),
                Err(error) => {
                    tracing::debug!(%error, tries, "{what}");
                    let failed = (what, &*error.to_string());
                    self.health
                        .record_call_failure(dependency, began, tries, failed);
                }
            }
            result
        };
        let result = retry_until_stopped(RETRY_BACKOFF, self.stop, attempt).await;
        result.ok_or(FeederStopped)
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
