//! Sweep after sweep until nothing is left.

use std::sync::Arc;

use bucket_brigade_common::catalog::Catalog;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::Queue;
use bucket_brigade_common::scope::{self, Scope};
use bucket_brigade_common::trace::Tracer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backlog::BacklogLimit;
use crate::canary::Canary;
use crate::drain::drain;
use crate::persist::{Persist, Stopped};
use crate::progress::{FEEDING, Progress};
use crate::rate::Rate;
use crate::send::Send;
use crate::settings::Pacing;
use crate::steering::Steering;
use crate::sweep::Sweep;

/// What the feeder works with, whatever stands behind it.
pub struct Feed {
    /// Where rows go.
    pub queue: Arc<dyn Queue>,
    /// The rows and the cursor.
    pub scope: Arc<dyn Scope>,
    /// Where failures are recorded.
    pub catalog: Arc<dyn Catalog>,
    /// The path rule.
    pub rule: PathRule,
    /// How much at a time, and when to end.
    pub pacing: Pacing,
    /// What holds the feeder back.
    pub steering: Arc<Steering>,
    /// What the feeder is doing.
    pub progress: Arc<Progress>,
    /// Begins the traces of rows; none while traces are off.
    pub tracer: Option<Tracer>,
    /// Ends the feeding.
    pub stop: CancellationToken,
}

/// How a migration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The run in numbers.
    pub numbers: scope::Progress,
    /// The failures by code.
    pub failures: Vec<(String, u64)>,
}

impl Feed {
    /// Feeds until a sweep finds nothing; with [`Pacing::watch`], for ever.
    ///
    /// # Errors
    /// [`Stopped`]; everything confirmed is in the ledger, and the next feeder goes on from there.
    pub async fn run(&self) -> Result<Outcome, Stopped> {
        if let Some(canary) = self.pacing.canary {
            return self.run_canary(canary).await;
        }
        self.start_over_if_nothing_was_fed().await?;
        loop {
            let fed = self.sweep(None).await?;
            if fed > 0 {
                drain(&*self.queue, &*self.scope, &self.progress, self.patience()).await?;
                self.persist("starting a sweep", async |scope| scope.begin_sweep().await)
                    .await?;
                continue;
            }
            let settled = self.persist("settling failures", async |scope| {
                scope.settle_stale_failures().await
            });
            settled.await?;
            self.persist("finishing", async |scope| scope.finish().await)
                .await?;
            match self.pacing.watch {
                None => return self.outcome().await,
                Some(interval) => {
                    self.progress.set_phase("watching: nothing to do");
                    self.patience().pause(interval).await?;
                }
            }
        }
    }

    /// Feeds a part from the table's beginning, and waits until it is done. The next feeder starts at the
    /// beginning again, and finds the rest.
    async fn run_canary(&self, canary: Canary) -> Result<Outcome, Stopped> {
        let begin = async || {
            self.persist("starting a sweep", async |scope| scope.begin_sweep().await)
                .await
        };
        begin().await?;
        let fed = self.sweep(Some(canary)).await?;
        tracing::info!(fed, "the canary is fed: {fed} rows");
        drain(&*self.queue, &*self.scope, &self.progress, self.patience()).await?;
        begin().await?;
        self.outcome().await
    }

    /// A sweep that was cut off before it found a row is begun again, so that "nothing found" is always
    /// said of a whole table and of now.
    async fn start_over_if_nothing_was_fed(&self) -> Result<(), Stopped> {
        let position = self
            .persist("reading the cursor", async |scope| scope.position().await)
            .await?;
        if position.sweep_fed == 0 {
            self.persist("starting a sweep", async |scope| scope.begin_sweep().await)
                .await?;
        }
        Ok(())
    }

    async fn sweep(&self, canary: Option<Canary>) -> Result<u64, Stopped> {
        self.progress.set_phase(FEEDING);
        let (queue, progress, persist) = (&*self.queue, &*self.progress, self.patience());
        let sweep = Sweep {
            scope: &*self.scope,
            rule: &self.rule,
            send: Send {
                queue: Arc::clone(&self.queue),
                catalog: &*self.catalog,
                tracer: self.tracer.as_ref(),
                persist,
            },
            backlog: BacklogLimit::new(queue, self.pacing.max_backlog, progress, persist),
            rate: Rate::unlimited(),
            looked: Instant::now(),
            page_size: self.pacing.page_size,
            canary,
            steering: &self.steering,
            progress,
            persist,
        };
        sweep.run().await
    }

    fn patience(&self) -> Persist<'_> {
        Persist {
            health: self.progress.health(),
            stop: &self.stop,
        }
    }

    async fn outcome(&self) -> Result<Outcome, Stopped> {
        Ok(Outcome {
            numbers: self
                .persist("reading progress", async |scope| scope.progress().await)
                .await?,
            failures: self
                .persist("reading failures", async |scope| {
                    scope.failures_by_code().await
                })
                .await?,
        })
    }

    async fn persist<T, E: std::fmt::Display>(
        &self,
        what: &str,
        call: impl AsyncFn(&dyn Scope) -> Result<T, E>,
    ) -> Result<T, Stopped> {
        self.patience()
            .database(what, async || call(&*self.scope).await)
            .await
    }
}
