//! The rates of a store by ranges of keys.
//!
//! S3 grants its rate to each partition, a range of keys, and splits one that is hot. As long as refusals strike keys
//! anywhere, one rate is kept for all. Where they struck neighbours, while other keys were served, those have a rate of
//! their own, so that the others are not slowed with them.

use std::ops::Range;

use tokio::time::Instant;

use super::rate_limiter::{RateLimiter, truncate};
use super::state::{COPIES_CATCH_UP, IN_HAND_SECONDS, JITTER};
use super::store_rate::StoreRate;

pub(super) const MAX_RANGES: usize = 16;

/// How many refusals are looked at together, beside so many of the copies that were served meanwhile.
const REFUSALS: usize = 8;
const SAMPLES: usize = 128;

/// The largest part of these samples that counts as neighbours. Of refusals anywhere one set in a hundred lies in so
/// narrow a part.
const MAX_NEIGHBOURS: usize = SAMPLES * 2 / 5;

#[derive(Debug)]
pub(super) struct KeyRange {
    /// Where its copies wait: a place of its own.
    pub(super) gate: usize,
    from: String,
    pub(super) store_rate: StoreRate,
    pub(super) limiter: RateLimiter,
    /// Those for which the rate was cut, one of each cut.
    refused: Vec<String>,
    served: Vec<String>,
    served_count: usize,
}

/// In the order of their keys; the first begins with the empty key.
#[derive(Debug)]
pub(super) struct KeyRanges(Vec<KeyRange>);

impl KeyRange {
    fn new(gate: usize, from: String, store_rate: StoreRate, now: Instant) -> Self {
        Self {
            gate,
            from,
            store_rate,
            limiter: RateLimiter::new(JITTER.1, COPIES_CATCH_UP, now),
            refused: Vec::new(),
            served: Vec::new(),
            served_count: 0,
        }
    }

    /// Takes a sample in which each copy since the first refusal is as likely as any other.
    fn sample_served(&mut self, key: &str) {
        if self.refused.is_empty() {
            return;
        }
        self.served_count += 1;
        if self.served.len() < SAMPLES {
            self.served.push(key.to_owned());
        } else if let index @ 0..SAMPLES = fastrand::usize(..self.served_count) {
            key.clone_into(&mut self.served[index]);
        }
    }

    fn clear_samples(&mut self) {
        self.refused.clear();
        self.served.clear();
        self.served_count = 0;
    }

    /// The samples among which the refusals lie, with a margin, if that is a small part of them.
    fn find_hot_part(&mut self) -> Option<Range<usize>> {
        self.served.sort_unstable();
        let (first, last) = (self.refused.iter().min()?, self.refused.iter().max()?);
        let begin = self.served.partition_point(|key| key < first);
        let end = self.served.partition_point(|key| key <= last);
        let (count, struck) = (self.served.len(), end - begin);
        let margin = struck / 6 + 1;
        (count == SAMPLES && struck <= MAX_NEIGHBOURS)
            .then(|| begin.saturating_sub(margin)..(end + margin).min(count))
    }
}

impl KeyRanges {
    pub(super) fn new(now: Instant) -> Self {
        Self(vec![KeyRange::new(
            0,
            String::new(),
            StoreRate::new(now),
            now,
        )])
    }

    fn position(&self, key: &str) -> usize {
        let after = self.0.partition_point(|range| *range.from <= *key);
        after.saturating_sub(1)
    }

    pub(super) fn of(&mut self, key: &str) -> &mut KeyRange {
        let at = self.position(key);
        &mut self.0[at]
    }

    pub(super) fn gate_of(&self, key: &str) -> usize {
        self.0[self.position(key)].gate
    }

    pub(super) fn record_served(&mut self, key: &str, is_probe: bool, now: Instant) {
        let range = self.of(key);
        range.store_rate.record_served(is_probe, now);
        range.sample_served(key);
    }

    pub(super) fn record_throttled(
        &mut self,
        key: &str,
        is_probe: bool,
        sent: Instant,
        now: Instant,
    ) {
        let at = self.position(key);
        let range = &mut self.0[at];
        if !range.store_rate.record_throttled(is_probe, sent, now) {
            return;
        }
        range.refused.push(key.to_owned());
        if range.refused.len() < REFUSALS {
            return;
        }
        if let Some(hot) = range.find_hot_part() {
            self.divide(at, hot, now);
        } else {
            range.clear_samples();
        }
    }

    /// Into the hot part, and what lies before and behind it.
    fn divide(&mut self, at: usize, hot: Range<usize>, now: Instant) {
        let count = self.0[at].served.len();
        let parts = [0..hot.start, hot.clone(), hot.end..count];
        let is_used = |gate: &usize| self.0.iter().any(|range| range.gate == *gate);
        let mut gates = (0..MAX_RANGES)
            .filter(|gate| !is_used(gate))
            .collect::<Vec<_>>();
        if gates.len() < 2 {
            self.0[at].clear_samples();
            return;
        }
        let old = self.0.remove(at);
        gates.push(old.gate);
        let mut begin = Some(old.from);
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        let ranges = parts.map(|part| {
            let share = to_f64(part.len()) / to_f64(count);
            let store_rate = old.store_rate.part(share, part == hot, now);
            let first = old.served.get(part.start).cloned();
            let from = begin.take().or(first).unwrap_or_default();
            KeyRange::new(gates.pop().unwrap_or_default(), from, store_rate, now)
        });
        let ranges: Vec<KeyRange> = ranges.collect();
        tracing::debug!(
            parts = ranges.len(),
            "the store refuses neighbouring keys: they get a rate of their own"
        );
        self.0.splice(at..at, ranges);
    }

    /// Neighbours of which neither is limited any more are one again.
    pub(super) fn merge(&mut self, now: Instant) {
        self.0.dedup_by(|right, left| {
            let limits = [&*left, &*right].map(|range| range.store_rate.limit(now));
            let are_free = limits == [None, None];
            if are_free {
                left.store_rate.absorb(&mut right.store_rate, now);
            }
            are_free
        });
    }

    /// The rate, once the store has shown a limit everywhere.
    pub(super) fn limit(&self, now: Instant) -> Option<f64> {
        let limits = self.0.iter().map(|range| range.store_rate.limit(now));
        limits.sum()
    }

    /// The rate of those that were throttled lately.
    pub(super) fn throttled_rate(&self, now: Instant) -> Option<f64> {
        let rates = self.0.iter().map(|range| &range.store_rate);
        let throttled = rates.filter(|rate| rate.was_throttled_lately(now));
        throttled
            .map(|rate| rate.per_second(now))
            .reduce(|a, b| a + b)
    }

    /// How many of those that wait at the gates would take longer than the others may: their range is slow.
    pub(super) fn excess(&self, waiting_at: impl Fn(usize) -> usize, now: Instant) -> usize {
        let excess = self.0.iter().map(|range| {
            let soon = range
                .store_rate
                .limit(now)
                .map(|rate| truncate(rate * IN_HAND_SECONDS));
            waiting_at(range.gate).saturating_sub(soon.unwrap_or(usize::MAX))
        });
        if self.0.len() == 1 { 0 } else { excess.sum() }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most SAMPLES")]
fn to_f64(samples: usize) -> f64 {
    samples as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_of_a_range_that_cannot_be_divided_are_taken_anew() {
        let now = Instant::now();
        let range = |gate: usize| {
            let from = if gate == 0 {
                ""
            } else {
                &format!("z{gate:02}")
            };
            KeyRange::new(gate, from.to_owned(), StoreRate::new(now), now)
        };
        let mut ranges = KeyRanges((0..MAX_RANGES - 1).map(range).collect());
        for refusal in 1..=3 * REFUSALS {
            ranges.record_throttled("a50", true, now, now);
            for number in (10..90).step_by(4) {
                ranges.record_served(&format!("a{number}"), true, now);
            }
            assert_eq!(ranges.0[0].refused.len(), refusal % REFUSALS);
        }
        assert_eq!(ranges.count(), MAX_RANGES - 1);
    }
}
