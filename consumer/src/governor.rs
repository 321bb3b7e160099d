//! What bounds the copies besides S3's pace: an operator's orders for the whole fleet, and a database
//! that is slow or whose replicas lag. The database comes first: it serves the application.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket_brigade_common::fleet_control::FleetLimits;
use bucket_brigade_common::settings::DatabaseLimits;
use tokio::sync::{Mutex as FairMutex, Notify, watch};
use tokio::time::{Instant, timeout_at};

/// What of a rate that was not used may be made up for; a timer wakes a millisecond late.
const CATCH_UP: Duration = Duration::from_millis(50);

/// The least time between two cuts: what was in flight at the first must be through.
const BETWEEN_CUTS: Duration = Duration::from_secs(1);

/// How long commits must have been fast before the copies grow again.
const CALM: Duration = Duration::from_secs(2);

/// The longest nothing new starts after a slow commit.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// How many seconds' worth of copies, and how many messages at least, a bounded process has in hand.
const IN_HAND_SECONDS: f64 = 3.0;
const LEAST_IN_HAND: usize = 20;

/// Why nothing, or less than S3 would allow, is copied at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// An operator paused the run.
    Paused(String),
    /// Commits are slow, or replicas lag.
    Database(String),
    /// An operator limited the fleet.
    Limited(String),
}

#[derive(Debug)]
struct State {
    orders: FleetLimits,
    in_flight: usize,
    /// When the next copy may start, by the rate.
    next: Instant,
    /// Copies in flight that the database bears; none for as many as there may be.
    allowance: Option<f64>,
    cut_at: Instant,
    slow_at: Instant,
    rest_until: Instant,
    lag: Option<Duration>,
    commit: Option<Duration>,
}

/// Bounds the copies of one process.
#[derive(Debug)]
pub struct Governor {
    most: usize,
    limits: DatabaseLimits,
    state: Mutex<State>,
    /// First come, first served; only the one in front looks at the clock.
    front: FairMutex<()>,
    changed: Notify,
    /// Whether the orders leave nothing at all to this process, while others go on.
    left_out: watch::Sender<bool>,
}

/// A copy under way; ends when dropped.
#[derive(Debug)]
pub struct Place<'a>(&'a Governor);

impl Governor {
    /// Bounds at most `most` copies by these orders, until others come.
    pub fn new(most: usize, limits: DatabaseLimits, orders: FleetLimits) -> Self {
        let now = Instant::now();
        let left_out = watch::Sender::new(is_left_out(&orders));
        Self {
            most,
            limits,
            left_out,
            state: Mutex::new(State {
                orders,
                in_flight: 0,
                next: now,
                allowance: None,
                cut_at: now,
                slow_at: now,
                rest_until: now,
                lag: None,
                commit: None,
            }),
            front: FairMutex::new(()),
            changed: Notify::new(),
        }
    }

    /// Waits until one more copy may start, as far as operator and database are concerned.
    pub async fn enter(&self) -> Place<'_> {
        let _front = self.front.lock().await;
        loop {
            match self.try_enter() {
                Ok(()) => return Place(self),
                Err(None) => self.changed.notified().await,
                Err(Some(time)) => drop(timeout_at(time, self.changed.notified()).await),
            }
        }
    }

    /// Takes a place. An error says when to ask again: at a time, or when something changes.
    fn try_enter(&self) -> Result<(), Option<Instant>> {
        let mut state = self.lock();
        let now = Instant::now();
        if state.orders.paused.is_some() || self.lags(&state) {
            return Err(None);
        }
        if state.in_flight >= state.most(self.most) {
            return Err(None);
        }
        if state.rest_until > now {
            return Err(Some(state.rest_until));
        }
        if let Some(rate) = state.orders.rate_share() {
            if state.next > now {
                return Err(Some(state.next));
            }
            let from = state.next.max(now.checked_sub(CATCH_UP).unwrap_or(now));
            state.next = from + one_of(rate);
        }
        state.in_flight += 1;
        Ok(())
    }

    /// The operator's orders, and how far the slowest replica is behind: once a second.
    pub fn hear(&self, orders: FleetLimits, lag: Option<Duration>) {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(rate) = orders.rate_share() {
            // What was booked at a slower rate does not hold back a faster one.
            state.next = state.next.min(now + one_of(rate));
        }
        let is_left_out = is_left_out(&orders);
        state.orders = orders;
        let lagged = self.lags(&state);
        state.lag = lag;
        match (lagged, self.lags(&state)) {
            (false, true) => tracing::warn!("{}: nothing new is copied", self.lag_words(&state)),
            (true, false) => tracing::info!("replicas have caught up: going on"),
            _ => {}
        }
        self.recover(&mut state, now);
        drop(state);
        self.changed.notify_one();
        self.left_out.send_replace(is_left_out);
    }

    /// Waits until the orders leave nothing to this process, while others go on: what it holds is better
    /// given back to them.
    pub async fn left_out(&self) {
        let mut left_out = self.left_out.subscribe();
        // The sender lives as long as this value: waiting cannot fail.
        drop(left_out.wait_for(|is_left_out| *is_left_out).await);
    }

    /// A commit took so long.
    pub fn committed(&self, took: Duration) {
        let mut state = self.lock();
        let now = Instant::now();
        // A moving average over a few commits, for whoever asks.
        state.commit = Some(state.commit.map_or(took, |before| (before * 3 + took) / 4));
        if self.limits.commit_latency.is_none_or(|most| took <= most) {
            return;
        }
        state.slow_at = now;
        state.rest_until = now + (took * 2).min(LONGEST_REST);
        if state.allowance.is_some() && now - state.cut_at < BETWEEN_CUTS {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 4096")]
        let before = state.allowance.unwrap_or(self.most as f64);
        if state.allowance.is_none() {
            tracing::warn!(
                "a commit took {took:?}, more than MAX_COMMIT_LATENCY: fewer copies until the database is faster"
            );
        }
        state.allowance = Some((before / 2.0).max(1.0));
        state.cut_at = now;
    }

    fn recover(&self, state: &mut State, now: Instant) {
        let Some(allowance) = state.allowance else {
            return;
        };
        if now - state.slow_at < CALM {
            return;
        }
        let grown = allowance * 1.1 + 1.0;
        #[expect(clippy::cast_precision_loss, reason = "at most 4096")]
        let is_over = grown >= self.most as f64;
        if is_over {
            tracing::info!("commits are fast again: as many copies as before");
        }
        state.allowance = (!is_over).then_some(grown);
    }

    /// Why less is copied than S3 allows; none when only S3 and the work at hand decide.
    pub fn bound(&self) -> Option<Bound> {
        let state = self.lock();
        let orders = &state.orders;
        if let Some(paused) = &orders.paused {
            return Some(Bound::Paused(paused.clone()));
        }
        if self.lags(&state) {
            return Some(Bound::Database(self.lag_words(&state)));
        }
        if let Some(allowance) = state.allowance {
            let commit = state.commit.unwrap_or_default();
            let most = self.limits.commit_latency.unwrap_or_default();
            return Some(Bound::Database(format!(
                "commits take {commit:.0?}, MAX_COMMIT_LATENCY is {most:?}: at most {allowance:.0} copies at once"
            )));
        }
        let shares = [
            orders
                .rate_share()
                .map(|rate| format!("{rate:.1} copies per second")),
            orders
                .concurrency_share()
                .map(|most| format!("{most} copies at once")),
        ];
        let words: Vec<String> = shares.into_iter().flatten().collect();
        (!words.is_empty()).then(|| Bound::Limited(words.join(", ")))
    }

    /// Copies that may be in flight, and how long commits take.
    pub fn now(&self) -> (usize, Option<Duration>) {
        let state = self.lock();
        let is_held = state.orders.paused.is_some() || self.lags(&state);
        let most = if is_held { 0 } else { state.most(self.most) };
        (most, state.commit)
    }

    /// How many messages it makes sense to have in hand.
    pub fn worth_having(&self) -> usize {
        let state = self.lock();
        if state.orders.paused.is_some() || self.lags(&state) {
            return 0;
        }
        let most = state.most(self.most);
        let by_rate = state.orders.rate_share().map_or(usize::MAX, |rate| {
            whole(rate * IN_HAND_SECONDS).max(LEAST_IN_HAND)
        });
        match most {
            0 => 0,
            most if most == self.most => by_rate,
            most => by_rate.min(2 * most + LEAST_IN_HAND),
        }
    }

    fn lags(&self, state: &State) -> bool {
        match (state.lag, self.limits.replica_lag) {
            (Some(lag), Some(most)) => lag > most,
            _ => false,
        }
    }

    fn lag_words(&self, state: &State) -> String {
        let lag = state.lag.unwrap_or_default().as_secs_f64();
        let most = self.limits.replica_lag.unwrap_or_default();
        format!("a replica is {lag:.1} s behind, MAX_REPLICA_LAG is {most:?}")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Copies in flight that operator and database allow, of the process's own `most`.
    fn most(&self, most: usize) -> usize {
        let share = self.orders.concurrency_share();
        let share = share.map_or(most, |share| usize::try_from(share).unwrap_or(most));
        let allowance = self.allowance.map_or(most, whole);
        most.min(share).min(allowance)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
        self.0.changed.notify_one();
    }
}

fn is_left_out(orders: &FleetLimits) -> bool {
    orders.paused.is_none() && orders.concurrency_share() == Some(0)
}

/// The time of one copy at this rate.
fn one_of(rate: f64) -> Duration {
    Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX / 4)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::time::{advance, timeout};

    fn limited(concurrency: Option<u64>, rate: Option<f64>) -> FleetLimits {
        FleetLimits {
            concurrency,
            rate,
            ..FleetLimits::default()
        }
    }

    fn slow_above(millis: u64) -> DatabaseLimits {
        DatabaseLimits {
            commit_latency: Some(Duration::from_millis(millis)),
            replica_lag: Some(Duration::from_secs(5)),
        }
    }

    async fn may_enter(governor: &Governor) -> bool {
        timeout(Duration::from_millis(1), governor.enter())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_what_has_not_begun() {
        let governor = Governor::new(4, DatabaseLimits::default(), FleetLimits::default());
        assert!(may_enter(&governor).await);
        let paused = FleetLimits {
            paused: Some("paused by ana".into()),
            ..FleetLimits::default()
        };
        governor.hear(paused, None);
        assert!(!may_enter(&governor).await);
        assert_eq!(governor.worth_having(), 0);
        assert_eq!(
            governor.bound(),
            Some(Bound::Paused("paused by ana".into()))
        );
        governor.hear(FleetLimits::default(), None);
        assert!(may_enter(&governor).await);
        assert_eq!(governor.bound(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_hears_of_the_end_of_a_pause() {
        let paused = FleetLimits {
            paused: Some("paused by ana".into()),
            ..FleetLimits::default()
        };
        let governor = Arc::new(Governor::new(4, DatabaseLimits::default(), paused));
        let waiting = {
            let governor = Arc::clone(&governor);
            tokio::spawn(async move { drop(governor.enter().await) })
        };
        advance(Duration::from_hours(1)).await;
        assert!(!waiting.is_finished());
        governor.hear(FleetLimits::default(), None);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn copies_in_flight_are_bounded_by_the_share() {
        let governor = Governor::new(64, DatabaseLimits::default(), limited(Some(2), None));
        let (first, second) = (governor.enter().await, governor.enter().await);
        assert!(!may_enter(&governor).await);
        drop(first);
        assert!(may_enter(&governor).await);
        drop(second);
        governor.hear(limited(Some(0), None), None);
        assert_eq!(governor.worth_having(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_and_a_faster_one_takes_effect_at_once() {
        let governor = Governor::new(64, DatabaseLimits::default(), limited(None, Some(100.0)));
        let began = Instant::now();
        for _ in 0..201 {
            drop(governor.enter().await);
        }
        let took = began.elapsed().as_secs_f64();
        assert!((1.9..2.1).contains(&took), "{took}");
        governor.hear(limited(None, Some(0.001)), None);
        drop(governor.enter().await);
        governor.hear(limited(None, Some(100.0)), None);
        assert!(
            timeout(Duration::from_millis(20), governor.enter())
                .await
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_commits_slow_the_copies_and_fast_ones_let_them_grow_again() {
        let governor = Governor::new(64, slow_above(100), FleetLimits::default());
        governor.committed(Duration::from_millis(50));
        assert_eq!(governor.bound(), None);
        for _ in 0..20 {
            governor.committed(Duration::from_millis(400));
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(governor.now().0, 1);
        assert!(matches!(governor.bound(), Some(Bound::Database(_))));
        let mut seconds = 0;
        while governor.bound().is_some() {
            advance(Duration::from_secs(1)).await;
            governor.committed(Duration::from_millis(20));
            governor.hear(FleetLimits::default(), None);
            seconds += 1;
            assert!(seconds < 60);
        }
        assert_eq!(governor.now().0, 64);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_starts_for_a_moment_after_a_slow_commit() {
        let governor = Governor::new(64, slow_above(100), FleetLimits::default());
        governor.committed(Duration::from_millis(400));
        assert!(!may_enter(&governor).await);
        advance(Duration::from_millis(800)).await;
        assert!(may_enter(&governor).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lagging_replica_stops_the_copies_until_it_has_caught_up() {
        let governor = Governor::new(64, slow_above(100), FleetLimits::default());
        governor.hear(FleetLimits::default(), Some(Duration::from_secs(6)));
        assert!(!may_enter(&governor).await);
        assert_eq!(governor.worth_having(), 0);
        governor.hear(FleetLimits::default(), Some(Duration::from_secs(1)));
        assert!(may_enter(&governor).await);
    }
}
