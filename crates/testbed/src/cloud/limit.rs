//! A limit to the copies per second: what comes above it is answered 503 `SlowDown`.

use std::time::{Duration, Instant};

use super::operation::CloudOperation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitAlgorithm {
    /// A bucket that fills steadily and holds a tenth of a second's worth.
    TokenBucket,
    /// So many in each second, which begins with the first copy after the last one's end.
    FixedWindow,
}

/// How many copies a second are allowed, and how they are counted.
#[derive(Debug, Clone, Copy)]
pub struct CopyLimit {
    pub per_second: f64,
    pub algorithm: LimitAlgorithm,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct CopyLimitCounts {
    pub requests: u64,
    pub throttled: u64,
    /// From the first that was admitted to the last.
    pub admitted_over: Duration,
}

impl CopyLimitCounts {
    /// The share of requests that was refused.
    pub fn throttled_share(&self) -> f64 {
        as_float(self.throttled) / as_float(self.requests.max(1))
    }

    /// Copies admitted per second, from the first to the last.
    pub fn admitted_per_second(&self) -> f64 {
        let intervals = (self.requests - self.throttled).saturating_sub(1);
        as_float(intervals) / self.admitted_over.as_secs_f64().max(f64::EPSILON)
    }
}

#[derive(Debug)]
pub(super) struct CopyLimiter {
    limit: CopyLimit,
    tokens: f64,
    last_refill: Instant,
    first_admitted: Option<Instant>,
    pub(super) counts: CopyLimitCounts,
}

impl CopyLimiter {
    pub(super) fn new(limit: CopyLimit, now: Instant) -> Self {
        Self {
            tokens: limit.max_burst(),
            limit,
            last_refill: now,
            first_admitted: None,
            counts: CopyLimitCounts::default(),
        }
    }

    pub(super) fn admits_operation(&mut self, operation: &CloudOperation, now: Instant) -> bool {
        operation.name != "CopyObject" || self.admits_copy(now)
    }

    fn admits_copy(&mut self, now: Instant) -> bool {
        self.refill_tokens(now);
        self.counts.requests += 1;
        if self.tokens < 1.0 {
            self.counts.throttled += 1;
            return false;
        }
        self.tokens -= 1.0;
        let first = *self.first_admitted.get_or_insert(now);
        self.counts.admitted_over = now - first;
        true
    }

    fn refill_tokens(&mut self, now: Instant) {
        let elapsed = (now - self.last_refill).as_secs_f64();
        let most = self.limit.max_burst();
        match self.limit.algorithm {
            LimitAlgorithm::TokenBucket => {
                self.tokens = (self.tokens + elapsed * self.limit.per_second).min(most);
            }
            LimitAlgorithm::FixedWindow if elapsed >= 1.0 => self.tokens = most,
            LimitAlgorithm::FixedWindow => return,
        }
        self.last_refill = now;
    }
}

impl CopyLimit {
    /// The copies it admits at one moment at most.
    fn max_burst(self) -> f64 {
        match self.algorithm {
            LimitAlgorithm::TokenBucket => (self.per_second / 10.0).max(1.0),
            LimitAlgorithm::FixedWindow => self.per_second,
        }
    }
}

fn as_float(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    let float = count as f64;
    float
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of copies that come this often for ten seconds, how many are admitted, and the figures.
    fn admitted(counting: LimitAlgorithm, per_second: u32, come: u32) -> CopyLimitCounts {
        let begin = Instant::now();
        let limit = CopyLimit {
            per_second: f64::from(per_second),
            algorithm: counting,
        };
        let mut limiter = CopyLimiter::new(limit, begin);
        for number in 0..come * 10 {
            limiter.admits_copy(begin + Duration::from_secs(10) * number / (come * 10));
        }
        limiter.counts
    }

    #[test]
    fn what_comes_above_the_limit_is_refused() {
        for counting in [LimitAlgorithm::TokenBucket, LimitAlgorithm::FixedWindow] {
            let figures = admitted(counting, 40, 80);
            let admitted = figures.requests - figures.throttled;
            assert!((400..=404).contains(&admitted), "{counting:?} {admitted}");
            assert!((figures.admitted_per_second() - 40.0).abs() < 2.5);
        }
    }

    #[test]
    fn what_keeps_within_it_passes() {
        for counting in [LimitAlgorithm::TokenBucket, LimitAlgorithm::FixedWindow] {
            assert_eq!(admitted(counting, 40, 39).throttled, 0);
        }
    }

    #[test]
    fn a_bucket_refuses_a_burst_that_a_second_allows() {
        let begin = Instant::now();
        let refused = |counting| {
            let limit = CopyLimit {
                per_second: 40.0,
                algorithm: counting,
            };
            let mut limiter = CopyLimiter::new(limit, begin);
            (0..40).filter(|_| !limiter.admits_copy(begin)).count()
        };
        assert_eq!(refused(LimitAlgorithm::TokenBucket), 36);
        assert_eq!(refused(LimitAlgorithm::FixedWindow), 0);
    }
}
