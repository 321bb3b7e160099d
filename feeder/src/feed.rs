//! Sweep after sweep until nothing is left.

use std::fmt::Display;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bucket_brigade_common::empty_scope::EmptyScope;
use bucket_brigade_common::ledger::feed_source::{
    FeedSource, PageReader, RunProgress, SweepAccess,
};
use bucket_brigade_common::ledger::move_ledger::MoveLedger;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::message::MessageOrigin;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::MessageQueue;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::throttle::Throttle;
use tokio_util::sync::CancellationToken;

use crate::backlog::BacklogLimit;
use crate::cursor::FeedCursor;
use crate::drain::{SHARED_STALL_TIMEOUT, wait_until_drained};
use crate::outcome::FeedOutcome;
use crate::progress::FeederProgress;
use crate::retry::{FeederStopped, Retrier};
use crate::send::BatchSender;
use crate::settings::FeedOptions;
use crate::sweep::{CanarySelection, SweepSummary, TableSweep};
use crate::watch::TableWatch;

/// So many sweeps in a row that find no fewer rows are no accident.
const SUSPICIOUS_SWEEPS: u32 = 3;

/// Whether sweeps find fewer and fewer rows, as they do unless something adds rows as fast as they move.
#[derive(Default)]
struct SweepTrend {
    last_fed: u64,
    not_fewer: u32,
}

impl SweepTrend {
    fn add(&mut self, fed: u64) {
        let is_fewer = fed < self.last_fed.max(1);
        self.not_fewer = if is_fewer { 0 } else { self.not_fewer + 1 };
        self.last_fed = fed;
        if self.not_fewer > SUSPICIOUS_SWEEPS {
            tracing::warn!(
                fed,
                "{} sweeps in a row found no fewer rows than the one before: does a trigger or the application add rows with the old prefix as fast as they move?",
                self.not_fewer
            );
        }
    }
}

/// What the feeder works with, whatever stands behind it.
pub struct FeedLoop {
    pub origin: MessageOrigin,
    pub queue: Arc<dyn MessageQueue>,
    /// The cursor, and the run in numbers.
    pub source: Arc<dyn FeedSource>,
    /// The rows.
    pub pages: Arc<dyn PageReader>,
    /// Where failures are recorded.
    pub ledger: Arc<dyn MoveLedger>,
    pub rule: PathRule,
    pub options: FeedOptions,
    pub throttle: Arc<Throttle>,
    pub progress: Arc<FeederProgress>,
    pub stop: CancellationToken,
}

impl FeedLoop {
    /// Feeds until a sweep finds nothing; with a watch interval, without end. When it is stopped, everything
    /// confirmed is in the ledger, and the next feeder goes on from there.
    pub async fn run(&self) -> Result<FeedOutcome, FeederStopped> {
        if let Some(canary) = self.options.canary {
            return self.run_canary(canary).await;
        }
        self.restart_unfed_sweep().await?;
        let (mut is_scope_checked, mut by_heap) = (false, None);
        let mut patience = SHARED_STALL_TIMEOUT;
        let mut trend = SweepTrend::default();
        loop {
            let access = self.prepare_sweep().await?;
            let start = access.start().filter(|_| by_heap.is_none());
            let sweep = self.sweep_what_is_left(&access, start.cloned()).await?;
            if sweep.fed > 0 && !self.drain(patience).await? {
                // Where no consumer can take them, the same rows are not sent again and again.
                patience *= 2;
            }
            trend.add(sweep.fed);
            if start.is_some() {
                by_heap = Some(sweep.clone());
            }
            if sweep.fed > 0 || start.is_some() {
                self.cursor().begin_sweep().await?;
                continue;
            }
            if !self.finish().await? {
                self.cursor().begin_sweep().await?;
                continue;
            }
            match self.options.watch_interval {
                None => return self.read_outcome(sweep.unrecorded).await,
                Some(interval) => {
                    if !mem::replace(&mut is_scope_checked, true) {
                        self.warn_of_empty_scope().await?;
                    }
                    self.watch(interval, by_heap.as_ref().unwrap_or(&sweep))
                        .await?;
                }
            }
        }
    }

    /// Looks for new work until a sweep is due: where it costs what is left, at once.
    async fn watch(&self, interval: Duration, sweep: &SweepSummary) -> Result<(), FeederStopped> {
        let mut watch = TableWatch::after_sweep(sweep, interval, self.options.full_sweep_interval);
        loop {
            self.progress.set_phase(WorkerState::Watching);
            self.retrier().sleep_unless_stopped(interval).await?;
            let access = self.prepare_sweep().await?;
            if self.cursor().read_position().await?.sweep_fed > 0 {
                // A retry: its rows lie anywhere.
                return Ok(());
            }
            match access {
                SweepAccess::NothingLeft => {}
                SweepAccess::Index(_) => return Ok(()),
                access => {
                    let mut sweep = self.table_sweep(None, access.start().cloned());
                    if watch.poll(&mut sweep).await? > 0 && !self.finish_poll(&sweep).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// After rows that were fed outside a sweep. False where more may be left.
    async fn finish_poll(&self, sweep: &TableSweep<'_>) -> Result<bool, FeederStopped> {
        let is_drained = self.drain(SHARED_STALL_TIMEOUT).await?;
        // What was not sent by us was counted by a retry.
        let counted = self.cursor().read_position().await?.sweep_fed;
        let is_retried = sweep.is_retried || counted > sweep.backlog.sent();
        self.cursor().begin_sweep().await?;
        Ok(is_drained && !is_retried && self.finish().await?)
    }

    async fn sweep_what_is_left(
        &self,
        access: &SweepAccess,
        start: Option<RowId>,
    ) -> Result<SweepSummary, FeederStopped> {
        tracing::debug!(?access, ?start, "a sweep begins");
        match access {
            SweepAccess::NothingLeft => Ok(SweepSummary::default()),
            _ => self.run_sweep(None, start).await,
        }
    }

    async fn prepare_sweep(&self) -> Result<SweepAccess, FeederStopped> {
        let prepare = async || self.pages.prepare().await;
        let retrier = self.retrier();
        retrier.retry_database("looking at indexes", prepare).await
    }

    /// False where rows came to be left meanwhile.
    async fn finish(&self) -> Result<bool, FeederStopped> {
        let settle = async |cursor: Option<&RowId>| self.source.settle_stale_failures(cursor).await;
        let settled = self.retrier().retry_pages("settling failures", settle);
        settled.await?;
        self.query_source("finishing", async |source| source.finish_run().await)
            .await
    }

    /// Feeds a part from the table's beginning, and waits until it is done. The next feeder starts at the
    /// beginning again, and finds the rest.
    async fn run_canary(&self, canary: CanarySelection) -> Result<FeedOutcome, FeederStopped> {
        self.cursor().begin_sweep().await?;
        let before = (self.read_progress().await?, self.read_failures().await?);
        let start = self.prepare_sweep().await?.start().cloned();
        let SweepSummary {
            fed, unrecorded, ..
        } = self.run_sweep(Some(canary), start).await?;
        tracing::info!(fed, "the canary is fed: {fed} rows");
        self.drain(SHARED_STALL_TIMEOUT).await?;
        self.cursor().begin_sweep().await?;
        Ok(self.read_outcome(unrecorded).await?.since(&before))
    }

    /// A sweep that was cut off before it found a row is begun again, so that "nothing found" is always
    /// about a whole table and about now.
    async fn restart_unfed_sweep(&self) -> Result<(), FeederStopped> {
        let position = self.cursor().read_position().await?;
        if position.sweep_fed == 0 {
            self.cursor().begin_sweep().await?;
        }
        Ok(())
    }

    async fn run_sweep(
        &self,
        canary: Option<CanarySelection>,
        start: Option<RowId>,
    ) -> Result<SweepSummary, FeederStopped> {
        self.progress.set_phase(WorkerState::Feeding);
        self.table_sweep(canary, start).run().await
    }

    fn table_sweep(&self, canary: Option<CanarySelection>, start: Option<RowId>) -> TableSweep<'_> {
        let (queue, progress, retrier) = (&*self.queue, &*self.progress, self.retrier());
        TableSweep {
            cursor: self.cursor(),
            start,
            rule: &self.rule,
            sender: BatchSender {
                origin: self.origin,
                queue: Arc::clone(&self.queue),
                ledger: &*self.ledger,
                unrecorded: AtomicU64::new(0),
                retrier,
            },
            backlog: BacklogLimit::new(
                queue,
                &*self.source,
                self.options.max_backlog,
                progress,
                retrier,
            ),
            canary,
            has_begun: false,
            is_retried: false,
        }
    }

    fn cursor(&self) -> FeedCursor<'_> {
        FeedCursor {
            source: &*self.source,
            pages: &*self.pages,
            page_size: self.options.page_size,
            progress: &self.progress,
            throttle: &self.throttle,
            retrier: self.retrier(),
        }
    }

    /// False where messages may be left all the same.
    async fn drain(&self, patience: Duration) -> Result<bool, FeederStopped> {
        let (queue, source) = (&*self.queue, &*self.source);
        wait_until_drained(queue, source, &self.progress, self.retrier(), patience).await
    }

    async fn read_outcome(&self, unrecorded: u64) -> Result<FeedOutcome, FeederStopped> {
        let progress = self.read_progress().await?;
        Ok(FeedOutcome {
            failures: self.read_failures().await?,
            unrecorded,
            is_canary: self.options.canary.is_some(),
            empty_scope: match unrecorded {
                0 => self.explain_empty_scope(&progress).await?,
                _ => None,
            },
            progress,
        })
    }

    async fn read_failures(&self) -> Result<Vec<(String, u64)>, FeederStopped> {
        let read = async |source: &dyn FeedSource| source.failures_by_code().await;
        self.query_source("reading failures", read).await
    }

    async fn read_progress(&self) -> Result<RunProgress, FeederStopped> {
        self.query_source("reading progress", async |source| {
            source.run_progress().await
        })
        .await
    }

    /// Why no row was ever in scope; none where some were, or are and a canary has passed them over.
    async fn explain_empty_scope(
        &self,
        progress: &RunProgress,
    ) -> Result<Option<EmptyScope>, FeederStopped> {
        if progress.has_had_rows() {
            return Ok(None);
        }
        let has_rows = async |cursor: Option<&RowId>| self.source.has_rows_left(cursor).await;
        let has_rows = self.retrier().retry_pages("looking for rows", has_rows);
        if self.options.canary.is_some() && has_rows.await? {
            return Ok(None);
        }
        let sample = async |source: &dyn FeedSource| source.sample_paths().await;
        let sample = self.query_source("reading paths", sample).await?;
        Ok(Some(EmptyScope::explain(&self.rule, &sample)))
    }

    async fn warn_of_empty_scope(&self) -> Result<(), FeederStopped> {
        let progress = self.read_progress().await?;
        if let Some(why) = self.explain_empty_scope(&progress).await? {
            tracing::warn!("nothing is to move yet: {why}");
        }
        Ok(())
    }

    fn retrier(&self) -> Retrier<'_> {
        Retrier {
            health: self.progress.health(),
            stop: &self.stop,
        }
    }

    async fn query_source<T, E: Display>(
        &self,
        what: &str,
        call: impl AsyncFn(&dyn FeedSource) -> Result<T, E>,
    ) -> Result<T, FeederStopped> {
        self.retrier()
            .retry_database(what, async || call(&*self.source).await)
            .await
    }
}
