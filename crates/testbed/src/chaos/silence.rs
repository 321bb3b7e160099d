//! Silences that come and go: nothing is refused, nothing answers.

use std::time::{Duration, Instant};

use super::cloud_faults::CloudFaults;
use crate::cloud::Cloud;
use crate::proxy::PostgresProxy;

/// How long S3 and SQS answer nothing; what was asked meanwhile is never answered.
const CLOUD_SILENCE: Duration = Duration::from_secs(5);

pub(super) struct SilenceCycle {
    interval: Duration,
    changes_at: Instant,
    cloud: Option<CloudFaults>,
    past_hits: u64,
}

impl SilenceCycle {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            changes_at: Instant::now() + interval,
            cloud: None,
            past_hits: 0,
        }
    }

    /// Begins or ends a silence that is due.
    pub(super) fn advance(&mut self, cloud: &Cloud, postgres: Option<&PostgresProxy>) {
        if Instant::now() < self.changes_at {
            return;
        }
        if self.cloud.is_some() {
            self.past_hits = self.stop();
            self.changes_at = Instant::now() + self.interval;
            return;
        }
        let mut faults = CloudFaults::new();
        faults.inject_silence(cloud);
        self.cloud = Some(faults);
        self.changes_at = Instant::now() + CLOUD_SILENCE;
        if let Some(postgres) = postgres {
            postgres.silence_connections();
        }
    }

    /// Ends it. Returns how many requests met one so far.
    pub(super) fn stop(&mut self) -> u64 {
        let hits = self.hits();
        self.cloud = None;
        hits
    }

    pub(super) fn hits(&self) -> u64 {
        self.past_hits + self.cloud.as_ref().map_or(0, CloudFaults::hits)
    }
}
