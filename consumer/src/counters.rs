//! What this process has done since it started, and how long it took, for its log and for whoever looks
//! from outside. The ledger's counters are the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bucket_brigade_common::histogram::{AGE, Histogram, LATENCY};

/// Counts of this process.
#[derive(Debug)]
pub struct ConsumerCounters {
    count_moved: AtomicU64,
    count_settled: AtomicU64,
    count_failed: AtomicU64,
    count_poison: AtomicU64,
    count_throttled: AtomicU64,
    /// Copies that were made: from the request to the proof.
    pub copies: Histogram,
    /// Commits the database took: one statement each, whatever it held.
    pub commits: Histogram,
    /// Messages at each receive: since they were sent.
    pub ages: Arc<Histogram>,
}

impl Default for ConsumerCounters {
    fn default() -> Self {
        Self {
            count_moved: AtomicU64::default(),
            count_settled: AtomicU64::default(),
            count_failed: AtomicU64::default(),
            count_poison: AtomicU64::default(),
            count_throttled: AtomicU64::default(),
            copies: Histogram::new(
                "bucket_brigade_copy_seconds",
                "Time of each copy that was made",
                LATENCY,
            ),
            commits: Histogram::new(
                "bucket_brigade_commit_seconds",
                "Time of each batch of rows that the database committed",
                LATENCY,
            ),
            ages: Arc::new(Histogram::new(
                "bucket_brigade_message_age_seconds",
                "Age of each message when it was received, repeats included",
                AGE,
            )),
        }
    }
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerCounts {
    /// Rows moved.
    pub moved: u64,
    /// Messages whose row needed no move.
    pub settled: u64,
    /// Failures recorded, repeats included.
    pub failed: u64,
    /// Poison messages, repeats included.
    pub poison: u64,
    /// Requests that S3 throttled.
    pub throttled: u64,
}

impl ConsumerCounters {
    /// A row moved.
    pub fn moved(&self) {
        self.count_moved.fetch_add(1, Ordering::Relaxed);
    }

    /// A message's row needed no move.
    pub fn settled(&self) {
        self.count_settled.fetch_add(1, Ordering::Relaxed);
    }

    /// A row could not be moved.
    pub fn failed(&self) {
        self.count_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A message was not understood.
    pub fn poison(&self) {
        self.count_poison.fetch_add(1, Ordering::Relaxed);
    }

    /// S3 throttled a request.
    pub fn throttled(&self) {
        self.count_throttled.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn counts(&self) -> ConsumerCounts {
        ConsumerCounts {
            moved: self.count_moved.load(Ordering::Relaxed),
            settled: self.count_settled.load(Ordering::Relaxed),
            failed: self.count_failed.load(Ordering::Relaxed),
            poison: self.count_poison.load(Ordering::Relaxed),
            throttled: self.count_throttled.load(Ordering::Relaxed),
        }
    }
}
