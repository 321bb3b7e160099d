//! What all who watch see, looked up once for all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use bucket_brigade_common::ledger::{PostgresLedger, RequestedLimits};
use bucket_brigade_common::move_ledger::StatementError;
use bucket_brigade_common::queue::sqs::SqsQueue;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::DashboardContext;
use super::history::{HistorySample, RunHistory};
use super::thumbnail::{Thumbnail, ThumbnailSigner};
use crate::status::StatusSnapshot;

/// How often the run is looked at.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// The run, as last seen.
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

/// What the page is told.
#[derive(Serialize)]
struct DashboardStatus<'a> {
    has_controls: bool,
    /// Why the figures are old; none when they are not.
    trouble: Option<&'a str>,
    sample: HistorySample,
    view: Option<&'a StatusSnapshot>,
    /// None when they are off.
    thumbnails: Option<&'a [Thumbnail]>,
}

impl SnapshotCache {
    pub(super) fn new(
        subject: DashboardContext,
        gallery: Option<ThumbnailSigner>,
        has_controls: bool,
    ) -> Self {
        Self {
            ledger: subject.ledger,
            queue: subject.queue,
            thumbnail_signer: gallery,
            has_controls,
            cached: Mutex::default(),
            refresh_requested: Notify::new(),
        }
    }

    /// Looks at the run for as long as it is polled: every two seconds, and when it was steered.
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
        let view = StatusSnapshot::read(&self.ledger, &self.queue).await;
        let thumbnails = match &self.thumbnail_signer {
            Some(gallery) => Some(gallery.newest_thumbnails(&self.ledger).await),
            None => None,
        };
        let sample = chart_sample(view.as_ref().ok());
        let mut seen = self.lock_cached();
        seen.history.add_sample(sample);
        let trouble = match view {
            Ok(view) => {
                seen.run_status = Some(view);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let status = DashboardStatus {
            has_controls: self.has_controls,
            trouble: trouble.as_deref(),
            sample,
            view: seen.run_status.as_ref(),
            thumbnails: thumbnails.as_deref(),
        };
        seen.status_json = to_json(&status);
    }

    /// The run as last seen; nothing before the first look.
    pub(super) fn status_json(&self) -> Bytes {
        self.lock_cached().status_json.clone()
    }

    /// The run so far.
    pub(super) fn history_json(&self) -> Bytes {
        to_json(&self.lock_cached().history.samples())
    }

    /// Pauses the fleet.
    pub(super) async fn pause(&self, by: &str, reason: Option<&str>) -> Result<(), StatementError> {
        self.ledger.pause(by, reason).await?;
        self.refresh_requested.notify_one();
        Ok(())
    }

    /// Ends a pause.
    pub(super) async fn resume(&self) -> Result<(), StatementError> {
        self.ledger.resume().await?;
        self.refresh_requested.notify_one();
        Ok(())
    }

    /// Sets the limits that are given, or ends both.
    pub(super) async fn set_limits(
        &self,
        lift: bool,
        limits: RequestedLimits,
    ) -> Result<(), StatementError> {
        self.ledger.set_limits(lift, limits).await?;
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
