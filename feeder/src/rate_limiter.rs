//! The rate limit: so many rows per second, however long their sends take.

use std::time::Duration;

use bucket_brigade_common::queue::MAX_BATCH_ENTRIES;
use tokio::time::Instant;

/// How much is sent at a time under a limit: enough that sends and pauses do not eat up the rate.
const BURST_DURATION: Duration = Duration::from_millis(100);

/// What was not used is made up for, so far back: a slow send, not the hours of a full backlog.
const MAX_CATCH_UP: Duration = Duration::from_secs(1);

/// When the next rows may go.
#[derive(Debug)]
pub struct RateLimiter {
    per_second: Option<f64>,
    next_due: Instant,
}

impl RateLimiter {
    /// No limit yet.
    pub fn unlimited() -> Self {
        Self {
            per_second: None,
            next_due: Instant::now(),
        }
    }

    /// Sets the limit, in rows per second. A wait under another limit is not sat out.
    pub fn set_limit(&mut self, per_second: Option<f64>) {
        if per_second != self.per_second {
            self.per_second = per_second;
            self.next_due = self
                .next_due
                .min(Instant::now() + self.duration_of_rows(MAX_BATCH_ENTRIES));
        }
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.per_second.is_some()
    }

    /// How many rows may go at a time.
    pub fn burst_size(&self) -> usize {
        let Some(per_second) = self.per_second else {
            return usize::MAX;
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and is positive"
        )]
        let rows = (per_second * BURST_DURATION.as_secs_f64()) as usize;
        rows.max(MAX_BATCH_ENTRIES)
    }

    /// How long to wait before the next rows, if they may not go now.
    pub fn time_until_due(&self) -> Option<Duration> {
        let wait = self.next_due.saturating_duration_since(Instant::now());
        (self.is_limited() && !wait.is_zero()).then_some(wait)
    }

    /// So many rows go now.
    pub fn record_sent(&mut self, rows: usize) {
        let now = Instant::now();
        let earliest = now.checked_sub(MAX_CATCH_UP).unwrap_or(now);
        self.next_due = self.next_due.max(earliest) + self.duration_of_rows(rows);
    }

    /// At most an hour, so that a limit of next to nothing can be lifted.
    fn duration_of_rows(&self, rows: usize) -> Duration {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let hour = Duration::from_hours(1);
        self.per_second.map_or(Duration::ZERO, |per_second| {
            Duration::try_from_secs_f64(f64::from(rows) / per_second)
                .map_or(hour, |time| time.min(hour))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    /// Rows per second over a minute, when each send takes so long.
    async fn rows_per_second(per_second: f64, send: Duration) -> f64 {
        let mut rate = RateLimiter::unlimited();
        rate.set_limit(Some(per_second));
        let begun = Instant::now();
        let mut rows = 0;
        while begun.elapsed() < Duration::from_mins(1) {
            sleep(rate.time_until_due().unwrap_or_default()).await;
            let portion = rate.burst_size();
            rate.record_sent(portion);
            sleep(send).await;
            rows += u32::try_from(portion).unwrap_or(u32::MAX);
        }
        f64::from(rows) / begun.elapsed().as_secs_f64()
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
        let mut rate = RateLimiter::unlimited();
        rate.set_limit(Some(100.0));
        sleep(Duration::from_hours(1)).await;
        let mut burst = 0;
        while rate.time_until_due().is_none() {
            rate.record_sent(10);
            burst += 10;
        }
        assert!(burst <= 110, "{burst}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let mut rate = RateLimiter::unlimited();
        rate.record_sent(1_000_000);
        assert_eq!(
            (rate.time_until_due(), rate.burst_size()),
            (None, usize::MAX)
        );
    }
}
