//! The rate at which the store is asked: how it grows, and what is left of it when the store throttles.
//!
//! It doubles from a low start until the store throttles. Then it grows back along a cubic curve:
//! quickly at first, slowly where it was throttled last, then on beyond, as in CUBIC (RFC 9438). A slow
//! rate grows back slowly, so that the refusals by which it finds the limit stay few among many copies.
//! A limit that has been passed without a refusal is gone: from there the rate doubles again.

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

/// The same while the limit is not known yet.
const FIRST_COPIES: f64 = 1600.0;
const MIN_FIRST_RECOVERY: Duration = Duration::from_secs(2);
const MAX_FIRST_RECOVERY: Duration = Duration::from_secs(8);

/// How far above the peak the store serves everything when its limit is gone.
const LEFT_BEHIND: f64 = 1.2;

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

/// A rate in copies per second.
#[derive(Debug, Clone, Copy)]
pub enum CubicRate {
    /// Doubling since then; the store has not throttled yet.
    Doubling(Instant),
    /// Growing back since it throttled last.
    Recovering(Recovery),
}

/// A rate that grows back.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// The rate at which the store throttled.
    peak: f64,
    cut_at: Instant,
    /// How long the rate takes to grow back to the peak.
    length: Duration,
    /// Whether the peak is more than a first guess.
    is_known: bool,
}

impl CubicRate {
    pub fn new(now: Instant) -> Self {
        Self::Doubling(now)
    }

    /// Whether the store has throttled.
    /// Whether the store has throttled, and the limit is not left behind.
    pub fn is_limited(self, now: Instant) -> bool {
        matches!(self, Self::Recovering(recovery) if recovery.searching(now).is_none())
    }

    /// What is allowed now.
    pub fn per_second(self, now: Instant) -> f64 {
        match self {
            Self::Doubling(since) => doubled(FIRST_RATE, now - since),
            Self::Recovering(recovery) => recovery.per_second(now),
        }
    }

    /// The rate after the store throttled a request.
    #[must_use]
    pub fn cut(self, now: Instant, served: &RateMeter) -> Self {
        Self::Recovering(match self {
            Self::Doubling(_) => Recovery::first(self.per_second(now), now, served),
            Self::Recovering(recovery) if recovery.searching(now).is_some() => {
                Recovery::first(self.per_second(now), now, served)
            }
            Self::Recovering(recovery) => recovery.cut(now, served),
        })
    }
}

/// Doubled so long, from this rate.
fn doubled(from: f64, elapsed: Duration) -> f64 {
    let slow = elapsed.as_secs_f64() / DOUBLING.as_secs_f64();
    let quick = (slow - (QUICK_ABOVE / from).log2().max(0.0)).max(0.0);
    from * (slow + quick).min(60.0).exp2()
}

impl Recovery {
    fn new(peak: f64, now: Instant, is_known: bool) -> Self {
        let peak = peak.max(MIN_RATE);
        // A peak that is a first guess, or has been left far behind, is no place to linger at.
        let length = if is_known {
            duration_of(RECOVERY_COPIES, peak, MIN_RECOVERY..=MAX_RECOVERY)
        } else {
            duration_of(FIRST_COPIES, peak, MIN_FIRST_RECOVERY..=MAX_FIRST_RECOVERY)
        };
        Self {
            peak,
            cut_at: now,
            length,
            is_known,
        }
    }

    /// After a search by doubling.
    fn first(reached: f64, now: Instant, served: &RateMeter) -> Self {
        let is_quick = reached > QUICK_ABOVE;
        let two_doublings = MEASURED_OVER / if is_quick { 2 } else { 1 };
        let served = served.rate(two_doublings / 2..=two_doublings, now);
        // The very first copies say little.
        Self::new(served.max(FIRST_RATE / 2.0), now, false)
    }

    /// How long the rate has been doubling, since the limit was left behind.
    fn searching(self, now: Instant) -> Option<Duration> {
        // The cubic is at `LEFT_BEHIND` times the peak.
        let grown = 1.0 + ((LEFT_BEHIND - 1.0) / (1.0 - CUT)).cbrt();
        (now - self.cut_at).checked_sub(self.length.mul_f64(grown))
    }

    fn per_second(self, now: Instant) -> f64 {
        if let Some(elapsed) = self.searching(now) {
            return doubled(self.peak * LEFT_BEHIND, elapsed);
        }
        let grown = (now - self.cut_at).as_secs_f64() / self.length.as_secs_f64() - 1.0;
        (self.peak * (1.0 + (1.0 - CUT) * grown.powi(3))).max(MIN_RATE)
    }

    fn cut(self, now: Instant, served: &RateMeter) -> Self {
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
        Self::new(peak, now, !is_guess)
    }
}

/// How long so many copies take at a rate, within bounds.
pub(super) fn duration_of(
    copies: f64,
    per_second: f64,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Duration {
    let seconds = copies / per_second.max(MIN_RATE);
    let (least, most) = (bounds.start().as_secs_f64(), bounds.end().as_secs_f64());
    Duration::from_secs_f64(seconds.clamp(least, most))
}
