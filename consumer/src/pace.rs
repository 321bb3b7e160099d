//! The pace of the copies: as fast as S3 answers well, slower at once when it says `SlowDown`.
//!
//! Two limits, shared by all copies of the process. The window bounds how many are in flight. The
//! rate bounds how many start per second: it doubles from a low start, the quicker the higher it is,
//! until S3 throttles for the first time. From then on, each time S3 throttles:
//!
//! 1. nothing starts for a moment, and then a single copy goes first, so that a limit that counts by
//!    the second costs one refusal and not one for every copy at hand;
//! 2. the rate is cut once, whatever else of what was in flight comes back refused: to a little less
//!    than where it was, or than what S3 served in the last second where that is much less;
//! 3. it grows back along a cubic curve: quickly at first, slowly where it was throttled last, then
//!    on beyond, as in CUBIC (RFC 9438). A slow rate grows back slowly, so that the refusals by which
//!    it feels its way stay few among many copies.
//!
//! Each process finds the limit for itself, which costs four or five refusals. Among the copies of an
//! hour that is nothing; it shows where several processes share a low limit for a minute.

mod growth;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as FairMutex, Notify};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::growth::{Growth, Served, time_of};

/// How long nothing starts after a refusal: as long as so many copies take, within bounds; half as long
/// again each time the copy that goes first is refused too. At a high rate a refusal is a small part of
/// the copies, and a rest a large part of the time: where S3 counts by the second, the last rest goes on
/// into the next second, which a longer one wastes.
const HOLD_COPIES: f64 = 12.0;
const SHORTEST_HOLD: Duration = Duration::from_millis(50);
const HOLD: Duration = Duration::from_millis(300);
const LONGEST_HOLD: Duration = Duration::from_secs(2);
const HOLD_GROWTH: f64 = 1.5;

/// How long the copy that goes first is waited for, before another goes in its place: it may be a
/// large one, or its connection dead.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

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

/// After a refusal: nothing starts, then one copy, then all others once it went well.
#[derive(Debug, Clone, Copy)]
struct Hold {
    until: Instant,
    length: Duration,
    probing_since: Option<Instant>,
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
            growth: Growth::new(now),
            next: now,
            hold: None,
            served: Served::new(now),
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
        if state.in_flight == 0 && state.served.is_nothing() {
            // The first copy of all: a consumer may have waited for work for hours.
            state.growth.begin(now);
            state.served = Served::new(now);
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
        let rate = || state.growth.rate(Instant::now());
        (state.in_flight, state.growth.cut_at().map(|_| rate()))
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
                .map_or(HOLD, |hold| hold.length.mul_f64(HOLD_GROWTH));
            state.hold = Some(Hold::new(now, length.min(LONGEST_HOLD)));
            drop(state);
            self.pace.changed.notify_one();
            return;
        }
        let was_sent_before = |cut_at: Instant| self.started < cut_at;
        if state.hold.is_some() || state.growth.cut_at().is_some_and(was_sent_before) {
            return;
        }
        state.growth = state.growth.cut(now, &state.served);
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
