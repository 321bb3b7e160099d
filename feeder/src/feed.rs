//! Sweep after sweep until nothing is left.

use std::sync::Arc;

use bucket_brigade_common::feed_source::{self, FeedSource};
use bucket_brigade_common::move_ledger::MoveLedger;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_common::worker_state::WorkerState;
use tokio_util::sync::CancellationToken;

use crate::backlog::BacklogLimit;
use crate::canary::CanarySelection;
use crate::drain::wait_until_drained;
use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};
use crate::send::BatchSender;
use crate::settings::FeedOptions;
use crate::sweep::TableSweep;

/// What the feeder works with, whatever stands behind it.
pub struct FeedLoop {
    /// Where rows go.
    pub queue: Arc<dyn MessageQueue>,
    /// The rows and the cursor.
    pub source: Arc<dyn FeedSource>,
    /// Where failures are recorded.
    pub ledger: Arc<dyn MoveLedger>,
    /// The path rule.
    pub rule: PathRule,
    /// How much at a time, and when to end.
    pub options: FeedOptions,
    /// What holds the feeder back.
    pub throttle: Arc<Throttle>,
    /// What the feeder is doing.
    pub progress: Arc<FeederProgress>,
    /// Ends the feeding.
    pub stop: CancellationToken,
}

/// How a migration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedOutcome {
    /// The run in numbers.
    pub progress: feed_source::RunProgress,
    /// The failures by code.
    pub failures: Vec<(String, u64)>,
}

impl FeedLoop {
    /// Feeds until a sweep finds nothing; with [`Pacing::watch`], for ever.
    ///
    /// # Errors
    /// [`Stopped`]; everything confirmed is in the ledger, and the next feeder goes on from there.
    pub async fn run(&self) -> Result<FeedOutcome, FeederStopped> {
        if let Some(canary) = self.options.canary {
            return self.run_canary(canary).await;
        }
        self.restart_unfed_sweep().await?;
        loop {
            let fed = self.run_sweep(None).await?;
            if fed > 0 {
                wait_until_drained(&*self.queue, &*self.source, &self.progress, self.retrier())
                    .await?;
                self.query_source("starting a sweep", async |scope| scope.begin_sweep().await)
                    .await?;
                continue;
            }
            let settled = self.query_source("settling failures", async |scope| {
                scope.settle_stale_failures().await
            });
            settled.await?;
            self.query_source("finishing", async |scope| scope.finish_run().await)
                .await?;
            match self.options.watch_interval {
                None => return self.read_outcome().await,
                Some(interval) => {
                    self.progress.set_phase(WorkerState::Watching);
                    self.retrier().sleep_unless_stopped(interval).await?;
                }
            }
        }
    }

    /// Feeds a part from the table's beginning, and waits until it is done. The next feeder starts at the
    /// beginning again, and finds the rest.
    async fn run_canary(&self, canary: CanarySelection) -> Result<FeedOutcome, FeederStopped> {
        let begin = async || {
            self.query_source("starting a sweep", async |scope| scope.begin_sweep().await)
                .await
        };
        begin().await?;
        let fed = self.run_sweep(Some(canary)).await?;
        tracing::info!(fed, "the canary is fed: {fed} rows");
        wait_until_drained(&*self.queue, &*self.source, &self.progress, self.retrier()).await?;
        begin().await?;
        self.read_outcome().await
    }

    /// A sweep that was cut off before it found a row is begun again, so that "nothing found" is always
    /// said of a whole table and of now.
    async fn restart_unfed_sweep(&self) -> Result<(), FeederStopped> {
        let position = self
            .query_source("reading the cursor", async |scope| {
                scope.cursor_position().await
            })
            .await?;
        if position.sweep_fed == 0 {
            self.query_source("starting a sweep", async |scope| scope.begin_sweep().await)
                .await?;
        }
        Ok(())
    }

    async fn run_sweep(&self, canary: Option<CanarySelection>) -> Result<u64, FeederStopped> {
        self.progress.set_phase(WorkerState::Feeding);
        let (queue, progress, persist) = (&*self.queue, &*self.progress, self.retrier());
        let sweep = TableSweep {
            source: &*self.source,
            rule: &self.rule,
            sender: BatchSender {
                queue: Arc::clone(&self.queue),
                ledger: &*self.ledger,
                retrier: persist,
            },
            backlog: BacklogLimit::new(queue, self.options.max_backlog, progress, persist),
            page_size: self.options.page_size,
            canary,
            throttle: &self.throttle,
            retrier: persist,
        };
        sweep.run().await
    }

    fn retrier(&self) -> Retrier<'_> {
        Retrier {
            health: self.progress.health(),
            stop: &self.stop,
        }
    }

    async fn read_outcome(&self) -> Result<FeedOutcome, FeederStopped> {
        Ok(FeedOutcome {
            progress: self
                .query_source("reading progress", async |scope| scope.run_progress().await)
                .await?,
            failures: self
                .query_source("reading failures", async |scope| {
                    scope.failures_by_code().await
                })
                .await?,
        })
    }

    async fn query_source<T, E: std::fmt::Display>(
        &self,
        what: &str,
        call: impl AsyncFn(&dyn FeedSource) -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        self.retrier()
            .retry_database(what, async || call(&*self.source).await)
            .await
    }
}
