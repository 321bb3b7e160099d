//! Limits to ranges of keys, as S3 has them: each partition serves so many copies a second, and one that is hot for
//! some seconds is split in the middle of what was asked of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Over how long it is seen whether a partition is hot: it has served most of what it may.
const WINDOW: Duration = Duration::from_secs(3);
const HOT: f64 = 0.75;

/// So many keys are remembered of each.
const SEEN: usize = 1024;

/// A bucket of tokens holds a tenth of a second's worth.
const BURST_SECONDS: f64 = 0.1;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PartitionLimits {
    /// Copies a second of each; none are limited where it is 0.
    pub per_second: f64,
    /// How many there are at most.
    pub most: usize,
}

#[derive(Debug, Default)]
pub(super) struct Partitions {
    limits: PartitionLimits,
    /// By their first keys.
    all: Vec<Partition>,
}

#[derive(Debug)]
struct Partition {
    from: String,
    tokens: f64,
    refilled: Instant,
    seen: VecDeque<String>,
    window_began: Instant,
    served: f64,
}

impl Partition {
    fn new(from: String, now: Instant) -> Self {
        Self {
            from,
            tokens: 1.0,
            refilled: now,
            seen: VecDeque::new(),
            window_began: now,
            served: 0.0,
        }
    }

    fn admits(&mut self, key: &str, per_second: f64, now: Instant) -> bool {
        let elapsed = (now - self.refilled).as_secs_f64();
        let most = (per_second * BURST_SECONDS).max(1.0);
        self.tokens = (self.tokens + elapsed * per_second).min(most);
        self.refilled = now;
        if self.seen.len() == SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(key.to_owned());
        let admits = self.tokens >= 1.0;
        if admits {
            self.tokens -= 1.0;
            self.served += 1.0;
        }
        admits
    }

    /// Once a window: where to split it.
    fn split_at(&mut self, per_second: f64, now: Instant) -> Option<String> {
        if now - self.window_began < WINDOW {
            return None;
        }
        let is_hot = self.served >= HOT * per_second * WINDOW.as_secs_f64();
        (self.window_began, self.served) = (now, 0.0);
        let mut seen: Vec<&String> = self.seen.iter().filter(|_| is_hot).collect();
        seen.sort_unstable();
        let middle = seen.get(seen.len() / 2)?;
        (**middle > self.from).then(|| (*middle).clone())
    }
}

impl Partitions {
    pub(super) fn new(limits: PartitionLimits) -> Self {
        let first = Partition::new(String::new(), Instant::now());
        Self {
            limits,
            all: vec![first],
        }
    }

    pub(super) fn admits(&mut self, key: &str, now: Instant) -> bool {
        let PartitionLimits { per_second, most } = self.limits;
        if per_second <= 0.0 {
            return true;
        }
        let after = self.all.partition_point(|one| *one.from <= *key);
        let at = after.saturating_sub(1);
        let partition = &mut self.all[at];
        let admits = partition.admits(key, per_second, now);
        if self.all.len() < most
            && let Some(middle) = self.all[at].split_at(per_second, now)
        {
            self.all[at].seen.retain(|key| *key < middle);
            self.all.insert(after, Partition::new(middle, now));
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Served a second, at the end of a minute in which the keys are asked for in this order.
    fn served(key: impl Fn(u64) -> u64) -> (f64, usize) {
        let (start, per_second, most) = (Instant::now(), 100.0, 8);
        let mut partitions = Partitions::new(PartitionLimits { per_second, most });
        let mut served = 0.0;
        for number in 0..60_000 {
            let now = start + Duration::from_millis(number);
            let key = format!("avatar-{:06}", key(number));
            if partitions.admits(&key, now) && number >= 50_000 {
                served += 0.1;
            }
        }
        (served, partitions.all.len())
    }

    #[test]
    fn only_what_is_spread_over_the_partitions_gets_their_sum() {
        let (in_order, count) = served(|number| number);
        assert_eq!(count, 8);
        assert!((95.0..115.0).contains(&in_order), "{in_order}");
        let (spread, count) = served(|number| number % 16 * 3750 + number / 16);
        assert_eq!(count, 8);
        assert!(spread > 650.0, "{spread}");
    }
}
