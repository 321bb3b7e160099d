//! What all who watch see, looked up once for all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use bucket_brigade_common::catalog::CatalogError;
use bucket_brigade_common::ledger::{Ledger, Limits};
use bucket_brigade_common::sqs::SqsQueue;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Subject;
use super::history::{History, Sample};
use super::thumbnail::{Gallery, Thumbnail};
use crate::command::status::View;

/// How often the run is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The run, as last seen.
pub(super) struct Board {
    ledger: Ledger,
    queue: SqsQueue,
    gallery: Option<Gallery>,
    has_controls: bool,
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Default)]
struct Seen {
    status: Bytes,
    view: Option<View>,
    history: History,
}

/// What the page is told.
#[derive(Serialize)]
struct Status<'a> {
    has_controls: bool,
    /// Why the figures are old; none when they are not.
    trouble: Option<&'a str>,
    sample: Sample,
    view: Option<&'a View>,
    /// None when they are off.
    thumbnails: Option<&'a [Thumbnail]>,
}

impl Board {
    pub(super) fn new(subject: Subject, gallery: Option<Gallery>, has_controls: bool) -> Self {
        Self {
            ledger: subject.ledger,
            queue: subject.queue,
            gallery,
            has_controls,
            seen: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Looks at the run for as long as it is polled: every two seconds, and when it was steered.
    pub(super) async fn look_forever(&self) {
        loop {
            self.look().await;
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn look(&self) {
        let view = View::read(&self.ledger, &self.queue).await;
        let thumbnails = match &self.gallery {
            Some(gallery) => Some(gallery.newest(&self.ledger).await),
            None => None,
        };
        let sample = sample(view.as_ref().ok());
        let mut seen = self.lock();
        seen.history.add(sample);
        let trouble = match view {
            Ok(view) => {
                seen.view = Some(view);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let status = Status {
            has_controls: self.has_controls,
            trouble: trouble.as_deref(),
            sample,
            view: seen.view.as_ref(),
            thumbnails: thumbnails.as_deref(),
        };
        seen.status = in_json(&status);
    }

    /// The run as last seen; nothing before the first look.
    pub(super) fn status(&self) -> Bytes {
        self.lock().status.clone()
    }

    /// The run so far.
    pub(super) fn history(&self) -> Bytes {
        in_json(&self.lock().history.samples())
    }

    /// Pauses the fleet.
    pub(super) async fn pause(&self, by: &str, reason: Option<&str>) -> Result<(), CatalogError> {
        self.ledger.pause(by, reason).await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Ends a pause.
    pub(super) async fn resume(&self) -> Result<(), CatalogError> {
        self.ledger.resume().await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Sets the limits that are given, or ends both.
    pub(super) async fn limit(&self, lift: bool, limits: Limits) -> Result<(), CatalogError> {
        self.ledger.limit(lift, limits).await?;
        self.changed.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Nothing that can panic runs under this lock.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the charts show of it.
fn sample(view: Option<&View>) -> Sample {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let commits = view
        .iter()
        .flat_map(|view| &view.workers)
        .filter(|worker| worker.role == "consumer");
    Sample {
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

fn in_json(what: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(what).unwrap_or_else(|error| {
        tracing::warn!(%error, "the page's figures cannot be written");
        b"null".to_vec()
    });
    Bytes::from(text)
}
