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
    /// Calls of one name do not overlap: one that is stuck is known by it, though others succeed.
    pub async fn retry_database<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        let database = Dependency::Database;
        let failed = |began, tries, error: &str| {
            self.health
                .record_call_failure(database, began, tries, (what, error));
        };
        let result = self.retry(what, call, failed).await?;
        self.health.record_success(database, what);
        Ok(result)
    }

    pub async fn retry_queue<T, E: Display>(
        self,
        what: &str,
        call: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        let failed = |began, tries, error: &str| {
            let reason = format!("{what}: {error}");
            self.health
                .record_failure(Dependency::Queue, began, tries, &reason);
        };
        let result = self.retry(what, call, failed).await?;
        self.health.mark_up(Dependency::Queue);
        Ok(result)
    }

    async fn retry<T, E: Display>(
        self,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<T, E>,
        failed: impl Fn(Instant, u32, &str),
    ) -> Result<T, FeederStopped> {
        let mut tries = 0;
        let attempt = async || {
            tries += 1;
            let began = Instant::now();
            let result = call().await;
            if let Err(error) = &result {
                tracing::debug!(%error, tries, "{what}");
                failed(began, tries, &error.to_string());
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
        let output = self.stop.run_until_cancelled(event).await;
        output.ok_or(FeederStopped)
    }
}
