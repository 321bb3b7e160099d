//! A copy under way.

use tokio::time::Instant;

use super::Throttle;

/// Ends when the outcome of the copy is reported, or when it is dropped.
#[derive(Debug)]
pub struct ThrottlePermit<'a> {
    throttle: &'a Throttle,
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
    pub(super) fn new(throttle: &'a Throttle, is_probe: bool) -> Self {
        Self {
            throttle,
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
        self.throttle.end_copy(|store_rate| match self.outcome {
            Some(StoreOutcome::Served) => store_rate.record_served(self.is_probe, now),
            Some(StoreOutcome::Throttled) => {
                store_rate.record_throttled(self.is_probe, self.started, now);
            }
            None if self.is_probe => store_rate.abandon_probe(),
            None => {}
        });
    }
}
