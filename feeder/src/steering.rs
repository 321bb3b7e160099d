//! What the feeder is told while it feeds: an operator's orders, and whether the database is slow.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket_brigade_common::fleet_control::{
    FleetControl, FleetLimits, HEARTBEAT_INTERVAL, Heartbeat, WorkerRole,
};
use bucket_brigade_common::move_ledger::StatementError;
use bucket_brigade_common::settings::DatabaseLimits;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::progress::FeederProgress;

/// The longest the feeding rests after a slow statement.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The phase of a paused feeder.
pub const PAUSED: &str = "paused by an operator";

/// The phase of a feeder that spares the database.
pub const DATABASE_SLOW: &str = "database slow";

#[derive(Debug, Default)]
struct Told {
    paused: Option<String>,
    lag: Option<Duration>,
    rest_until: Option<Instant>,
    write: Option<Duration>,
}

/// What holds the feeder back, as of the last second.
#[derive(Debug, Default)]
pub struct Steering {
    limits: DatabaseLimits,
    told: Mutex<Told>,
}

impl Steering {
    /// With these limits, and no orders yet.
    pub fn new(limits: DatabaseLimits) -> Self {
        Self {
            limits,
            told: Mutex::default(),
        }
    }

    /// The orders of the run, and how far the slowest replica is behind.
    pub fn hear(&self, orders: FleetLimits, lag: Option<Duration>) {
        let mut told = self.lock();
        told.paused = orders.paused;
        told.lag = lag;
    }

    /// A write took so long.
    pub fn wrote(&self, took: Duration) {
        let mut told = self.lock();
        told.write = Some(took);
        if self.limits.commit_latency.is_some_and(|most| took > most) {
            told.rest_until = Some(Instant::now() + (took * 2).min(LONGEST_REST));
        }
    }

    /// What keeps the feeder from going on, as a phase and its reason.
    pub fn held(&self) -> Option<(&'static str, String)> {
        let told = self.lock();
        if let Some(paused) = &told.paused {
            return Some((PAUSED, paused.clone()));
        }
        match (told.lag, self.limits.replica_lag) {
            (Some(lag), Some(most)) if lag > most => {
                let lag = lag.as_secs_f64();
                let why = format!("a replica is {lag:.1} s behind, MAX_REPLICA_LAG is {most:?}");
                return Some((DATABASE_SLOW, why));
            }
            _ => {}
        }
        let is_resting = told.rest_until.is_some_and(|until| until > Instant::now());
        is_resting.then(|| {
            let took = told.write.unwrap_or_default();
            let most = self.limits.commit_latency.unwrap_or_default();
            let why = format!("a commit took {took:.0?}, MAX_COMMIT_LATENCY is {most:?}");
            (DATABASE_SLOW, why)
        })
    }

    /// Says each second what the feeder does, and hears what it may do, for as long as it is polled.
    /// While the database does not answer, the last orders stand.
    pub async fn beat_forever(&self, control: &dyn FleetControl, progress: &FeederProgress) {
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.beat_once(control, progress).await;
        }
    }

    /// One beat: also before the first row is fed.
    pub async fn beat_once(&self, control: &dyn FleetControl, progress: &FeederProgress) {
        match self.exchange(control, progress).await {
            Ok((orders, lag)) => self.hear(orders, lag),
            Err(error) => tracing::debug!(%error, "no sign of life could be given"),
        }
    }

    async fn exchange(
        &self,
        control: &dyn FleetControl,
        progress: &FeederProgress,
    ) -> Result<(FleetLimits, Option<Duration>), StatementError> {
        let orders = control.heartbeat(&self.beat(progress)).await?;
        let lag = match self.limits.replica_lag {
            Some(_) => control.replica_lag().await?,
            None => None,
        };
        Ok((orders, lag))
    }

    fn beat(&self, progress: &FeederProgress) -> Heartbeat {
        let (state, reason) = self.state(progress);
        Heartbeat {
            role: WorkerRole::Feeder,
            state,
            reason,
            concurrency: 0,
            in_hand: 0,
            moved_per_second: 0.0,
            commit_seconds: self.lock().write.map(|took| took.as_secs_f64()),
        }
    }

    fn state(&self, progress: &FeederProgress) -> (&'static str, String) {
        if let Some(trouble) = progress.health().trouble() {
            return ("waiting", trouble);
        }
        match (self.held(), progress.current_phase()) {
            (Some((PAUSED, why)), _) => ("paused", why),
            (Some((phase, why)), _) => (phase, why),
            (None, "") => ("starting", String::new()),
            (None, phase) => (phase, String::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Nothing that can panic runs under this lock.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_slow_write_is_rested_after_and_a_lagging_replica_waited_for() {
        let steering = Steering::new(DatabaseLimits {
            commit_latency: Some(Duration::from_millis(100)),
            replica_lag: Some(Duration::from_secs(5)),
        });
        steering.wrote(Duration::from_millis(90));
        assert_eq!(steering.held(), None);
        steering.wrote(Duration::from_millis(300));
        let (phase, why) = steering.held().unwrap();
        assert_eq!(phase, DATABASE_SLOW);
        assert_eq!(why, "a commit took 300ms, MAX_COMMIT_LATENCY is 100ms");
        advance(Duration::from_millis(601)).await;
        assert_eq!(steering.held(), None);
        steering.hear(FleetLimits::default(), Some(Duration::from_secs(6)));
        assert!(steering.held().is_some());
        steering.hear(FleetLimits::default(), None);
        assert_eq!(steering.held(), None);
    }

    #[test]
    fn an_operators_pause_is_told_first() {
        let steering = Steering::default();
        let orders = FleetLimits {
            paused: Some("paused by ana".into()),
            ..FleetLimits::default()
        };
        steering.hear(orders, None);
        assert_eq!(steering.held(), Some((PAUSED, "paused by ana".into())));
    }
}
