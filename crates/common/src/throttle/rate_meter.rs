//! How many there were per second, lately.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

/// In how many steps the window is counted, which bounds the memory.
const STEPS: u32 = 20;

/// Counts over a sliding window.
#[derive(Debug)]
pub struct RateMeter {
    window: Duration,
    began: Instant,
    steps: VecDeque<(Instant, u64)>,
    total: Option<u64>,
}

impl RateMeter {
    pub fn new(window: Duration, now: Instant) -> Self {
        Self {
            window,
            began: now,
            steps: VecDeque::new(),
            total: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn record(&mut self, count: u64, now: Instant) {
        match self.steps.back_mut() {
            Some((then, counted)) if now - *then < self.window / STEPS => *counted += count,
            _ => self.steps.push_back((now, count)),
        }
        let is_old = |(then, _): &(Instant, u64)| now - *then > self.window;
        while self.steps.front().is_some_and(is_old) {
            self.steps.pop_front();
        }
    }

    /// Takes a count that only grows, as of now; returns its rate over the window. The first one is
    /// where it begins.
    pub fn record_total(&mut self, total: u64, now: Instant) -> f64 {
        match self.total.replace(total) {
            Some(before) => self.record(total.saturating_sub(before), now),
            None => self.began = now,
        }
        self.rate(Duration::from_millis(1)..=self.window, now)
    }

    /// Per second over the end of `over`, at most the window; since the beginning where that is less,
    /// but no less than the start of `over`.
    pub fn rate(&self, over: RangeInclusive<Duration>, now: Instant) -> f64 {
        let recent = |(then, _): &&(Instant, u64)| now - *then < *over.end();
        let count: u64 = self
            .steps
            .iter()
            .filter(recent)
            .map(|(_, count)| count)
            .sum();
        let elapsed = (now - self.began).clamp(*over.start(), *over.end());
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / elapsed.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = RateMeter::new(Duration::from_mins(1), start);
        let rates = [(0, 0), (10, 100), (70, 700), (130, 700)]
            .map(|(seconds, total)| meter.record_total(total, at(seconds)));
        assert!((rates[1] - 10.0).abs() < 1e-9);
        assert!((rates[2] - 10.0).abs() < 1e-9);
        assert!(rates[3] < 1e-9);
    }

    #[test]
    fn what_was_counted_before_the_first_total_is_no_rate() {
        let start = Instant::now();
        let mut meter = RateMeter::new(Duration::from_mins(1), start);
        assert!(meter.record_total(1_000_000, start + Duration::from_hours(1)) < 1e-9);
        let rate = meter.record_total(1_000_050, start + Duration::from_secs(3605));
        assert!((rate - 10.0).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn memory_is_bounded_whatever_is_counted() {
        let start = Instant::now();
        let mut meter = RateMeter::new(Duration::from_secs(1), start);
        for millisecond in 0..10_000 {
            meter.record(1, start + Duration::from_millis(millisecond));
        }
        assert!(meter.steps.len() <= 22, "{}", meter.steps.len());
        let now = start + Duration::from_secs(10);
        let rate = meter.rate(Duration::from_millis(500)..=Duration::from_secs(1), now);
        assert!((950.0..1050.0).contains(&rate), "{rate}");
    }
}
