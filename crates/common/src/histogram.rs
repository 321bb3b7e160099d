//! Histograms as Prometheus counts them: durations in fixed buckets, without a lock.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds for calls to S3 and the database: from a fast answer to one that is given up.
pub const LATENCY: &[Duration] = &[
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// Bounds for the age of a message: from fresh to SQS's longest retention of fourteen days.
pub const AGE: &[Duration] = &[
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_mins(1),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(6),
    Duration::from_hours(24),
    Duration::from_hours(48),
    Duration::from_hours(96),
    Duration::from_hours(336),
];

/// Durations counted by how long they were.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    bounds: &'static [Duration],
    // One for each bound, and one for what is longer than all of them.
    buckets: Box<[AtomicU64]>,
    sum_microseconds: AtomicU64,
}

impl Histogram {
    /// An empty histogram. The name ends with `_seconds`; the bounds rise.
    pub fn new(name: &'static str, help: &'static str, bounds: &'static [Duration]) -> Self {
        Self {
            name,
            help,
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_microseconds: AtomicU64::new(0),
        }
    }

    /// Counts one duration: two additions, no lock, no allocation.
    pub fn record(&self, duration: Duration) {
        let bucket = self.bounds.partition_point(|bound| *bound < duration);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_microseconds
            .fetch_add(microseconds, Ordering::Relaxed);
    }

    /// Appends it in Prometheus' text format: cumulative buckets, sum and count.
    pub fn write(&self, text: &mut String) {
        let Self { name, help, .. } = self;
        let sum = Duration::from_micros(self.sum_microseconds.load(Ordering::Relaxed));
        let mut count = 0;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = self.bounds.get(index).map(Duration::as_secs_f64);
            let bound = bound.map_or_else(|| "+Inf".into(), |bound| bound.to_string());
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = sum.as_secs_f64();
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_a_bound_belongs_to_its_bucket() {
        const BOUNDS: &[Duration] = &[Duration::from_millis(50), Duration::from_secs(1)];
        let histogram = Histogram::new("copy_seconds", "Time of a copy", BOUNDS);
        for milliseconds in [1, 50, 51, 1_000, 2_000] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        let mut text = String::new();
        histogram.write(&mut text);
        assert_eq!(
            text,
            "# HELP copy_seconds Time of a copy\n\
             # TYPE copy_seconds histogram\n\
             copy_seconds_bucket{le=\"0.05\"} 2\n\
             copy_seconds_bucket{le=\"1\"} 4\n\
             copy_seconds_bucket{le=\"+Inf\"} 5\n\
             copy_seconds_sum 3.102\n\
             copy_seconds_count 5\n"
        );
    }

    #[test]
    fn bounds_rise() {
        for bounds in [LATENCY, AGE] {
            assert!(bounds.is_sorted_by(|one, next| one < next), "{bounds:?}");
        }
    }
}
