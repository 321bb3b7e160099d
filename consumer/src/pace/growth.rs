//! The rate of the copies: how it grows, and what is left of it when S3 throttles.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Copies per second at the start; doubled every [`DOUBLING`] until S3 throttles.
const FIRST_RATE: f64 = 8.0;

const DOUBLING: Duration = Duration::from_millis(500);

/// After so many doublings, at 64 copies a second, each takes half the time. To pass a limit up there
/// costs a small share of many copies, and to come to it late a second's worth of them. A low limit is
/// approached slowly: it is often shared, and has few copies to spread refusals over.
const SLOW_DOUBLINGS: f64 = 3.0;

/// What remains of the rate after a cut.
const CUT: f64 = 0.9;

/// How many copies are made while the rate grows back to where it was cut, and the least time.
const RECOVERY_COPIES: f64 = 600.0;
const RECOVERY: Duration = Duration::from_secs(6);
const LONGEST_RECOVERY: Duration = Duration::from_mins(1);

/// The same while the limit is not known yet.
const FIRST_COPIES: f64 = 1600.0;
const FIRST_RECOVERY: Duration = Duration::from_secs(2);
const LONGEST_FIRST: Duration = Duration::from_secs(8);

/// How much more than it served in the last second S3 may allow: rests are part of that second.
const MORE_THAN_SERVED: f64 = 1.1;

/// The least part of the rate that may be the limit, whatever was served: a little may have been served
/// because little was asked for. While the limit is not known, the rate may be far above it.
const LEAST_PART: f64 = 0.75;
const FIRST_LEAST_PART: f64 = 0.5;

/// The slowest rate, in copies per second: probing goes on however bad it gets.
const SLOWEST: f64 = 0.5;

/// Over how long the rate that S3 really served is measured: two doublings.
const MEASURED_OVER: Duration = Duration::from_secs(1);

/// How the rate grows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Growth {
    /// Doubling since then; S3 has not throttled yet.
    Doubling(Instant),
    /// Growing back since a cut.
    Cubic(Cubic),
}

/// A rate that grows back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cubic {
    /// The rate at which S3 throttled, in copies per second.
    peak: f64,
    cut_at: Instant,
    /// How long the rate takes to grow back to the peak.
    recovery: Duration,
    /// Whether the peak is more than a first guess.
    is_known: bool,
}

/// When S3 served what, over the last moments.
#[derive(Debug)]
pub(super) struct Served {
    began: Instant,
    at: VecDeque<(Instant, u32)>,
}

impl Growth {
    pub(super) fn new(now: Instant) -> Self {
        Self::Doubling(now)
    }

    /// Starts the doubling now.
    pub(super) fn begin(&mut self, now: Instant) {
        if let Self::Doubling(since) = self {
            *since = now;
        }
    }

    /// When S3 throttled last.
    pub(super) fn cut_at(self) -> Option<Instant> {
        match self {
            Self::Doubling(_) => None,
            Self::Cubic(cubic) => Some(cubic.cut_at),
        }
    }

    /// Copies per second allowed now.
    pub(super) fn rate(self, now: Instant) -> f64 {
        match self {
            Self::Doubling(since) => FIRST_RATE * doublings(now - since).min(40.0).exp2(),
            Self::Cubic(cubic) => cubic.rate(now),
        }
    }

    /// The growth after a refusal.
    pub(super) fn cut(self, now: Instant, served: &Served) -> Self {
        Self::Cubic(match self {
            Self::Doubling(since) => {
                let is_quick = doublings(now - since) > SLOW_DOUBLINGS;
                let two_doublings = MEASURED_OVER / if is_quick { 2 } else { 1 };
                // The very first copies say little.
                let peak = served.rate(now, two_doublings).max(FIRST_RATE / 2.0);
                Cubic::new(peak, now, false)
            }
            Self::Cubic(cubic) => cubic.cut(now, served.rate(now, MEASURED_OVER)),
        })
    }
}

/// How often the rate has doubled.
fn doublings(since: Duration) -> f64 {
    let slow = since.as_secs_f64() / DOUBLING.as_secs_f64();
    slow + (slow - SLOW_DOUBLINGS).max(0.0)
}

impl Cubic {
    fn new(peak: f64, now: Instant, is_known: bool) -> Self {
        let peak = peak.max(SLOWEST);
        // A peak that is a first guess, or has been left far behind, is no place to linger at.
        let recovery = if is_known {
            time_of(RECOVERY_COPIES, peak, RECOVERY, LONGEST_RECOVERY)
        } else {
            time_of(FIRST_COPIES, peak, FIRST_RECOVERY, LONGEST_FIRST)
        };
        Self {
            peak,
            cut_at: now,
            recovery,
            is_known,
        }
    }

    fn rate(self, now: Instant) -> f64 {
        let grown = (now - self.cut_at).as_secs_f64() / self.recovery.as_secs_f64() - 1.0;
        (self.peak * (1.0 + (1.0 - CUT) * grown.powi(3))).max(SLOWEST)
    }

    /// The growth after a refusal, when S3 served this many copies per second.
    fn cut(self, now: Instant, served: f64) -> Self {
        // A rate that nobody used is no rate that S3 served.
        let reached = self.rate(now).min(self.peak.max(served) * 1.25);
        let least = if self.is_known {
            LEAST_PART
        } else {
            FIRST_LEAST_PART
        };
        let peak = (served * MORE_THAN_SERVED).clamp(reached * least, reached);
        let is_guess = peak < reached && !self.is_known;
        Self::new(peak, now, reached < self.peak * 1.2 && !is_guess)
    }
}

impl Served {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            at: VecDeque::new(),
        }
    }

    /// Whether nothing was served yet.
    pub(super) fn is_nothing(&self) -> bool {
        self.at.is_empty()
    }

    /// Counts in steps of a twentieth of the window, which bounds the memory.
    pub(super) fn add(&mut self, now: Instant) {
        match self.at.back_mut() {
            Some((then, count)) if now - *then < MEASURED_OVER / 20 => *count += 1,
            _ => self.at.push_back((now, 1)),
        }
        while self
            .at
            .front()
            .is_some_and(|(then, _)| now - *then > MEASURED_OVER)
        {
            self.at.pop_front();
        }
    }

    /// Copies served per second over so long, at most [`MEASURED_OVER`], or since the beginning when
    /// that is less.
    fn rate(&self, now: Instant, over: Duration) -> f64 {
        let since = now.checked_sub(over).unwrap_or(now);
        let count: u32 = self
            .at
            .iter()
            .filter(|(then, _)| *then >= since)
            .map(|(_, count)| count)
            .sum();
        let over = (now - self.began).clamp(over / 2, over);
        f64::from(count) / over.as_secs_f64()
    }
}

/// How long so many copies take at a rate, within bounds.
pub(super) fn time_of(copies: f64, rate: f64, least: Duration, most: Duration) -> Duration {
    let seconds = copies / rate.max(SLOWEST);
    Duration::from_secs_f64(seconds.clamp(least.as_secs_f64(), most.as_secs_f64()))
}
