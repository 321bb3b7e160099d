//! What a consumer can be asked: its health and its figures.

use std::sync::Arc;

use bucket_brigade_common::histogram::Histogram;
use bucket_brigade_common::observe::{Metric, Observed};

use crate::health::Health;
use crate::lease::Leases;
use crate::tally::Tally;

/// The parts of a pipeline that are looked at from outside, also before it runs.
#[derive(Debug, Clone)]
pub struct Observation {
    /// What is down.
    pub health: Health,
    /// What is in hand.
    pub leases: Leases,
    /// What was done.
    pub tally: Arc<Tally>,
}

impl Observed for Observation {
    fn trouble(&self) -> Option<String> {
        self.health.outage()
    }

    fn metrics(&self) -> Vec<Metric> {
        let counts = self.tally.counts();
        let in_hand = u64::try_from(self.leases.count()).unwrap_or(u64::MAX);
        vec![
            Metric::count(
                "bucket_brigade_moved_total",
                "Rows moved by this consumer",
                counts.moved,
            ),
            Metric::count(
                "bucket_brigade_settled_total",
                "Messages whose row needed no move",
                counts.settled,
            ),
            Metric::count(
                "bucket_brigade_failures_total",
                "Failures recorded, repeats included",
                counts.failed,
            ),
            Metric::count(
                "bucket_brigade_poison_total",
                "Messages that were not understood, repeats included",
                counts.poison,
            ),
            Metric::count(
                "bucket_brigade_throttled_total",
                "Requests that S3 throttled",
                counts.throttled,
            ),
            Metric::count(
                "bucket_brigade_messages_in_hand",
                "Messages in hand",
                in_hand,
            ),
        ]
    }

    fn histograms(&self) -> Vec<&Histogram> {
        let tally = &self.tally;
        vec![&tally.copies, &tally.commits, &tally.ages]
    }
}
