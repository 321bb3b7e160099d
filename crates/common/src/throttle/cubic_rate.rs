//! The rate at which the store is asked: how it grows, and what is left of it when the store throttles.
//!
//! It doubles from a low start until the store throttles. Then it grows back along a cubic curve:
//! quickly at first, slowly where it was throttled last, then on beyond, as in CUBIC (RFC 9438). A slow
//! rate grows back slowly, so that the refusals by which it finds the limit stay few among many copies.
//! A limit that has been passed without a refusal is gone: from there the rate doubles again.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

use super::rate_meter::RateMeter;

/// Copies per second at the start; doubled every [`DOUBLING`] until the store throttles.
const FIRST_RATE: f64 = 8.0;

const DOUBLING: Duration = Duration::from_millis(500);

/// From this rate on each doubling takes half the time. To pass a limit up there costs a small share of
/// many copies, and to come to it late a second's worth of them. A low limit is approached slowly: it is
/// often shared, and has few copies to spread refusals over.
const QUICK_ABOVE: f64 = 64.0;

/// What remains of the rate after a cut.
const CUT: f64 = 0.9;

/// How many copies are made while the rate grows back to where it was cut, and the least time.
const RECOVERY_COPIES: f64 = 600.0;
const MIN_RECOVERY: Duration = Duration::from_secs(6);
const MAX_RECOVERY: Duration = Duration::from_mins(1);

/// Near the floor the rate is hardly a limit, but what was left in some trouble of the store. The way
/// back takes 2.3 times this until the limit is left behind, and then seconds of doubling: less than a
/// minute to a thousand copies a second.
const RECOVERY_PER_RATE: Duration = Duration::from_secs(6);
const FLOOR_RECOVERY: Duration = Duration::from_secs(15);

/// The time to the peak while the limit is not known yet.
const FIRST_COPIES: f64 = 1600.0;
const MIN_FIRST_RECOVERY: Duration = Duration::from_secs(2);
const MAX_FIRST_RECOVERY: Duration = Duration::from_secs(8);

/// At so many times the peak the limit is gone. A first guess says less of it.
const LEFT_BEHIND: f64 = 1.2;
const FIRST_LEFT_BEHIND: f64 = 2.0;

/// How much more than it served in the last second the store may allow: rests are part of that second.
const MORE_THAN_SERVED: f64 = 1.1;

/// The least part of the rate that may be the limit, whatever was served: a little may have been served
/// because little was asked for. While the limit is not known, the rate may be far above it.
const LEAST_PART: f64 = 0.75;
const FIRST_LEAST_PART: f64 = 0.5;

/// The slowest rate, in copies per second: probing goes on however bad it gets.
pub(super) const MIN_RATE: f64 = 0.5;

/// Over how long the rate that the store really served is measured: two doublings.
pub(super) const MEASURED_OVER: Duration = Duration::from_secs(1);

/// A rate in copies per second: along the curve until `search_at`, doubling from then on.
#[derive(Debug, Clone, Copy)]
pub(super) struct CubicRate {
    /// The rate at which the store throttled.
    peak: f64,
    cut_at: Instant,
    /// How long the rate takes to grow back to the peak.
    recovery: Duration,
    /// Whether the peak is more than a first guess.
    is_known: bool,
    search_from: f64,
    search_at: Instant,
}

impl CubicRate {
    /// The store has not throttled yet.
    pub(super) fn new(now: Instant) -> Self {
        Self::search(FIRST_RATE, now)
    }

    /// The limit is not known, and above this rate.
    pub(super) fn search(from: f64, now: Instant) -> Self {
        Self {
            peak: from,
            cut_at: now,
            recovery: Duration::ZERO,
            is_known: false,
            search_from: from,
            search_at: now,
        }
    }

    /// The same curve for a share of the copies.
    pub(super) fn scaled(self, share: f64) -> Self {
        Self {
            peak: (self.peak * share).max(MIN_RATE),
            search_from: (self.search_from * share).max(MIN_RATE),
            ..self
        }
    }

    fn recovering(peak: f64, now: Instant, is_known: bool) -> Self {
        let peak = peak.max(MIN_RATE);
        // A peak that is a first guess, or has been left far behind, is no place to linger at.
        let (recovery, left_behind) = if is_known {
            (recovery_from(peak), LEFT_BEHIND)
        } else {
            let bounds = MIN_FIRST_RECOVERY..=MAX_FIRST_RECOVERY;
            (duration_of(FIRST_COPIES, peak, bounds), FIRST_LEFT_BEHIND)
        };
        // The curve reaches so many times the peak then.
        let grown = 1.0 + ((left_behind - 1.0) / (1.0 - CUT)).cbrt();
        Self {
            peak,
            cut_at: now,
            recovery,
            is_known,
            search_from: peak * left_behind,
            search_at: now + recovery.mul_f64(grown),
        }
    }

    /// As if all that came before had come so much later, the cut no later than now.
    pub(super) fn delay(&mut self, time: Duration, now: Instant) {
        let time = time.min(now - self.cut_at);
        self.cut_at += time;
        self.search_at += time;
    }

    /// Whether the store has throttled, and the limit is not left behind. A search has no curve, not even for a
    /// request that ended a moment before it began.
    pub(super) fn is_limited(self, now: Instant) -> bool {
        !self.recovery.is_zero() && now < self.search_at
    }

    pub(super) fn per_second(self, now: Instant) -> f64 {
        if !self.is_limited(now) {
            return doubled(self.search_from, now - self.search_at);
        }
        let grown = (now - self.cut_at).as_secs_f64() / self.recovery.as_secs_f64() - 1.0;
        (self.peak * (1.0 + (1.0 - CUT) * grown.powi(3))).max(MIN_RATE)
    }

    /// The rate after the store throttled a request.
    pub(super) fn cut(self, now: Instant, served: &RateMeter) -> Self {
        if self.is_limited(now) {
            self.cut_known(now, served)
        } else {
            self.cut_search(now, served)
        }
    }

    fn cut_search(self, now: Instant, served: &RateMeter) -> Self {
        let is_quick = self.per_second(now) > QUICK_ABOVE;
        let two_doublings = MEASURED_OVER / if is_quick { 2 } else { 1 };
        let served = served.rate(two_doublings / 2..=two_doublings, now);
        // The very first copies say little.
        Self::recovering(served.max(self.search_from / 2.0), now, false)
    }

    fn cut_known(self, now: Instant, served: &RateMeter) -> Self {
        let served = served.rate(MEASURED_OVER / 2..=MEASURED_OVER, now);
        // A rate that was not used is no rate that the store served.
        let reached = self.per_second(now).min(self.peak.max(served) * 1.25);
        let least = if self.is_known {
            LEAST_PART
        } else {
            FIRST_LEAST_PART
        };
        let peak = (served * MORE_THAN_SERVED).clamp(reached * least, reached);
        let is_guess = peak < reached && !self.is_known;
        Self::recovering(peak, now, reached < self.peak * LEFT_BEHIND && !is_guess)
    }
}

/// Doubled so long, from this rate.
fn doubled(from: f64, elapsed: Duration) -> f64 {
    let slow = elapsed.as_secs_f64() / DOUBLING.as_secs_f64();
    let quick = (slow - (QUICK_ABOVE / from).log2().max(0.0)).max(0.0);
    from * (slow + quick).min(60.0).exp2()
}

/// How long the rate takes to grow back to a peak that is known.
fn recovery_from(peak: f64) -> Duration {
    let longest = RECOVERY_PER_RATE
        .mul_f64(peak)
        .clamp(FLOOR_RECOVERY, MAX_RECOVERY);
    duration_of(RECOVERY_COPIES, peak, MIN_RECOVERY..=longest)
}

/// How long so many copies take at a rate, within bounds.
pub(super) fn duration_of(
    copies: f64,
    per_second: f64,
    bounds: RangeInclusive<Duration>,
) -> Duration {
    let seconds = copies / per_second.max(MIN_RATE);
    let (least, most) = (bounds.start().as_secs_f64(), bounds.end().as_secs_f64());
    Duration::from_secs_f64(seconds.clamp(least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_rate(rate: CubicRate, now: Instant, expected: f64) {
        let per_second = rate.per_second(now);
        assert!((per_second - expected).abs() < 1e-9, "{per_second}");
    }

    #[test]
    fn a_search_has_no_limit_before_it_begins() {
        let earlier = Instant::now();
        let now = earlier + Duration::from_millis(1);
        let rate = CubicRate::search(100.0, now);
        assert!(!rate.is_limited(earlier));
        assert_rate(rate, earlier, 100.0);
        let served = RateMeter::new(MEASURED_OVER, earlier);
        assert_rate(rate.cut(earlier, &served), earlier, 45.0);
    }

    #[test]
    fn a_delay_longer_than_the_curve_begins_it_anew() {
        let began = Instant::now();
        let now = began + Duration::from_secs(3);
        let mut rate = CubicRate::recovering(100.0, began, true);
        let recovery = rate.recovery;
        rate.delay(Duration::from_mins(10), now);
        assert_rate(rate, now, 90.0);
        assert_rate(rate, now + recovery, 100.0);
    }
}
