//! What a throttle knows, and whether the next may start.

use std::time::Duration;

use tokio::time::Instant;

use super::CopySubject;
use super::commit_latency::CommitLatency;
use super::key_ranges::KeyRanges;
use super::rate_limiter::{RateLimiter, truncate};
use super::reason::ThrottleReason;
use crate::ledger::fleet_control::FleetLimits;
use crate::queue::MAX_BATCH_ENTRIES;
use crate::settings::DatabaseLimits;

/// What of a rate that was not used may be made up for: a timer wakes a millisecond late, a send takes a
/// part of a second.
pub(super) const COPIES_CATCH_UP: Duration = Duration::from_millis(20);
const ROWS_CATCH_UP: Duration = Duration::from_secs(1);

/// Processes that started together must not go on asking at the same moments: a copy counts for so much.
pub(super) const JITTER: (f64, f64) = (0.8, 1.2);

/// How many seconds' worth of copies, commits and deletes included, and how many messages at least, a
/// throttled process has in hand: two polls' worth.
pub(super) const IN_HAND_SECONDS: f64 = 3.0;
const MIN_IN_HAND: usize = 20;

/// Whether the next may start; if not, when to ask again: at a time, or when something changes.
pub(super) type Attempt<T> = Result<T, Option<Instant>>;

#[derive(Debug)]
pub(super) struct ThrottleState {
    pub(super) database: DatabaseLimits,
    pub(super) limits: FleetLimits,
    lag: Option<Duration>,
    /// Why this process starts nothing, whatever the fleet does.
    pub(super) hold: Option<String>,
    limiter: RateLimiter,
    pub(super) commits: CommitLatency,
    /// Copies have a store and are counted, rows have none.
    pub(super) copies: Option<CopyState>,
}

#[derive(Debug)]
pub(super) struct CopyState {
    max: usize,
    pub(super) in_flight: usize,
    pub(super) ranges: KeyRanges,
}

impl ThrottleState {
    pub(super) fn for_copies(max: usize, database: DatabaseLimits, now: Instant) -> Self {
        let limiter = RateLimiter::new(JITTER.1, COPIES_CATCH_UP, now);
        let copies = CopyState {
            max,
            in_flight: 0,
            ranges: KeyRanges::new(now),
        };
        Self::new(database, limiter, Some(copies))
    }

    pub(super) fn for_rows(database: DatabaseLimits, now: Instant) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "ten")]
        let batch = MAX_BATCH_ENTRIES as f64;
        Self::new(database, RateLimiter::new(batch, ROWS_CATCH_UP, now), None)
    }

    fn new(database: DatabaseLimits, limiter: RateLimiter, copies: Option<CopyState>) -> Self {
        Self {
            database,
            limits: FleetLimits::default(),
            lag: None,
            hold: None,
            limiter,
            commits: CommitLatency::new(database.commit_latency),
            copies,
        }
    }

    pub(super) fn set_limits(&mut self, limits: FleetLimits, now: Instant) {
        self.limits = limits;
        if let Some(copies) = &mut self.copies {
            self.commits.recover(copies.max, now);
            copies.ranges.merge(now);
        }
    }

    pub(super) fn set_replica_lag(&mut self, lag: Option<Duration>) {
        let lagged = self.replica_lag();
        self.lag = lag;
        match (lagged, self.replica_lag()) {
            (None, Some(reason)) => tracing::warn!("{reason}: nothing new is started"),
            (Some(_), None) => tracing::info!("replicas have caught up: going on"),
            _ => {}
        }
    }

    pub(super) fn record_commit(&mut self, took: Duration, now: Instant) {
        let max_copies = self.copies.as_ref().map(|copies| copies.max);
        self.commits.record(took, max_copies, now);
    }

    /// Whether anything may start at all.
    pub(super) fn check_held(&self, now: Instant) -> Attempt<()> {
        if self.is_held() {
            return Err(None);
        }
        match self.commits.rest(now) {
            Some((until, _)) => Err(Some(until)),
            None => Ok(()),
        }
    }

    /// Whether a copy that waited at this gate may start, and would be the one that goes first after a refusal. None
    /// where it is to wait at another.
    pub(super) fn check_copy(
        &mut self,
        key: &str,
        subject: CopySubject,
        gate: usize,
        now: Instant,
    ) -> Attempt<Option<bool>> {
        self.check_held(now)?;
        let max_in_flight = self.max_in_flight();
        let Some(copies) = &mut self.copies else {
            return Ok(Some(false));
        };
        let range = copies.ranges.of(key);
        if range.gate != gate {
            return Ok(None);
        }
        if copies.in_flight >= max_in_flight {
            return Err(None);
        }
        range.store_rate.skip_idle_time(now);
        let is_probe = range.store_rate.check_hold(now).map_err(Some)?;
        let per_second = range.store_rate.per_second(now);
        range.limiter.set_rate(Some(per_second), now);
        check_rate(&range.limiter, now)?;
        // The fleet's limit is of rows.
        if subject == CopySubject::Image {
            self.limiter.set_rate(self.limits.rate_share(), now);
            check_rate(&self.limiter, now)?;
        }
        Ok(Some(is_probe))
    }

    /// The same, and starts it.
    pub(super) fn start_copy(
        &mut self,
        key: &str,
        subject: CopySubject,
        gate: usize,
        now: Instant,
    ) -> Attempt<Option<bool>> {
        let checked = self.check_copy(key, subject, gate, now)?;
        if let (Some(is_probe), Some(copies)) = (checked, &mut self.copies) {
            let (least, most) = JITTER;
            let amount = least + (most - least) * fastrand::f64();
            if subject == CopySubject::Image {
                self.limiter.record(amount, now);
            }
            let range = copies.ranges.of(key);
            range.limiter.record(amount, now);
            range.store_rate.record_start(is_probe, now);
            copies.in_flight += 1;
        }
        Ok(checked)
    }

    /// Starts up to so many rows; how many.
    pub(super) fn start_rows(&mut self, rows: usize, now: Instant) -> Attempt<usize> {
        self.check_held(now)?;
        self.limiter.set_rate(self.limits.rate, now);
        check_rate(&self.limiter, now)?;
        let rows = rows.min(self.limiter.burst_size());
        let amount = f64::from(u32::try_from(rows).unwrap_or(u32::MAX));
        self.limiter.record(amount, now);
        Ok(rows)
    }

    /// What holds work back, the weightiest first.
    pub(super) fn reasons(&self, now: Instant) -> Vec<ThrottleReason> {
        let paused = self.limits.paused.clone().map(ThrottleReason::Paused);
        let reasons = [
            paused,
            self.held(),
            self.replica_lag(),
            self.slow_commits(now),
            self.store_rate_reason(now),
            self.fleet_limit(),
        ];
        reasons.into_iter().flatten().collect()
    }

    fn is_held(&self) -> bool {
        self.limits.paused.is_some() || self.held().is_some() || self.replica_lag().is_some()
    }

    fn held(&self) -> Option<ThrottleReason> {
        let held = self.hold.as_ref().or(self.limits.held.as_ref());
        held.cloned().map(ThrottleReason::Held)
    }

    fn replica_lag(&self) -> Option<ThrottleReason> {
        let (lag, max) = (self.lag?, self.database.replica_lag?);
        (lag > max).then_some(ThrottleReason::ReplicaLag { lag, max })
    }

    fn slow_commits(&self, now: Instant) -> Option<ThrottleReason> {
        let max = self.database.commit_latency?;
        let allowance = self.commits.allowance().map(truncate);
        let commit = match (allowance, self.commits.rest(now)) {
            (Some(_), _) => self.commits.average()?,
            (None, Some((_, took))) => took,
            (None, None) => return None,
        };
        Some(ThrottleReason::SlowCommits {
            commit,
            max,
            allowance,
        })
    }

    fn store_rate_reason(&self, now: Instant) -> Option<ThrottleReason> {
        let per_second = self.copies.as_ref()?.ranges.throttled_rate(now)?;
        Some(ThrottleReason::StoreRate { per_second })
    }

    fn fleet_limit(&self) -> Option<ThrottleReason> {
        let (per_second, concurrency) = match self.copies {
            Some(_) => (self.limits.rate_share(), self.limits.concurrency_share()),
            None => (self.limits.rate, None),
        };
        (per_second.is_some() || concurrency.is_some()).then_some(ThrottleReason::FleetLimit {
            per_second,
            concurrency,
        })
    }

    /// Whether the limits leave nothing at all to this process, while others go on; or the run is another one by now.
    pub(super) fn is_excluded(&self) -> bool {
        let has_no_share = self.limits.concurrency_share() == Some(0);
        self.limits.is_gone || (self.limits.paused.is_none() && has_no_share)
    }

    /// Copies that process, operator and database allow in flight.
    fn max_in_flight(&self) -> usize {
        let share = self.limits.concurrency_share();
        let share = share.and_then(|share| usize::try_from(share).ok());
        let limits = [
            self.copies.as_ref().map(|copies| copies.max),
            share,
            self.commits.allowance().map(truncate),
        ];
        limits.into_iter().flatten().min().unwrap_or(usize::MAX)
    }

    /// Copies that may be in flight at the moment.
    pub(super) fn concurrency(&self) -> usize {
        if self.is_held() {
            return 0;
        }
        self.max_in_flight()
    }

    /// How many messages it makes sense to have in hand: none beyond what this process can copy soon.
    /// Others may be allowed more.
    pub(super) fn max_in_hand(&self, now: Instant) -> usize {
        let concurrency = self.concurrency();
        let Some(copies) = &self.copies else {
            return usize::MAX;
        };
        let rates = [self.limits.rate_share(), copies.ranges.limit(now)];
        let by_rate = rates
            .into_iter()
            .flatten()
            .map(|rate| truncate(rate * IN_HAND_SECONDS).max(MIN_IN_HAND))
            .min()
            .unwrap_or(usize::MAX);
        match concurrency {
            0 => 0,
            most if most == copies.max => by_rate,
            most => by_rate.min(2 * most + MIN_IN_HAND),
        }
    }
}

fn check_rate(limiter: &RateLimiter, now: Instant) -> Attempt<()> {
    match limiter.next_due(now) {
        Some(due) => Err(Some(due)),
        None => Ok(()),
    }
}
