//! How fast a count grows.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Over how long the rate is taken.
const RATE_WINDOW: Duration = Duration::from_mins(1);

/// The rate of a count over the last minute, per second.
#[derive(Debug, Default)]
pub struct RateMeter(VecDeque<(Instant, u64)>);

impl RateMeter {
    /// Takes the count as of now, and tells the rate.
    pub fn record_count(&mut self, now: Instant, count: u64) -> f64 {
        self.0.push_back((now, count));
        let is_old = |(then, _): &(Instant, u64)| now - *then > RATE_WINDOW;
        while self.0.len() > 2 && self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
        let Some((then, before)) = self.0.front() else {
            return 0.0;
        };
        let elapsed = (now - *then).as_secs_f64();
        if elapsed == 0.0 {
            return 0.0;
        }
        let done = u32::try_from(count.saturating_sub(*before)).unwrap_or(u32::MAX);
        f64::from(done) / elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = RateMeter::default();
        let rates = [(0, 0), (10, 100), (70, 700), (130, 700)]
            .map(|(seconds, count)| rate.record_count(at(seconds), count));
        assert!((rates[1] - 10.0).abs() < 1e-9);
        assert!((rates[2] - 10.0).abs() < 1e-9);
        assert!(rates[3] < 1e-9);
    }
}
