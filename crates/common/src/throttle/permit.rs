//! A copy under way.

use tokio::time::Instant;

use super::Throttle;

/// Ends when the outcome of the copy is reported, or when it is dropped.
#[derive(Debug)]
pub struct ThrottlePermit<'a> {
    throttle: &'a Throttle,
    key: &'a str,
    started: Instant,
    /// The copy goes first after a refusal, and the others wait for it.
    is_probe: bool,
    outcome: Option<StoreOutcome>,
}

#[derive(Debug, Clone, Copy)]
enum StoreOutcome {
    Served,
    Throttled,
}

impl<'a> ThrottlePermit<'a> {
    pub(super) fn new(throttle: &'a Throttle, key: &'a str, is_probe: bool) -> Self {
        Self {
            throttle,
            key,
            started: Instant::now(),
            is_probe,
            outcome: None,
        }
    }

    /// The store served the request, whatever it said.
    pub fn served(mut self) {
        self.outcome = Some(StoreOutcome::Served);
    }

    /// The store asked for fewer requests.
    pub fn throttled(mut self) {
        self.outcome = Some(StoreOutcome::Throttled);
    }
}

impl Drop for ThrottlePermit<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let (key, is_probe) = (self.key, self.is_probe);
        self.throttle.end_copy(|ranges| match self.outcome {
            Some(StoreOutcome::Served) => ranges.record_served(key, is_probe, now),
            Some(StoreOutcome::Throttled) => {
                ranges.record_throttled(key, is_probe, self.started, now);
            }
            None if is_probe => ranges.of(key).store_rate.abandon_probe(),
            None => {}
        });
    }
}
