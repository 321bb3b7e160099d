//! A database that is slow: it serves the application first. After a slow commit nothing starts for a
//! moment, and fewer copies are in flight until commits have been fast for a while.

use std::time::Duration;

use tokio::time::Instant;

/// The least time between two cuts: what was in flight at the first must be through.
const BETWEEN_CUTS: Duration = Duration::from_secs(1);

/// How long commits must have been fast before the copies grow again.
const CALM: Duration = Duration::from_secs(2);

/// The longest nothing new starts after a slow commit.
const MAX_REST: Duration = Duration::from_secs(5);

/// How long commits take, and what that leaves of the copies in flight.
#[derive(Debug)]
pub(super) struct CommitLatency {
    max: Option<Duration>,
    /// Over a few commits.
    average: Option<Duration>,
    last_slow: Option<SlowCommit>,
    allowance: Option<CopyAllowance>,
}

#[derive(Debug, Clone, Copy)]
struct SlowCommit {
    at: Instant,
    took: Duration,
}

/// Copies in flight that the database bears.
#[derive(Debug, Clone, Copy)]
struct CopyAllowance {
    copies: f64,
    cut_at: Instant,
}

impl CommitLatency {
    pub(super) fn new(max: Option<Duration>) -> Self {
        Self {
            max,
            average: None,
            last_slow: None,
            allowance: None,
        }
    }

    pub(super) fn average(&self) -> Option<Duration> {
        self.average
    }

    /// Copies in flight; none for as many as there may be.
    pub(super) fn allowance(&self) -> Option<f64> {
        self.allowance.map(|allowance| allowance.copies)
    }

    /// Until when nothing starts, and the commit because of which.
    pub(super) fn rest(&self, now: Instant) -> Option<(Instant, Duration)> {
        let SlowCommit { at, took } = self.last_slow?;
        let until = at + (took * 2).min(MAX_REST);
        (until > now).then_some((until, took))
    }

    /// A commit took so long, with at most so many copies in flight, if they are bounded.
    pub(super) fn record(&mut self, took: Duration, max_copies: Option<usize>, now: Instant) {
        self.average = Some(self.average.map_or(took, |before| (before * 3 + took) / 4));
        if self.max.is_none_or(|max| took <= max) {
            return;
        }
        self.last_slow = Some(SlowCommit { at: now, took });
        if let Some(max_copies) = max_copies {
            self.cut(took, max_copies, now);
        }
    }

    fn cut(&mut self, took: Duration, max_copies: usize, now: Instant) {
        let before = match self.allowance {
            Some(allowance) if now - allowance.cut_at < BETWEEN_CUTS => return,
            Some(allowance) => allowance.copies,
            None => {
                tracing::warn!(
                    "a commit took {took:?}, more than MAX_COMMIT_LATENCY: fewer copies until the database is faster"
                );
                to_f64(max_copies)
            }
        };
        self.allowance = Some(CopyAllowance {
            copies: (before / 2.0).max(1.0),
            cut_at: now,
        });
    }

    /// Once a second.
    pub(super) fn recover(&mut self, max_copies: usize, now: Instant) {
        let is_calm = self.last_slow.is_none_or(|slow| now - slow.at >= CALM);
        let Some(allowance) = &mut self.allowance else {
            return;
        };
        if !is_calm {
            return;
        }
        allowance.copies = allowance.copies * 1.1 + 1.0;
        if allowance.copies >= to_f64(max_copies) {
            tracing::info!("commits are fast again: as many copies as before");
            self.allowance = None;
        }
    }
}

fn to_f64(copies: usize) -> f64 {
    f64::from(u32::try_from(copies).unwrap_or(u32::MAX))
}
