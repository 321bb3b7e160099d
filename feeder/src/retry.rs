//! Calls to the database and the queue, retried until they succeed or the feeder is stopped.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::time::Duration;

use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::ledger::feed_source::scan_pages;
use bucket_brigade_common::retry::{Backoff, retry_until_stopped};
use bucket_brigade_common::row_id::RowId;
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

    /// Retries the pages of a scan one by one: what was read stays read.
    pub async fn retry_pages<T, E: Display>(
        self,
        what: &str,
        read: impl AsyncFn(Option<&RowId>) -> Result<ControlFlow<T, RowId>, E>,
    ) -> Result<T, FeederStopped> {
        scan_pages(async |cursor| self.retry_database(what, async || read(cursor).await).await)
            .await
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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use bucket_brigade_common::ledger::fleet_control::WorkerRole;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_scan_goes_on_with_the_page_that_failed() {
        let (health, stop) = (Health::new(WorkerRole::Feeder), CancellationToken::new());
        let retrier = Retrier {
            health: &health,
            stop: &stop,
        };
        let (calls, read) = (Cell::new(0), RefCell::new(Vec::new()));
        // Each second call fails, so that no scan of three pages comes to its end at once, however often it is begun.
        let page = async |cursor: Option<&RowId>| {
            calls.set(calls.get() + 1);
            match calls.get() {
                10.. => return Ok(ControlFlow::Break(false)),
                call if call % 2 == 0 => return Err("away"),
                _ => {}
            }
            let next = cursor.map_or(1, |cursor| cursor.as_str().parse::<u32>().unwrap() + 1);
            read.borrow_mut().push(next);
            Ok(match next {
                3 => ControlFlow::Break(true),
                _ => ControlFlow::Continue(RowId::from_database(next.to_string())),
            })
        };
        let found = retrier.retry_pages("looking for rows", page).await;
        assert_eq!((found, read.into_inner()), (Ok(true), vec![1, 2, 3]));
    }
}
