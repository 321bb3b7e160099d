//! Heartbeats: how a process reports its state and learns the fleet's limits, once a second, in one
//! statement that costs the same however large the migration is.

use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;

use crate::ledger::move_ledger::StatementError;
use crate::ledger::unreadable::plain_text;
use crate::ledger::worker_state::WorkerState;

pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerRole {
    Feeder,
    Consumer,
    /// An operator's command, by its name.
    Command(&'static str),
}

impl WorkerRole {
    /// Its name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Feeder => "feeder",
            Self::Consumer => "consumer",
            Self::Command(name) => name,
        }
    }
}

/// The state of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    pub role: WorkerRole,
    pub state: WorkerState,
    /// Empty where the state says it all.
    pub reason: String,
    /// Copies it may have in flight at the moment.
    pub concurrency: u64,
    pub in_hand: u64,
    /// Rows it moved per second over the last minute.
    pub moved_per_second: f64,
    /// How long its last commits took, in seconds.
    pub commit_seconds: Option<f64>,
    /// A feeder's: why nothing in the fleet may start.
    pub held: Option<String>,
}

impl Heartbeat {
    /// As every encoding of a database holds it.
    #[must_use]
    pub fn in_ascii(&self) -> Self {
        Self {
            reason: plain_text(&self.reason),
            held: self.held.as_deref().map(plain_text),
            ..self.clone()
        }
    }

    pub fn starting(role: WorkerRole) -> Self {
        Self {
            role,
            state: WorkerState::Starting,
            reason: String::new(),
            concurrency: 0,
            in_hand: 0,
            moved_per_second: 0.0,
            commit_seconds: None,
            held: None,
        }
    }
}

/// The limits that an operator set for the fleet, and what this process needs for its share of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FleetLimits {
    /// Who paused the run, and why; none while it is not paused.
    pub paused: Option<String>,
    /// What the feeder has found to hold the fleet.
    pub held: Option<String>,
    /// Rows per second at most, in the whole fleet.
    pub rate: Option<f64>,
    /// Copies in flight at most, in the whole fleet.
    pub concurrency: Option<u64>,
    /// Consumers alive besides this process, and how many of them come before it in the order of names.
    pub other_consumers: u64,
    pub preceding_consumers: u64,
    /// Of the others, those that the store, the database, an outage or an operator holds back.
    pub held_back_consumers: u64,
    /// Whether the ledger has this run no more, though it may have another of its number.
    pub is_gone: bool,
}

/// Rows per second and copies in flight, as people read them; none where nothing is limited.
pub fn format_limits(rate: Option<f64>, concurrency: Option<impl Display>) -> Option<String> {
    let rate = rate.map(|rate| format!("{rate} rows per second"));
    let concurrency = concurrency.map(|most| format!("{most} copies in flight"));
    let words: Vec<String> = [rate, concurrency].into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(", "))
}

impl FleetLimits {
    pub fn of_gone_run() -> Self {
        Self {
            paused: Some("the ledger does not have this run any more".into()),
            is_gone: true,
            ..Self::default()
        }
    }

    /// This consumer's part of the rate.
    pub fn rate_share(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a number of processes")]
        let consumers = (self.other_consumers + 1) as f64;
        Some(self.rate? / consumers)
    }

    /// This consumer's part of the copies in flight. What does not divide evenly falls to the first
    /// in the order of names, so that the parts add up to the whole.
    pub fn concurrency_share(&self) -> Option<u64> {
        let (all, consumers) = (self.concurrency?, self.other_consumers + 1);
        Some(all / consumers + u64::from(self.preceding_consumers < all % consumers))
    }
}

#[async_trait]
pub trait FleetControl: Send + Sync {
    /// Records this process's state and returns the fleet's limits.
    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<FleetLimits, StatementError>;

    /// Removes this process, which ends in good order, from the list.
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
                let limits = FleetLimits {
                    concurrency: Some(all),
                    rate: Some(30.0),
                    other_consumers: consumers - 1,
                    preceding_consumers: before,
                    ..FleetLimits::default()
                };
                limits.concurrency_share().unwrap()
            };
            assert_eq!((0..consumers).map(share).sum::<u64>(), all);
        }
        let none = FleetLimits::default();
        assert_eq!((none.rate_share(), none.concurrency_share()), (None, None));
    }
}
