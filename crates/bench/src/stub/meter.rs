//! Counts of what was asked, with times, so that rates come from the server's own account.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Every so many items the time is kept.
const MARK_INTERVAL: u64 = 100;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestMeter {
    pub requests: u64,
    /// What they were about: one object of a copy, up to ten messages of a batch.
    pub items: u64,
    /// The first request and the last, in microseconds since 1970.
    pub first_us: u64,
    pub last_us: u64,
    /// When the items 0, 100, 200 … were asked for.
    marks: Vec<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts(pub BTreeMap<String, RequestMeter>);

impl RequestCounts {
    pub(super) fn record_request(&mut self, operation: &str, items: u64) {
        let meter = self.0.entry(operation.to_owned()).or_default();
        meter.record_request(now_us(), items);
    }

    /// The meter of one kind of request; empty when there was none.
    pub fn meter_for(&self, operation: &str) -> RequestMeter {
        self.0.get(operation).cloned().unwrap_or_default()
    }

    /// Requests of the kinds that `is_meant` names.
    pub fn count_requests(&self, is_meant: impl Fn(&str) -> bool) -> u64 {
        let meant = self.0.iter().filter(|(name, _)| is_meant(name));
        meant.map(|(_, meter)| meter.requests).sum()
    }
}

impl RequestMeter {
    fn record_request(&mut self, now: u64, items: u64) {
        if self.requests == 0 {
            self.first_us = now;
        }
        self.requests += 1;
        self.last_us = now;
        // The mark of item 0 comes with the first item, that of item 100 with the hundred-and-first.
        let due = (self.items + items).div_ceil(MARK_INTERVAL);
        while u64::try_from(self.marks.len()).unwrap_or(u64::MAX) < due {
            self.marks.push(now);
        }
        self.items += items;
    }

    /// Items a second from the first request to the last.
    pub fn rate(&self) -> f64 {
        items_per_second(self.items, self.last_us.saturating_sub(self.first_us))
    }

    /// Items a second once the first `skip` items were over: the rate after the warm-up.
    pub fn sustained_rate(&self, skip: u64) -> f64 {
        let start = usize::try_from(skip / MARK_INTERVAL).unwrap_or(usize::MAX);
        match (self.marks.get(start), self.marks.last()) {
            (Some(first), Some(last)) => {
                let between = (self.marks.len() - 1 - start) as u64 * MARK_INTERVAL;
                items_per_second(between, last.saturating_sub(*first))
            }
            _ => 0.0,
        }
    }
}

fn items_per_second(items: u64, over_us: u64) -> f64 {
    if over_us == 0 {
        return 0.0;
    }
    crate::stats::to_f64(items) * 1e6 / crate::stats::to_f64(over_us)
}

pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sustained_rate_leaves_the_beginning_out() {
        let mut meter = RequestMeter::default();
        assert_eq!(
            [meter.rate(), meter.sustained_rate(0)].map(f64::to_bits),
            [0, 0]
        );
        // A slow first hundred, then ten items every millisecond.
        for item in 0..10 {
            meter.record_request(item * 1_000_000, 10);
        }
        for batch in 0..100 {
            meter.record_request(10_000_000 + batch * 1000, 10);
        }
        assert_eq!(meter.items, 1100);
        assert!(meter.rate() < 110.0);
        let sustained = meter.sustained_rate(100);
        assert!((9900.0..10100.0).contains(&sustained), "{sustained}");
    }
}
