//! What a consumer can be asked: its health and its figures.

use std::sync::Arc;

use bucket_brigade_common::histogram::Histogram;
use bucket_brigade_common::http_endpoints::{MetricSample, ProcessStatus};

use crate::counters::ConsumerCounters;
use crate::health::Health;
use crate::lease::Leases;

/// The parts of a pipeline that are looked at from outside, also before it runs.
#[derive(Debug, Clone)]
pub struct ConsumerMetrics {
    /// What is down.
    pub health: Health,
    /// What is in hand.
    pub leases: Leases,
    /// What was done.
    pub counters: Arc<ConsumerCounters>,
}

impl ProcessStatus for ConsumerMetrics {
    fn unhealthy_reason(&self) -> Option<String> {
        self.health.outage()
    }

    fn collect_metrics(&self) -> Vec<MetricSample> {
        let counts = self.counters.counts();
        let in_hand = u64::try_from(self.leases.held_count()).unwrap_or(u64::MAX);
        vec![
            MetricSample::from_count(
                "bucket_brigade_moved_total",
                "Rows moved by this consumer",
                counts.moved,
            ),
            MetricSample::from_count(
                "bucket_brigade_settled_total",
                "Messages whose row needed no move",
                counts.settled,
            ),
            MetricSample::from_count(
                "bucket_brigade_failures_total",
                "Failures recorded, repeats included",
                counts.failed,
            ),
            MetricSample::from_count(
                "bucket_brigade_poison_total",
                "Messages that were not understood, repeats included",
                counts.poison,
            ),
            MetricSample::from_count(
                "bucket_brigade_throttled_total",
                "Requests that S3 throttled",
                counts.throttled,
            ),
            MetricSample::from_count(
                "bucket_brigade_messages_in_hand",
                "Messages in hand",
                in_hand,
            ),
        ]
    }

    fn histograms(&self) -> Vec<&Histogram> {
        let tally = &self.counters;
        vec![&tally.copies, &tally.commits, &tally.ages]
    }
}
