//! How a process says what it is doing, and hears what the whole fleet was told: once a second, in one
//! statement that costs the same however large the migration is.

use std::time::Duration;

use async_trait::async_trait;

use crate::catalog::CatalogError;

/// How often a process says that it is alive, and hears what it may do.
pub const BEAT: Duration = Duration::from_secs(1);

/// Who has not said anything for so long is dead: three missed beats and a slow statement.
pub const ALIVE: Duration = Duration::from_secs(10);

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It sends rows to the queue.
    Feeder,
    /// It moves them.
    Consumer,
}

impl Role {
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
pub struct Beat {
    /// What it is.
    pub role: Role,
    /// What it is doing, in one or a few words.
    pub state: &'static str,
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

/// What an operator told the fleet, and what of it falls to this process.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Orders {
    /// Who paused the run, and why; none while it is not paused.
    pub paused: Option<String>,
    /// Rows per second at most, in the whole fleet.
    pub rate: Option<f64>,
    /// Copies in flight at most, in the whole fleet.
    pub concurrency: Option<u64>,
    /// Consumers alive besides this process, and how many of them come before it in the order of names.
    pub others: u64,
    /// See [`Self::others`].
    pub before: u64,
}

impl Orders {
    /// This consumer's part of the rate.
    pub fn share_of_rate(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a number of processes")]
        let consumers = (self.others + 1) as f64;
        Some(self.rate? / consumers)
    }

    /// This consumer's part of the copies in flight. What does not divide evenly falls to those who come
    /// first, so that the parts add up to the whole.
    pub fn share_of_concurrency(&self) -> Option<u64> {
        let (all, consumers) = (self.concurrency?, self.others + 1);
        Some(all / consumers + u64::from(self.before < all % consumers))
    }
}

/// Who is told, and tells.
#[async_trait]
pub trait Control: Send + Sync {
    /// Says what this process is doing, and hears what it may do.
    async fn beat(&self, beat: &Beat) -> Result<Orders, CatalogError>;

    /// Says that this process ends in good order.
    async fn leave(&self) -> Result<(), CatalogError>;

    /// How far the slowest replica is behind; none without replicas.
    async fn replica_lag(&self) -> Result<Option<Duration>, CatalogError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_limit() {
        for (all, consumers) in [(1, 3), (7, 3), (64, 1), (10, 10), (0, 2)] {
            let share = |before| {
                let orders = Orders {
                    concurrency: Some(all),
                    rate: Some(30.0),
                    others: consumers - 1,
                    before,
                    paused: None,
                };
                orders.share_of_concurrency().unwrap()
            };
            assert_eq!((0..consumers).map(share).sum::<u64>(), all);
        }
    }

    #[test]
    fn without_limits_there_are_no_shares() {
        let orders = Orders::default();
        assert_eq!(orders.share_of_rate(), None);
        assert_eq!(orders.share_of_concurrency(), None);
    }
}
