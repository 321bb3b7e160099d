//! What it would take: requests, money, hours, and what the database writes.
//!
//! Prices are those of us-east-1 and S3 Standard; elsewhere they differ by some tens of per cent.
//! Sources: the pricing pages of Amazon S3, SQS and KMS.

use std::time::Duration;

use serde::Serialize;

use super::table_inspector::RowCounts;

/// Dollars for a copy, and for one request to SQS and KMS.
const DOLLARS_PER_COPY: f64 = 0.005 / 1000.0;
const DOLLARS_PER_READ: f64 = 0.0004 / 1000.0;
const DOLLARS_PER_SQS_REQUEST: f64 = 0.40 / 1e6;
const DOLLARS_PER_KMS_REQUEST: f64 = 0.03 / 10_000.0;

/// Dollars per gigabyte: between two regions, and for a month of storage.
const DOLLARS_PER_GB_TRANSFERRED: f64 = 0.02;
const DOLLARS_PER_GB_MONTH: f64 = 0.023;

/// Copies per second that one prefix of a bucket is sure to serve.
/// Source: Amazon S3 User Guide, "Best practices design patterns".
const MAX_COPIES_PER_SECOND_PER_PREFIX: f64 = 3500.0;

/// What is assumed of a copy where none could be made.
const DEFAULT_COPY_DURATION: Duration = Duration::from_millis(60);

/// Bytes of WAL beside the row itself: a tuple's and a record's headers, an index entry, and the
/// evidence in the ledger without its two paths.
const TUPLE_OVERHEAD_BYTES: f64 = 80.0;
const INDEX_ENTRY_BYTES: f64 = 60.0;
const EVIDENCE_BYTES: f64 = 250.0;

#[derive(Debug, Clone, Default)]
pub(super) struct ObjectFacts {
    /// The average size of those sampled at, in bytes.
    pub(super) average_bytes: Option<u64>,
    /// How long a copy took.
    pub(super) copy_duration: Option<Duration>,
    /// Whether source and destination are in different regions.
    pub(super) crosses_regions: bool,
    /// Whether a key of KMS is involved on either side.
    pub(super) uses_kms: bool,
    /// The requests to the store for one copy; none where that could not be found out.
    pub(super) requests: Vec<&'static str>,
    /// Whether the bytes go through the consumers.
    pub(super) is_streamed: bool,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct MigrationEstimate {
    pub(super) rows: u64,
    pub(super) consumers: u32,
    pub(super) copies_in_flight: u32,
    pub(super) copies_per_second: f64,
    /// Whether S3's limit for one prefix decides, and not the consumers.
    pub(super) is_bound_by_prefix: bool,
    pub(super) seconds: f64,
    /// To S3, of these kinds.
    pub(super) copy_requests: u64,
    pub(super) copy_operations: Vec<&'static str>,
    /// Whether the bytes go through the consumers, in and out.
    pub(super) is_streamed: bool,
    pub(super) queue_requests: u64,
    pub(super) dollars: f64,
    /// The size of all images, from the few that were checked.
    pub(super) gigabytes: Option<f64>,
    /// For the second copies, until the sources are cleaned away.
    pub(super) dollars_per_month: Option<f64>,
    pub(super) wal_bytes: f64,
}

impl MigrationEstimate {
    /// `copies_per_row` are tried: its image and its companions.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn new(
        counts: &RowCounts,
        objects: &ObjectFacts,
        copies_per_row: u32,
        (consumers, concurrency): (u32, u32),
    ) -> Self {
        let rows = counts.in_scope as f64;
        let copies = rows * f64::from(copies_per_row);
        let in_flight = consumers.saturating_mul(concurrency);
        let copy = objects.copy_duration.unwrap_or(DEFAULT_COPY_DURATION);
        let by_consumers = f64::from(in_flight) / copy.as_secs_f64().max(0.001);
        let per_second = by_consumers.min(MAX_COPIES_PER_SECOND_PER_PREFIX);
        let gigabytes = objects.average_bytes.map(|size| size as f64 * rows / 1e9);
        let copy_operations = match &*objects.requests {
            [] => vec!["CopyObject"],
            some => some.to_vec(),
        };
        let operations = copy_operations.len() as u64;
        let requests_per_row = u64::from(copies_per_row) * operations;
        // A tenth of a send, of a receive and of a delete: ten messages to a batch.
        let queue_requests = counts.in_scope.saturating_mul(3).div_ceil(10);
        let mut dollars = copies * DOLLARS_PER_COPY;
        dollars += queue_requests as f64 * DOLLARS_PER_SQS_REQUEST;
        dollars += copies * (operations - 1) as f64 * DOLLARS_PER_READ;
        if objects.uses_kms {
            dollars += 2.0 * copies * DOLLARS_PER_KMS_REQUEST;
        }
        if objects.crosses_regions {
            dollars += gigabytes.unwrap_or(0.0) * DOLLARS_PER_GB_TRANSFERRED;
        }
        Self {
            rows: counts.in_scope,
            consumers,
            copies_in_flight: in_flight,
            copies_per_second: per_second,
            is_bound_by_prefix: by_consumers > MAX_COPIES_PER_SECOND_PER_PREFIX,
            seconds: copies / per_second,
            copy_requests: counts.in_scope.saturating_mul(requests_per_row),
            copy_operations,
            is_streamed: objects.is_streamed,
            queue_requests,
            dollars,
            gigabytes,
            dollars_per_month: gigabytes.map(|size| size * DOLLARS_PER_GB_MONTH),
            wal_bytes: rows * wal_bytes_per_row(counts) + counts.table_bytes as f64,
        }
    }
}

/// The new version of the row, an entry in each index that must follow it, and the evidence. The pages'
/// first change after a checkpoint, which is written whole, is counted once for the whole table.
fn wal_bytes_per_row(counts: &RowCounts) -> f64 {
    let path = f64::from(counts.average_path_bytes);
    let row = f64::from(counts.average_row_bytes) + TUPLE_OVERHEAD_BYTES;
    let indexes = f64::from(counts.indexes_to_write) * (INDEX_ENTRY_BYTES + path);
    row + indexes + EVIDENCE_BYTES + 2.0 * path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a million rows.
    fn estimate(copies_per_row: u32, consumers: u32) -> MigrationEstimate {
        let counts = RowCounts {
            in_scope: 1_000_000,
            moved: 0,
            outside: 0,
            without_path: 0,
            sampled_percent: None,
            average_path_bytes: 30,
            average_row_bytes: 100,
            indexes_to_write: 2,
            table_bytes: 0,
        };
        let objects = ObjectFacts {
            average_bytes: Some(100_000),
            copy_duration: Some(Duration::from_millis(64)),
            ..ObjectFacts::default()
        };
        MigrationEstimate::new(&counts, &objects, copies_per_row, (consumers, 64))
    }

    #[test]
    fn a_million_images_cost_five_dollars_and_a_quarter_of_an_hour() {
        let one = estimate(1, 1);
        assert!((one.dollars - 5.12).abs() < 1e-9, "{}", one.dollars);
        assert!((one.seconds - 1000.0).abs() < 1.0, "{}", one.seconds);
        assert_eq!(one.queue_requests, 300_000);
        assert!((one.gigabytes.unwrap() - 100.0).abs() < 1e-9);
        assert!((one.wal_bytes - 670e6).abs() < 1e6, "{}", one.wal_bytes);
    }

    #[test]
    fn companions_are_copies_too() {
        let estimate = estimate(3, 1);
        assert_eq!(estimate.copy_requests, 3_000_000);
        assert!((estimate.dollars - 15.12).abs() < 1e-9);
        assert!((estimate.seconds - 3000.0).abs() < 1.0);
    }

    #[test]
    fn one_prefix_bounds_any_number_of_consumers() {
        let many = estimate(1, 100);
        assert!(many.is_bound_by_prefix);
        assert!((many.seconds - 285.7).abs() < 0.1, "{}", many.seconds);
    }
}
