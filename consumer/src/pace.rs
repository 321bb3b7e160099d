//! The pace of the copies: as fast as S3 answers well, slower at once when it says `SlowDown`.
//!
//! Two limits, shared by all copies of the process. The window bounds how many are in flight; it
//! starts small and doubles per round trip, so that a cold start neither bursts nor crawls. The rate
//! bounds how many start per second; it exists only once S3 has throttled, is cut at once, and grows
//! back along a cubic curve: quickly at first, slowly where it was throttled last, then on beyond.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const FIRST_WINDOW: f64 = 8.0;

/// What remains of the rate after a cut.
const CUT: f64 = 0.85;

/// How long the rate takes to grow back to where it was cut.
const RECOVERY: Duration = Duration::from_secs(8);

/// The slowest rate, in copies per second: probing goes on however bad it gets.
const SLOWEST: f64 = 0.5;

/// Over how long the rate that S3 really served is measured.
const MEASURED_OVER: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct State {
    window: f64,
    in_flight: usize,
    rate: Option<Rate>,
    served: Served,
}

/// The rate limit since the last cut.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// What was asked for when S3 throttled, in copies per second.
    peak: f64,
    cut_at: Instant,
    /// When the next copy may start.
    next: Instant,
}

/// How many copies S3 answers per second.
#[derive(Debug, Clone, Copy)]
struct Served {
    since: Instant,
    count: u32,
    per_second: f64,
}

/// The pace of one process.
#[derive(Debug)]
pub struct Pace {
    most: f64,
    state: Mutex<State>,
    freed: Notify,
}

/// A copy under way; ends when it is told how the copy went, or is dropped.
#[derive(Debug)]
pub struct Slot<'a> {
    pace: &'a Pace,
    started: Instant,
}

impl Rate {
    /// Copies per second allowed now.
    fn allowed(&self, now: Instant) -> f64 {
        let grown = (now - self.cut_at).as_secs_f64() / RECOVERY.as_secs_f64() - 1.0;
        (self.peak * (1.0 + (1.0 - CUT) * grown.powi(3))).max(SLOWEST)
    }
}

impl Served {
    fn add(&mut self, now: Instant) {
        self.count += 1;
        let elapsed = now - self.since;
        if elapsed >= MEASURED_OVER {
            self.per_second = f64::from(self.count) / elapsed.as_secs_f64();
            (self.since, self.count) = (now, 0);
        }
    }

    /// The better of the last full measurement and the one that is going on.
    fn rate(&self, now: Instant) -> f64 {
        let elapsed = (now - self.since).max(Duration::from_millis(50));
        self.per_second
            .max(f64::from(self.count) / elapsed.as_secs_f64())
    }
}

impl Pace {
    /// A pace of at most `most` copies in flight.
    pub fn new(most: usize) -> Self {
        let now = Instant::now();
        let most = f64::from(u32::try_from(most).unwrap_or(u32::MAX));
        let state = State {
            window: FIRST_WINDOW.min(most),
            in_flight: 0,
            rate: None,
            served: Served {
                since: now,
                count: 0,
                per_second: 0.0,
            },
        };
        Self {
            most,
            state: Mutex::new(state),
            freed: Notify::new(),
        }
    }

    /// Waits until one more copy may start.
    pub async fn enter(&self) -> Slot<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some(start) = self.try_enter() {
                let mut slot = Slot {
                    pace: self,
                    started: start,
                };
                sleep_until(start).await;
                slot.started = Instant::now();
                return slot;
            }
            freed.await;
        }
    }

    /// Takes a place in the window; answers when the rate allows the copy to start.
    fn try_enter(&self) -> Option<Instant> {
        let mut state = self.lock();
        if f64::from(u32::try_from(state.in_flight).unwrap_or(u32::MAX)) + 1.0 > state.window {
            return None;
        }
        state.in_flight += 1;
        let now = Instant::now();
        let Some(rate) = &mut state.rate else {
            return Some(now);
        };
        let start = rate.next.max(now);
        rate.next = start + Duration::from_secs_f64(1.0 / rate.allowed(start));
        Some(start)
    }

    /// Copies in flight, and how many may be.
    pub fn concurrency(&self) -> (usize, f64) {
        let state = self.lock();
        (state.in_flight, state.window)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// S3 served the request, whatever it said.
    pub fn served(self) {
        let mut state = self.pace.lock();
        state.served.add(Instant::now());
        state.window = (state.window + 1.0).min(self.pace.most);
        drop(state);
        // One for the grown window; the dropped slot wakes another.
        self.pace.freed.notify_one();
    }

    /// S3 asked for fewer requests. Of all requests that were in flight at a cut, none cuts again: they
    /// were sent before it could show.
    pub fn throttled(self) {
        let now = Instant::now();
        let mut state = self.pace.lock();
        let peak = match state.rate {
            Some(rate) if self.started < rate.cut_at => return,
            Some(rate) => rate
                .allowed(now)
                .min(state.served.rate(now).max(rate.peak * CUT)),
            None => state.served.rate(now),
        };
        state.rate = Some(Rate {
            peak: peak.max(SLOWEST),
            cut_at: now,
            next: now,
        });
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.pace.lock().in_flight -= 1;
        self.pace.freed.notify_one();
    }
}
