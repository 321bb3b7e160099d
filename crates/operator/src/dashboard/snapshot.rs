//! What all browsers show, read once for all of them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use bucket_brigade_common::ledger::DatabasePool;
use bucket_brigade_common::queue::sqs::SqsQueue;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::DashboardContext;
use super::history::{HistorySample, RunHistory};
use super::thumbnail::{Thumbnail, ThumbnailSigner};
use crate::runs::RunSummary;
use crate::status::StatusSnapshot;

const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct SnapshotCache {
    pub(super) pool: DatabasePool,
    queue: Option<SqsQueue>,
    own_run: Option<i64>,
    has_controls: bool,
    cached: Mutex<CachedRuns>,
    refresh_requested: Notify,
}

#[derive(Default)]
struct CachedRuns {
    views: Vec<StatusSnapshot>,
    /// Why these are old; none when they are not.
    error: Option<String>,
    read_at: f64,
    histories: BTreeMap<i64, RunHistory>,
    /// Of the feeder's own run; none when they are off.
    thumbnails: Option<Vec<Thumbnail>>,
}

#[derive(Serialize)]
struct DashboardStatus<'a> {
    has_controls: bool,
    #[serde(rename = "trouble")]
    error: Option<&'a str>,
    runs: Vec<&'a RunSummary>,
    sample: HistorySample,
    view: Option<&'a StatusSnapshot>,
    thumbnails: Option<&'a [Thumbnail]>,
}

impl SnapshotCache {
    pub(super) fn new(context: DashboardContext, has_controls: bool) -> Self {
        Self {
            pool: context.pool,
            queue: context.queue,
            own_run: context.own_run.map(|run| run.ledger.run_id()),
            has_controls,
            cached: Mutex::default(),
            refresh_requested: Notify::new(),
        }
    }

    /// Reads the status for as long as this is polled: every two seconds, and after each control.
    pub(super) async fn refresh_forever(&self, mut signer: Option<ThumbnailSigner>) {
        loop {
            self.refresh_snapshot(signer.as_mut()).await;
            tokio::select! {
                () = sleep(REFRESH_INTERVAL) => {}
                () = self.refresh_requested.notified() => {}
            }
        }
    }

    pub(super) fn request_refresh(&self) {
        self.refresh_requested.notify_one();
    }

    async fn refresh_snapshot(&self, signer: Option<&mut ThumbnailSigner>) {
        let views = StatusSnapshot::read_runs(&self.pool, None, self.queue.as_ref()).await;
        let thumbnails = match signer {
            Some(signer) => Some(signer.newest_thumbnails().await.to_vec()),
            None => None,
        };
        let mut cached = self.cached.lock();
        cached.thumbnails = thumbnails;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        cached.read_at = now.unwrap_or_default().as_secs_f64();
        cached.error = None;
        match views {
            Ok(views) => cached.views = views,
            Err(error) => cached.error = Some(error.to_string()),
        }
        cached.add_samples();
    }

    /// The run that is meant: the one that is asked for, the feeder's own, or the only one.
    pub(super) fn find_run(&self, chosen: Option<i64>) -> Option<i64> {
        let cached = self.cached.lock();
        self.find_view(&cached, chosen).map(|view| view.run.id)
    }

    fn find_view<'a>(
        &self,
        cached: &'a CachedRuns,
        chosen: Option<i64>,
    ) -> Option<&'a StatusSnapshot> {
        match (chosen.or(self.own_run), &*cached.views) {
            (Some(run), views) => views.iter().find(|view| view.run.id == run),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }

    pub(super) fn status_json(&self, chosen: Option<i64>) -> Bytes {
        let cached = self.cached.lock();
        let view = self.find_view(&cached, chosen);
        let is_own = view.is_some_and(|view| Some(view.run.id) == self.own_run);
        let thumbnails = cached.thumbnails.as_deref();
        to_json(&DashboardStatus {
            has_controls: self.has_controls,
            error: cached.error.as_deref(),
            runs: cached.views.iter().map(|view| &view.run).collect(),
            sample: chart_sample(cached.read_at, view.filter(|_| cached.error.is_none())),
            view,
            thumbnails: thumbnails.filter(|_| is_own),
        })
    }

    pub(super) fn history_json(&self, chosen: Option<i64>) -> Bytes {
        let cached = self.cached.lock();
        let history = self.find_view(&cached, chosen);
        let history = history.and_then(|view| cached.histories.get(&view.run.id));
        to_json(&history.map_or(&[][..], RunHistory::samples))
    }
}

impl CachedRuns {
    fn add_samples(&mut self) {
        for view in &self.views {
            let history = self.histories.entry(view.run.id).or_default();
            let current = self.error.is_none().then_some(view);
            history.add_sample(chart_sample(self.read_at, current));
        }
    }
}

/// What the charts show of a run; nothing while the database does not answer.
fn chart_sample(at: f64, view: Option<&StatusSnapshot>) -> HistorySample {
    let workers = view.iter().flat_map(|view| &view.workers);
    let commits = workers
        .filter(|worker| worker.role == "consumer")
        .filter_map(|worker| worker.commit_seconds);
    HistorySample {
        at,
        moved: view.map(|view| view.rows.moved),
        over_a_minute: view.map(|view| view.rate.over_a_minute),
        commit_seconds: commits.reduce(f64::max),
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
