//! How a process says what it is doing, and hears what the whole fleet was told: once a second, in one
//! statement that costs the same however large the migration is.

use std::time::Duration;

use async_trait::async_trait;

use crate::move_ledger::StatementError;
use crate::worker_state::WorkerState;

/// How often a process says that it is alive, and hears what it may do.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Who has not said anything for so long is dead: three missed beats and a slow statement.
pub const WORKER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerRole {
    /// It sends rows to the queue.
    Feeder,
    /// It moves them.
    Consumer,
}

impl WorkerRole {
    /// Its name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Feeder => "feeder",
            Self::Consumer => "consumer",
        }
    }
}

/// What a process says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// What it is.
    pub role: WorkerRole,
    pub state: WorkerState,
    /// Why, where that is worth a word.
    pub reason: String,
    /// Copies it may have in flight at the moment.
    pub concurrency: u64,
    /// Messages it holds.
    pub in_hand: u64,
    /// Rows it moved per second over the last minute.
    pub moved_per_second: f64,
    /// How long its last commits took, in seconds.
    pub commit_seconds: Option<f64>,
}

impl Heartbeat {
    pub fn starting(role: WorkerRole) -> Self {
        Self {
            role,
            state: WorkerState::Starting,
            reason: String::new(),
            concurrency: 0,
            in_hand: 0,
            moved_per_second: 0.0,
            commit_seconds: None,
        }
    }
}

/// What an operator told the fleet, and what of it falls to this process.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FleetLimits {
    /// Who paused the run, and why; none while it is not paused.
    pub paused: Option<String>,
    /// Rows per second at most, in the whole fleet.
    pub rate: Option<f64>,
    /// Copies in flight at most, in the whole fleet.
    pub concurrency: Option<u64>,
    /// Consumers alive besides this process, and how many of them come before it in the order of names.
    pub other_consumers: u64,
    /// See [`Self::others`].
    pub preceding_consumers: u64,
}

impl FleetLimits {
    /// This consumer's part of the rate.
    pub fn rate_share(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a number of processes")]
        let consumers = (self.other_consumers + 1) as f64;
        Some(self.rate? / consumers)
    }

    /// This consumer's part of the copies in flight. What does not divide evenly falls to those who come
    /// first, so that the parts add up to the whole.
    pub fn concurrency_share(&self) -> Option<u64> {
        let (all, consumers) = (self.concurrency?, self.other_consumers + 1);
        Some(all / consumers + u64::from(self.preceding_consumers < all % consumers))
    }
}

/// Who is told, and tells.
#[async_trait]
pub trait FleetControl: Send + Sync {
    /// Says what this process is doing, and hears what it may do.
    async fn heartbeat(&self, beat: &Heartbeat) -> Result<FleetLimits, StatementError>;

    /// Says that this process ends in good order.
    async fn deregister(&self) -> Result<(), StatementError>;

    /// How far the slowest replica is behind; none without replicas.
    async fn replica_lag(&self) -> Result<Option<Duration>, StatementError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_limit() {
        for (all, consumers) in [(1, 3), (7, 3), (64, 1), (10, 10), (0, 2)] {
            let share = |before| {
                let orders = FleetLimits {
                    concurrency: Some(all),
                    rate: Some(30.0),
                    other_consumers: consumers - 1,
                    preceding_consumers: before,
                    paused: None,
                };
                orders.concurrency_share().unwrap()
            };
            assert_eq!((0..consumers).map(share).sum::<u64>(), all);
        }
    }

    #[test]
    fn without_limits_there_are_no_shares() {
        let orders = FleetLimits::default();
        assert_eq!(orders.rate_share(), None);
        assert_eq!(orders.concurrency_share(), None);
    }
}
