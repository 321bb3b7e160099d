//! What this process has done since it started, and how long it took, for its log and for `/metrics`. The
//! ledger's counters are the truth.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bucket_brigade_common::message::DecodeError;
use bucket_brigade_common::retry::Backoff;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

/// Bounds for calls to S3 and the database: from a fast answer to one that is given up.
const LATENCY_BUCKETS_SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Bounds for the age of a message: from fresh to SQS's longest retention of fourteen days.
const AGE_BUCKETS_SECONDS: [f64; 11] = [
    0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 172_800.0, 345_600.0, 1.2096e6,
];

const OTHER_RUN_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_mins(1),
};

#[derive(Debug)]
pub struct ConsumerCounters {
    pub moved: Counter,
    /// Messages whose row needed no move.
    pub settled: Counter,
    /// Failures recorded, repeats included.
    pub failed: Counter,
    /// Poison messages, repeats included.
    pub poison: Counter,
    pub throttled: Counter,
    /// Messages of another run, given back.
    pub other_run: Counter,
    /// The same since the last message of ours.
    other_run_streak: AtomicU32,
    /// Copies that were made: from the request to the proof.
    pub copies: Histogram,
    /// Commits the database took: one statement each, whatever it held.
    pub commits: Histogram,
    /// Messages at each receive: since they were sent.
    pub ages: Histogram,
}

impl Default for ConsumerCounters {
    fn default() -> Self {
        Self {
            moved: Counter::default(),
            settled: Counter::default(),
            failed: Counter::default(),
            poison: Counter::default(),
            throttled: Counter::default(),
            other_run: Counter::default(),
            other_run_streak: AtomicU32::default(),
            copies: Histogram::new(LATENCY_BUCKETS_SECONDS),
            commits: Histogram::new(LATENCY_BUCKETS_SECONDS),
            ages: Histogram::new(AGE_BUCKETS_SECONDS),
        }
    }
}

impl ConsumerCounters {
    /// A message of this run was received.
    pub fn own_run(&self) {
        if self.other_run_streak.load(Ordering::Relaxed) > 0 {
            self.other_run_streak.store(0, Ordering::Relaxed);
        }
    }

    /// How long a consumer waits that receives nothing but messages of another run: each receive brings
    /// them nearer to the dead-letter queue.
    pub fn other_run_pause(&self) -> Option<Duration> {
        let polls = self.other_run_streak.load(Ordering::Relaxed) / 10;
        (polls > 0).then(|| OTHER_RUN_BACKOFF.delay_ceiling(polls))
    }

    /// A message of another run was received. The first one is logged: two runs share the queue.
    pub fn record_other_run(&self, own: i64, foreign: &DecodeError) {
        self.other_run_streak.fetch_add(1, Ordering::Relaxed);
        if self.other_run.inc() == 0 {
            tracing::warn!(
                "the queue holds messages of others: {foreign}, and this consumer serves run {own}. It gives them back. Stop the consumers of a run that has ended; purge the queue of a ledger that was dropped; or give each run or database a queue of its own (feeder runs lists them)"
            );
        }
    }
}
