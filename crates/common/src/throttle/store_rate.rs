//! What follows when the store throttles.
//!
//! Nothing starts for a moment, and then a single copy goes first, so that a limit that counts by the
//! second costs one refusal and not one for every copy at hand. The rate is cut once, whatever else of
//! what was in flight comes back refused.
//!
//! Each process finds the limit for itself, which costs four or five refusals. Among the copies of an
//! hour that is nothing; it shows where several processes share a low limit for a minute.

use std::time::Duration;

use tokio::time::Instant;

use super::cubic_rate::{CubicRate, MEASURED_OVER, MIN_RATE, duration_of};
use super::rate_meter::RateMeter;

/// How long nothing starts after a refusal: as long as so many copies take, within bounds; half as long
/// again each time the copy that goes first is refused too. At a high rate a refusal is a small part of
/// the copies, and a rest a large part of the time: where S3 counts by the second, the last rest goes on
/// into the next second, which a longer one wastes.
const HOLD_COPIES: f64 = 12.0;
const MIN_HOLD: Duration = Duration::from_millis(50);
const HOLD: Duration = Duration::from_millis(300);
const MAX_HOLD: Duration = Duration::from_secs(2);
const HOLD_GROWTH: f64 = 1.5;

/// How long the copy that goes first is waited for, before another goes in its place: it may be a
/// large one, or its connection dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than any wait between two copies at the slowest rate.
const IDLE_AFTER: Duration = Duration::from_secs(8);

/// How long after a refusal the process counts as throttled.
const THROTTLED_FOR: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct StoreRate {
    rate: CubicRate,
    served: RateMeter,
    hold: Option<StoreHold>,
    started_at: Option<Instant>,
    cut_at: Option<Instant>,
    throttled_at: Option<Instant>,
}

/// After a refusal: nothing starts, then one copy, then all others once it was served.
#[derive(Debug, Clone, Copy)]
struct StoreHold {
    since: Instant,
    until: Instant,
    length: Duration,
    probing_since: Option<Instant>,
}

impl StoreRate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: CubicRate::new(now),
            served: RateMeter::new(MEASURED_OVER, now),
            hold: None,
            started_at: None,
            cut_at: None,
            throttled_at: None,
        }
    }

    /// That of a part of the keys, which had such a share of the copies. What is refused goes on as before;
    /// the rest was slowed with it.
    pub(super) fn part(&self, share: f64, is_refused: bool, now: Instant) -> Self {
        let others = || CubicRate::search((self.per_second(now) * share).max(MIN_RATE), now);
        Self {
            rate: if is_refused {
                self.rate.scaled(share)
            } else {
                others()
            },
            served: RateMeter::new(MEASURED_OVER, now),
            hold: self.hold.filter(|_| is_refused),
            started_at: Some(now),
            cut_at: Some(now),
            throttled_at: self.throttled_at.filter(|_| is_refused),
        }
    }

    /// Neither has a limit any more. One that was idle did not grow, and the new rate was never idle.
    pub(super) fn absorb(&mut self, other: &mut Self, now: Instant) {
        self.skip_idle_time(now);
        other.skip_idle_time(now);
        let rate = self.per_second(now) + other.per_second(now);
        self.rate = CubicRate::search(rate, now);
        self.served = RateMeter::new(MEASURED_OVER, now);
        self.started_at = Some(now);
    }

    /// Whether the copy that starts now is the one that goes first; or until when none may start.
    pub(super) fn check_hold(&self, now: Instant) -> Result<bool, Instant> {
        let Some(hold) = self.hold else {
            return Ok(false);
        };
        let until = hold
            .probing_since
            .map_or(hold.until, |since| since + PROBE_TIMEOUT);
        if until > now { Err(until) } else { Ok(true) }
    }

    pub(super) fn record_start(&mut self, is_probe: bool, now: Instant) {
        self.started_at = Some(now);
        if is_probe && let Some(hold) = &mut self.hold {
            hold.probing_since = Some(now);
        }
    }

    /// While nothing was started, for want of work or in a pause, the rate did not grow.
    pub(super) fn skip_idle_time(&mut self, now: Instant) {
        let Some(started_at) = self.started_at else {
            // The first copy of all may come hours after the start.
            *self = Self::new(now);
            return;
        };
        if now - started_at > IDLE_AFTER {
            self.rate.delay(now - started_at, now);
            self.served = RateMeter::new(MEASURED_OVER, now);
            self.started_at = Some(now);
        }
    }

    /// The copy that went first was interrupted: another goes.
    pub(super) fn abandon_probe(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.probing_since = None;
        }
    }

    pub(super) fn record_served(&mut self, is_probe: bool, now: Instant) {
        self.served.record(1, now);
        if is_probe {
            self.hold = None;
        }
    }

    /// Of all requests that were in flight at a cut, none cuts again: they were sent before it could
    /// show.
    /// Returns whether it says more than what is known.
    pub(super) fn record_throttled(&mut self, is_probe: bool, sent: Instant, now: Instant) -> bool {
        self.throttled_at = Some(now);
        if is_probe {
            let length = self
                .hold
                .map_or(HOLD, |hold| hold.length.mul_f64(HOLD_GROWTH));
            // Nothing was served meanwhile, by which the rate could have grown.
            if let Some(hold) = self.hold {
                self.rate.delay(now - hold.since, now);
            }
            self.hold = Some(StoreHold::new(now, length.min(MAX_HOLD)));
            return true;
        }
        if self.hold.is_some() || self.cut_at.is_some_and(|cut_at| sent < cut_at) {
            return false;
        }
        self.cut_at = Some(now);
        self.rate = self.rate.cut(now, &self.served);
        let length = duration_of(HOLD_COPIES, self.per_second(now), MIN_HOLD..=HOLD);
        self.hold = Some(StoreHold::new(now, length));
        true
    }

    pub(super) fn per_second(&self, now: Instant) -> f64 {
        self.rate.per_second(now)
    }

    /// The rate, once the store has shown a limit.
    pub(super) fn limit(&self, now: Instant) -> Option<f64> {
        self.rate.is_limited(now).then(|| self.per_second(now))
    }

    pub(super) fn was_throttled_lately(&self, now: Instant) -> bool {
        self.throttled_at
            .is_some_and(|then| now - then < THROTTLED_FOR)
    }
}

impl StoreHold {
    fn new(now: Instant, length: Duration) -> Self {
        Self {
            since: now,
            until: now + length,
            length,
            probing_since: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate three seconds after a probe was refused that a pause had held.
    fn rate_after_pause(pause: Duration) -> f64 {
        let mut now = Instant::now();
        let mut rate = StoreRate::new(now);
        let mut copy = |is_probe, wait| {
            now += wait;
            rate.skip_idle_time(now);
            rate.record_start(is_probe, now);
            let sent = now;
            now += Duration::from_millis(100);
            rate.record_throttled(is_probe, sent, now);
        };
        copy(false, Duration::ZERO);
        copy(true, HOLD);
        copy(true, MAX_HOLD + pause);
        now += Duration::from_secs(3);
        rate.per_second(now)
    }

    #[test]
    fn a_pause_delays_the_rate_once_when_the_probe_after_it_is_refused() {
        let without = rate_after_pause(Duration::ZERO);
        let with = rate_after_pause(Duration::from_mins(5));
        assert!((with - without).abs() < 1e-3, "{with}, not {without}");
    }
}
