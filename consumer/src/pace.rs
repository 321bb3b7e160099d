//! The pace of the copies: as fast as S3 answers well, slower at once when it says `SlowDown`.
//!
//! Two limits, shared by all copies of the process. The window bounds how many are in flight. The
//! rate bounds how many start per second: it doubles from a low start until S3 throttles for the
//! first time. From then on, each time S3 throttles:
//!
//! 1. nothing starts for a moment, and then a single copy goes first, so that a limit that counts by
//!    the second costs one refusal and not one for every copy at hand;
//! 2. the rate is cut once, whatever else of what was in flight comes back refused;
//! 3. it grows back along a cubic curve: quickly at first, slowly where it was throttled last, then
//!    on beyond, as in CUBIC (RFC 9438). A slow rate grows back slowly, so that the refusals by which
//!    it feels its way stay few among many copies.
//!
//! Each process finds the limit for itself, which costs four or five refusals. Among the copies of an
//! hour that is nothing; it shows where several processes share a low limit for a minute.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as FairMutex, Notify};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Copies per second at the start; doubled every [`DOUBLING`] until S3 throttles.
const FIRST_RATE: f64 = 8.0;

const DOUBLING: Duration = Duration::from_millis(500);

/// What remains of the rate after a cut.
const CUT: f64 = 0.85;

/// How many copies are made while the rate grows back to where it was cut, and the least time.
const RECOVERY_COPIES: f64 = 600.0;
const RECOVERY: Duration = Duration::from_secs(6);
const LONGEST_RECOVERY: Duration = Duration::from_mins(1);

/// The same while the limit is not known yet.
const FIRST_COPIES: f64 = 1600.0;
const FIRST_RECOVERY: Duration = Duration::from_secs(2);
const LONGEST_FIRST: Duration = Duration::from_secs(8);

/// How long nothing starts after a refusal: as long as so many copies take, within bounds; doubled while
/// the copy that goes first is refused too. At a high rate a refusal is a small part of the copies, and
/// a rest a large part of the time.
const HOLD_COPIES: f64 = 12.0;
const SHORTEST_HOLD: Duration = Duration::from_millis(50);
const HOLD: Duration = Duration::from_millis(300);
const LONGEST_HOLD: Duration = Duration::from_secs(2);

/// How long the copy that goes first is waited for, before another goes in its place: it may be a
/// large one, or its connection dead.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// The slowest rate, in copies per second: probing goes on however bad it gets.
const SLOWEST: f64 = 0.5;

/// Over how long the rate that S3 really served is measured.
const MEASURED_OVER: Duration = Duration::from_secs(1);

/// How many seconds' worth of copies a throttled process has in hand, commits and deletes included,
/// and the least number of messages: two polls' worth.
const IN_HAND: Duration = Duration::from_secs(3);
const LEAST_IN_HAND: f64 = 20.0;

/// How far ahead a copy may book its start.
const FAR_AHEAD: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct State {
    in_flight: usize,
    growth: Growth,
    /// When the next copy may start, by the rate.
    next: Instant,
    hold: Option<Hold>,
    served: Served,
}

/// How the rate grows.
#[derive(Debug, Clone, Copy)]
enum Growth {
    /// Doubling since then; S3 has not throttled yet.
    Doubling(Instant),
    /// Growing back since a cut.
    Cubic {
        /// The rate at which S3 throttled, in copies per second.
        peak: f64,
        cut_at: Instant,
        /// How long the rate takes to grow back to the peak.
        recovery: Duration,
        /// Whether the peak is more than a first guess.
        is_known: bool,
    },
}

/// After a refusal: nothing starts, then one copy, then all others once it went well.
#[derive(Debug, Clone, Copy)]
struct Hold {
    until: Instant,
    length: Duration,
    probing_since: Option<Instant>,
}

/// When S3 served what, over the last moments.
#[derive(Debug)]
struct Served {
    began: Instant,
    at: VecDeque<(Instant, u32)>,
}

/// The pace of one process.
#[derive(Debug)]
pub struct Pace {
    most: usize,
    state: Mutex<State>,
    /// Whoever wants to start waits here, first come, first served; only the one in front looks at the
    /// clock. At a thousand copies a second, a hundred that all look would be busy with nothing else.
    front: FairMutex<()>,
    changed: Notify,
}

/// A copy under way; ends when it is told how the copy went, or is dropped.
#[derive(Debug)]
pub struct Slot<'a> {
    pace: &'a Pace,
    started: Instant,
    is_probe: bool,
}

impl Growth {
    /// Copies per second allowed now.
    fn rate(self, now: Instant) -> f64 {
        match self {
            Self::Doubling(since) => {
                let doublings = (now - since).as_secs_f64() / DOUBLING.as_secs_f64();
                FIRST_RATE * doublings.min(40.0).exp2()
            }
            Self::Cubic {
                peak,
                cut_at,
                recovery,
                ..
            } => {
                let grown = (now - cut_at).as_secs_f64() / recovery.as_secs_f64() - 1.0;
                (peak * (1.0 + (1.0 - CUT) * grown.powi(3))).max(SLOWEST)
            }
        }
    }
}

impl Growth {
    /// Starts the doubling now.
    fn begin(&mut self, now: Instant) {
        if let Self::Doubling(since) = self {
            *since = now;
        }
    }

    /// The growth after a refusal, when S3 served this many copies per second.
    fn cut(self, now: Instant, served: f64) -> Self {
        let (peak, is_known) = match self {
            // The very first copies say little.
            Self::Doubling(_) => (served.max(FIRST_RATE / 2.0), false),
            Self::Cubic {
                peak,
                cut_at,
                recovery,
                is_known,
            } => {
                // A rate that nobody used is no rate that S3 served.
                let reached = self.rate(now).min(peak.max(served) * 1.25);
                // Refused again so soon, the last guess was far too high.
                let is_soon = now - cut_at < recovery / 2;
                let guess = (served * 1.1).clamp(reached * 0.75, reached);
                let peak_now = if is_soon { guess } else { reached };
                let is_guessing = is_soon && !is_known;
                (peak_now, reached < peak * 1.2 && !is_guessing)
            }
        };
        let peak = peak.max(SLOWEST);
        // A peak that is a first guess, or has been left far behind, is no place to linger at.
        let recovery = if is_known {
            time_of(RECOVERY_COPIES, peak, RECOVERY, LONGEST_RECOVERY)
        } else {
            time_of(FIRST_COPIES, peak, FIRST_RECOVERY, LONGEST_FIRST)
        };
        Self::Cubic {
            peak,
            cut_at: now,
            recovery,
            is_known,
        }
    }
}

impl Served {
    /// Counts in steps of a twentieth of the window, which bounds the memory.
    fn add(&mut self, now: Instant) {
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

    /// Copies served per second over the last second, or since the beginning when that is less.
    fn rate(&self, now: Instant) -> f64 {
        let since = now.checked_sub(MEASURED_OVER).unwrap_or(now);
        let count: u32 = self
            .at
            .iter()
            .filter(|(then, _)| *then >= since)
            .map(|(_, count)| count)
            .sum();
        let over = (now - self.began).clamp(MEASURED_OVER / 2, MEASURED_OVER);
        f64::from(count) / over.as_secs_f64()
    }
}

/// How long so many copies take at a rate, within bounds.
fn time_of(copies: f64, rate: f64, least: Duration, most: Duration) -> Duration {
    let seconds = copies / rate.max(SLOWEST);
    Duration::from_secs_f64(seconds.clamp(least.as_secs_f64(), most.as_secs_f64()))
}

fn whole(number: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is positive"
    )]
    let whole = number as usize;
    whole
}

/// What a copy that wants to start is told.
enum Entry {
    /// Start at this time.
    At(Instant, bool),
    /// Ask again when something changes, or at this time at the latest.
    Later(Option<Instant>),
}

impl Pace {
    /// A pace of at most `most` copies in flight.
    pub fn new(most: usize) -> Self {
        let now = Instant::now();
        let state = State {
            in_flight: 0,
            growth: Growth::Doubling(now),
            next: now,
            hold: None,
            served: Served {
                began: now,
                at: VecDeque::new(),
            },
        };
        Self {
            most,
            state: Mutex::new(state),
            front: FairMutex::new(()),
            changed: Notify::new(),
        }
    }

    /// Waits until one more copy may start.
    pub async fn enter(&self) -> Slot<'_> {
        loop {
            let mut slot = self.book().await;
            sleep_until(slot.started).await;
            // Unless a hold came while it waited for its time.
            if slot.is_probe || self.lock().hold.is_none() {
                slot.started = Instant::now();
                return slot;
            }
        }
    }

    /// Waits for a place in the window, and for the time to start to be near.
    async fn book(&self) -> Slot<'_> {
        let _front = self.front.lock().await;
        loop {
            match self.try_enter() {
                Entry::At(started, is_probe) => {
                    return Slot {
                        pace: self,
                        started,
                        is_probe,
                    };
                }
                Entry::Later(None) => self.changed.notified().await,
                Entry::Later(Some(time)) => drop(timeout_at(time, self.changed.notified()).await),
            }
        }
    }

    /// Takes a place in the window; answers when the rate allows the copy to start.
    fn try_enter(&self) -> Entry {
        let mut state = self.lock();
        let now = Instant::now();
        if state.in_flight == 0 && state.served.at.is_empty() {
            // The first copy of all: a consumer may have waited for work for hours.
            state.growth.begin(now);
            state.served.began = now;
        }
        let is_probe = match &mut state.hold {
            Some(hold) if hold.until > now => return Entry::Later(Some(hold.until)),
            Some(hold) => match hold.probing_since {
                Some(since) if now - since < PROBE_PATIENCE => {
                    return Entry::Later(Some(since + PROBE_PATIENCE));
                }
                _ => {
                    hold.probing_since = Some(now);
                    true
                }
            },
            None => false,
        };
        if state.in_flight >= self.most && !is_probe {
            return Entry::Later(None);
        }
        let rate = state.growth.rate(now);
        // No further ahead than a tenth of a second: what waits longer waits outside, where a hold
        // reaches it.
        if state.next > now + FAR_AHEAD && !is_probe {
            return Entry::Later(Some(state.next));
        }
        state.in_flight += 1;
        let start = state.next.max(now);
        // Processes that started together must not go on asking at the same moments.
        let jitter = 0.8 + 0.4 * fastrand::f64();
        state.next = start + Duration::from_secs_f64(jitter / rate);
        Entry::At(start, is_probe)
    }

    /// Copies in flight, and how many may start per second once S3 has throttled.
    pub fn now(&self) -> (usize, Option<f64>) {
        let state = self.lock();
        let rate = match state.growth {
            Growth::Doubling(_) => None,
            Growth::Cubic { .. } => Some(state.growth.rate(Instant::now())),
        };
        (state.in_flight, rate)
    }

    /// How many messages it makes sense to have in hand: none beyond what this process can copy soon
    /// while S3 throttles it. Others may be allowed more.
    pub fn worth_having(&self) -> usize {
        match self.now() {
            (_, None) => usize::MAX,
            (_, Some(rate)) => whole((rate * IN_HAND.as_secs_f64()).max(LEAST_IN_HAND)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// S3 served the request, whatever it said.
    pub fn served(mut self) {
        let mut state = self.pace.lock();
        state.served.add(Instant::now());
        if self.is_probe {
            self.is_probe = false;
            state.hold = None;
            state.next = Instant::now();
            drop(state);
            self.pace.changed.notify_one();
        }
    }

    /// S3 asked for fewer requests. Of all requests that were in flight at a cut, none cuts again: they
    /// were sent before it could show.
    pub fn throttled(mut self) {
        let now = Instant::now();
        let mut state = self.pace.lock();
        if self.is_probe {
            self.is_probe = false;
            let length = state
                .hold
                .map_or(HOLD, |hold| (hold.length * 2).min(LONGEST_HOLD));
            state.hold = Some(Hold::new(now, length));
            drop(state);
            self.pace.changed.notify_one();
            return;
        }
        if state.hold.is_some()
            || matches!(state.growth, Growth::Cubic { cut_at, .. } if self.started < cut_at)
        {
            return;
        }
        state.growth = state.growth.cut(now, state.served.rate(now));
        let length = time_of(HOLD_COPIES, state.growth.rate(now), SHORTEST_HOLD, HOLD);
        state.hold = Some(Hold::new(now, length));
    }
}

impl Hold {
    fn new(now: Instant, length: Duration) -> Self {
        Self {
            until: now + length,
            length,
            probing_since: None,
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.pace.lock();
        state.in_flight -= 1;
        if self.is_probe {
            // Interrupted: another goes first.
            if let Some(hold) = &mut state.hold {
                hold.probing_since = None;
            }
        }
        drop(state);
        self.pace.changed.notify_one();
    }
}
