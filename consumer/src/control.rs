//! The consumer's second hand: each second it says what it is doing, and hears what it may do.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::fleet_control::{
    FleetControl, FleetLimits, HEARTBEAT_INTERVAL, Heartbeat, WorkerRole,
};
use bucket_brigade_common::move_ledger::StatementError;
use bucket_brigade_common::rate_meter::RateMeter;
use bucket_brigade_common::settings::DatabaseLimits;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::governor::Bound;
use crate::handle::Stages;
use crate::health::Health;
use crate::lease::Leases;

/// How long after S3 throttled a request the process counts as throttled.
const THROTTLED_FOR: Duration = Duration::from_secs(10);

/// What a consumer says and hears.
pub struct Steering {
    /// Who is told, and tells.
    pub control: Arc<dyn FleetControl>,
    /// What was heard before the first message was taken.
    pub orders: FleetLimits,
    /// When the database counts as slow.
    pub limits: DatabaseLimits,
}

/// What a beat is made from.
pub(crate) struct Pulse<'a> {
    pub(crate) stages: &'a Stages,
    pub(crate) leases: &'a Leases,
    pub(crate) health: &'a Health,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) limits: DatabaseLimits,
}

/// What a consumer that has not begun says.
pub fn starting() -> Heartbeat {
    Heartbeat {
        role: WorkerRole::Consumer,
        state: "starting",
        reason: String::new(),
        concurrency: 0,
        in_hand: 0,
        moved_per_second: 0.0,
        commit_seconds: None,
    }
}

impl Pulse<'_> {
    /// Beats for as long as it is polled. While the database does not answer, the last orders stand.
    pub(crate) async fn beat_forever(&self, control: &dyn FleetControl) {
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut memory = Memory::default();
        loop {
            ticks.tick().await;
            let beat = self.beat(&mut memory);
            let heard = async {
                let orders = control.heartbeat(&beat).await?;
                let lag = match self.limits.replica_lag {
                    Some(_) => control.replica_lag().await?,
                    None => None,
                };
                Ok::<_, StatementError>((orders, lag))
            };
            match heard.await {
                Ok((orders, lag)) => self.stages.copy.governor().hear(orders, lag),
                Err(error) => tracing::debug!(%error, "no sign of life could be given"),
            }
        }
    }

    fn beat(&self, memory: &mut Memory) -> Heartbeat {
        let counts = self.stages.tally.counts();
        let now = Instant::now();
        let moved_per_second = memory.moved.record_count(now, counts.moved);
        let throttled = memory.is_throttled(now, counts.throttled);
        let in_hand = u64::try_from(self.leases.held_count()).unwrap_or(u64::MAX);
        let (most, commit) = self.stages.copy.governor().now();
        let (state, reason) = self.state(throttled, in_hand);
        Heartbeat {
            role: WorkerRole::Consumer,
            state,
            reason,
            concurrency: u64::try_from(most).unwrap_or(u64::MAX),
            in_hand,
            moved_per_second,
            commit_seconds: commit.map(|took| took.as_secs_f64()),
        }
    }

    fn state(&self, throttled: bool, in_hand: u64) -> (&'static str, String) {
        if self.stop.is_cancelled() {
            return ("stopping", String::new());
        }
        if let Some(outage) = self.health.outage() {
            return ("waiting", outage);
        }
        match self.stages.copy.governor().bound() {
            Some(Bound::Paused(by)) => return ("paused", by),
            Some(Bound::Database(why)) => return ("database slow", why),
            Some(Bound::Limited(_)) | None if in_hand == 0 => {
                return ("nothing to do", String::new());
            }
            _ if throttled => {}
            Some(Bound::Limited(to)) => return ("running", format!("limited to {to}")),
            None => return ("running", String::new()),
        }
        let (_, rate) = self.stages.copy.pace().now();
        let rate = rate.map_or(String::new(), |rate| format!("{rate:.0} copies per second"));
        ("throttled by S3", rate)
    }
}

/// What was before.
#[derive(Default)]
struct Memory {
    moved: RateMeter,
    throttled: u64,
    throttled_at: Option<Instant>,
}

impl Memory {
    fn is_throttled(&mut self, now: Instant, throttled: u64) -> bool {
        if throttled > self.throttled {
            self.throttled = throttled;
            self.throttled_at = Some(now);
        }
        self.throttled_at
            .is_some_and(|then| now - then < THROTTLED_FOR)
    }
}
