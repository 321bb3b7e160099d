//! Exponential back-off with full jitter, the randomness injected.

use std::time::Duration;

/// How long to wait between tries.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The most the first wait takes.
    pub initial_delay: Duration,
    /// The most any wait takes.
    pub max_delay: Duration,
}

impl Backoff {
    /// The longest wait after the given number of failed tries (1 after the first).
    pub fn delay_ceiling(&self, tries: u32) -> Duration {
        let doublings = tries.saturating_sub(1).min(20);
        self.initial_delay
            .saturating_mul(1 << doublings)
            .min(self.max_delay)
    }

    /// A wait between half the ceiling and the ceiling: never a rush, never all at once.
    /// `random` is in 0..1.
    pub fn jittered_delay(&self, tries: u32, random: f64) -> Duration {
        self.delay_ceiling(tries).mul_f64(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_limit() {
        let backoff = Backoff {
            initial_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(1),
        };
        let ceilings: Vec<u128> = (1..=6)
            .map(|tries| backoff.delay_ceiling(tries).as_millis())
            .collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.delay_ceiling(u32::MAX), Duration::from_secs(1));
        assert_eq!(backoff.jittered_delay(1, 0.0), Duration::from_millis(50));
        assert!(backoff.jittered_delay(3, 0.999) <= Duration::from_millis(400));
    }
}
