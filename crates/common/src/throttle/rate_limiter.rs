//! Spaces what starts at a rate, however long it then takes.

use std::time::Duration;

use tokio::time::Instant;

/// How much goes at a time under a limit: enough that round trips and waits do not eat up the rate.
const BURST_DURATION: Duration = Duration::from_millis(100);

/// Stands for a wait without end; within what an [`Instant`] can hold.
const FAR_FUTURE: Duration = Duration::from_hours(24 * 365 * 30);

/// When the next may start.
#[derive(Debug)]
pub(super) struct RateLimiter {
    per_second: Option<f64>,
    next_due: Instant,
    /// What goes at a time at least.
    batch: f64,
    /// How far back what was not used is made up for: a late timer or a slow send, not an idle hour.
    max_catch_up: Duration,
}

impl RateLimiter {
    pub(super) fn new(batch: f64, max_catch_up: Duration, now: Instant) -> Self {
        Self {
            per_second: None,
            next_due: now,
            batch,
            max_catch_up,
        }
    }

    /// Sets the limit. What was booked at a slower rate does not hold back a faster one.
    pub(super) fn set_rate(&mut self, per_second: Option<f64>, now: Instant) {
        if per_second != self.per_second {
            self.per_second = per_second;
            self.next_due = self.next_due.min(now + self.duration_of(self.batch));
        }
    }

    /// How many may start at a time.
    pub(super) fn burst_size(&self) -> usize {
        self.per_second.map_or(usize::MAX, |per_second| {
            truncate((per_second * BURST_DURATION.as_secs_f64()).max(self.batch))
        })
    }

    /// When the next may start, unless it is now.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        (self.per_second.is_some() && self.next_due > now).then_some(self.next_due)
    }

    /// So many start now.
    pub(super) fn record(&mut self, amount: f64, now: Instant) {
        let earliest = now.checked_sub(self.max_catch_up).unwrap_or(now);
        self.next_due = self.next_due.max(earliest) + self.duration_of(amount);
    }

    fn duration_of(&self, amount: f64) -> Duration {
        self.per_second.map_or(Duration::ZERO, |per_second| {
            Duration::try_from_secs_f64(amount / per_second)
                .map_or(FAR_FUTURE, |time| time.min(FAR_FUTURE))
        })
    }
}

/// A positive number without its fraction; saturates.
pub(super) fn truncate(number: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is positive"
    )]
    let whole = number as usize;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep_until;

    fn limited_to(per_second: f64) -> RateLimiter {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(10.0, Duration::from_secs(1), now);
        limiter.set_rate(Some(per_second), now);
        limiter
    }

    /// Rows per second over a minute, when each send takes so long.
    async fn rows_per_second(per_second: f64, send: Duration) -> f64 {
        let mut limiter = limited_to(per_second);
        let begun = Instant::now();
        let mut rows = 0.0;
        while begun.elapsed() < Duration::from_mins(1) {
            if let Some(due) = limiter.next_due(Instant::now()) {
                sleep_until(due).await;
            }
            let burst = f64::from(u32::try_from(limiter.burst_size()).unwrap());
            limiter.record(burst, Instant::now());
            tokio::time::sleep(send).await;
            rows += burst;
        }
        rows / begun.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_sends_do_not_slow_it_further() {
        for per_second in [1.0, 67.0, 3500.0] {
            for send in [0, 20, 90] {
                let rate = rows_per_second(per_second, Duration::from_millis(send)).await;
                let error = (rate / per_second - 1.0).abs();
                assert!(error < 0.2, "{per_second}/s, sends of {send} ms: {rate}/s");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_hour_is_no_licence_for_a_burst() {
        let mut limiter = limited_to(100.0);
        tokio::time::sleep(Duration::from_hours(1)).await;
        let mut burst = 0;
        while limiter.next_due(Instant::now()).is_none() {
            limiter.record(10.0, Instant::now());
            burst += 10;
        }
        assert!(burst <= 110, "{burst}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(10.0, Duration::from_secs(1), now);
        limiter.record(1_000_000.0, now);
        assert_eq!(
            (limiter.next_due(now), limiter.burst_size()),
            (None, usize::MAX)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_next_to_nothing_is_kept_and_can_be_lifted() {
        let mut limiter = limited_to(1e-300);
        let now = Instant::now();
        limiter.record(10.0, now);
        assert!(
            limiter
                .next_due(now + Duration::from_hours(24 * 365))
                .is_some()
        );
        limiter.set_rate(Some(100.0), now);
        assert_eq!(
            limiter.next_due(now),
            Some(now + Duration::from_millis(100))
        );
        limiter.set_rate(None, now);
        assert_eq!(limiter.next_due(now), None);
    }
}
