//! What all browsers show, read once for all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::queue::sqs::SqsQueue;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::DashboardContext;
use super::history::{HistorySample, RunHistory};
use super::thumbnail::{Thumbnail, ThumbnailSigner};
use crate::history::Operator;
use crate::limit::{RequestedLimits, set_limits};
use crate::pause::pause_run;
use crate::resume::resume_run;
use crate::status::StatusSnapshot;

const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// The run, as last read.
pub(super) struct SnapshotCache {
    ledger: PostgresLedger,
    queue: SqsQueue,
    thumbnail_signer: Option<ThumbnailSigner>,
    has_controls: bool,
    cached: Mutex<CachedSnapshot>,
    refresh_requested: Notify,
}

#[derive(Default)]
struct CachedSnapshot {
    status_json: Bytes,
    run_status: Option<StatusSnapshot>,
    history: RunHistory,
}

#[derive(Serialize)]
struct DashboardStatus<'a> {
    has_controls: bool,
    /// Why the figures are old; none when they are not.
    #[serde(rename = "trouble")]
    error: Option<&'a str>,
    sample: HistorySample,
    view: Option<&'a StatusSnapshot>,
    /// None when they are off.
    thumbnails: Option<&'a [Thumbnail]>,
}

impl SnapshotCache {
    pub(super) fn new(
        context: DashboardContext,
        signer: Option<ThumbnailSigner>,
        has_controls: bool,
    ) -> Self {
        Self {
            ledger: context.ledger,
            queue: context.queue,
            thumbnail_signer: signer,
            has_controls,
            cached: Mutex::default(),
            refresh_requested: Notify::new(),
        }
    }

    /// Reads the status for as long as this is polled: every two seconds, and after each control.
    pub(super) async fn refresh_forever(&self) {
        loop {
            self.refresh_snapshot().await;
            tokio::select! {
                () = sleep(REFRESH_INTERVAL) => {}
                () = self.refresh_requested.notified() => {}
            }
        }
    }

    async fn refresh_snapshot(&self) {
        let view = StatusSnapshot::read_status(&self.ledger, &self.queue).await;
        let thumbnails = match &self.thumbnail_signer {
            Some(signer) => Some(signer.newest_thumbnails(&self.ledger).await),
            None => None,
        };
        let sample = chart_sample(view.as_ref().ok());
        let mut cached = self.lock_cached();
        cached.history.add_sample(sample);
        let error = match view {
            Ok(view) => {
                cached.run_status = Some(view);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let status = DashboardStatus {
            has_controls: self.has_controls,
            error: error.as_deref(),
            sample,
            view: cached.run_status.as_ref(),
            thumbnails: thumbnails.as_deref(),
        };
        cached.status_json = to_json(&status);
    }

    /// The run as last read; empty before the first time.
    pub(super) fn status_json(&self) -> Bytes {
        self.lock_cached().status_json.clone()
    }

    /// The run so far.
    pub(super) fn history_json(&self) -> Bytes {
        to_json(&self.lock_cached().history.samples())
    }

    pub(super) async fn pause(&self, operator: &Operator) -> Result<(), StatementError> {
        pause_run(self.ledger.pool(), self.ledger.run_id(), operator).await?;
        self.refresh_requested.notify_one();
        Ok(())
    }

    pub(super) async fn resume(&self, operator: &Operator) -> Result<(), StatementError> {
        resume_run(self.ledger.pool(), self.ledger.run_id(), operator).await?;
        self.refresh_requested.notify_one();
        Ok(())
    }

    /// Sets the limits that are given, or ends both.
    pub(super) async fn set_limits(
        &self,
        lift: bool,
        limits: RequestedLimits,
        operator: &Operator,
    ) -> Result<(), StatementError> {
        let (pool, run) = (self.ledger.pool(), self.ledger.run_id());
        set_limits(pool, run, lift, limits, operator).await?;
        self.refresh_requested.notify_one();
        Ok(())
    }

    fn lock_cached(&self) -> MutexGuard<'_, CachedSnapshot> {
        // Nothing that can panic runs under this lock.
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the charts show of it.
fn chart_sample(view: Option<&StatusSnapshot>) -> HistorySample {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let commits = view
        .iter()
        .flat_map(|view| &view.workers)
        .filter(|worker| worker.role == "consumer");
    HistorySample {
        at: now.unwrap_or_default().as_secs_f64(),
        moved: view.map(|view| view.rows.moved),
        over_a_minute: view.map(|view| view.rate.over_a_minute),
        commit_seconds: commits
            .filter_map(|worker| worker.commit_seconds)
            .reduce(f64::max),
        visible: view.and_then(|view| view.queue.visible),
        in_flight: view.and_then(|view| view.queue.in_flight),
    }
}

fn to_json(what: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(what).unwrap_or_else(|error| {
        tracing::warn!(%error, "the page's figures cannot be written");
        b"null".to_vec()
    });
    Bytes::from(text)
}
