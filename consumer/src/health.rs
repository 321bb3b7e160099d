//! Outages: what everybody depends on is down. Said once, receives stop, and the work goes on by
//! itself when it is over. What is in hand stays in hand, so no receive count is used up.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::sleep;

use bucket_brigade_common::backoff::Backoff;

/// What a consumer cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    /// Postgres.
    Database,
    /// S3.
    Objects,
    /// SQS.
    Queue,
}

const ALL: [Dependency; 3] = [Dependency::Database, Dependency::Objects, Dependency::Queue];

impl Dependency {
    fn name(self) -> &'static str {
        match self {
            Self::Database => "the database",
            Self::Objects => "S3",
            Self::Queue => "the queue",
        }
    }

    /// What to do, where whoever notes the outage does not know better.
    fn advice(self) -> &'static str {
        match self {
            Self::Database => {
                "; check the database, DATABASE_URL or PGHOST, PGUSER, …, and the network"
            }
            Self::Objects | Self::Queue => "",
        }
    }
}

/// Waits between probes of something that is down.
pub const PROBE: Backoff = Backoff {
    initial_delay: std::time::Duration::from_millis(500),
    max_delay: std::time::Duration::from_secs(30),
};

/// Which dependencies are down, and why.
#[derive(Debug, Clone)]
pub struct Health {
    reasons: Arc<watch::Sender<[Option<String>; 3]>>,
    // Only one at a time probes S3: a thousand tries a second heal nothing.
    probing: Arc<Mutex<u32>>,
}

/// A place at the front of the queue of those who wait for S3; its holder makes the next try.
#[derive(Debug)]
pub struct Turn<'a>(Option<MutexGuard<'a, u32>>);

impl Default for Health {
    fn default() -> Self {
        Self {
            reasons: Arc::new(watch::Sender::new([None, None, None])),
            probing: Arc::new(Mutex::new(0)),
        }
    }
}

impl Health {
    /// Notes that a dependency is down; logs it once per outage.
    pub fn down(&self, dependency: Dependency, reason: &str) {
        self.reasons.send_if_modified(|reasons| {
            let slot = &mut reasons[dependency as usize];
            if slot.is_some() {
                return false;
            }
            let reason = format!("{reason}{}", dependency.advice());
            tracing::error!(
                reason,
                "{} cannot be used: receiving stops until it can; what is in hand is kept",
                dependency.name()
            );
            *slot = Some(reason);
            true
        });
    }

    /// Notes that a dependency works.
    pub fn up(&self, dependency: Dependency) {
        self.reasons.send_if_modified(|reasons| {
            let was_down = reasons[dependency as usize].take().is_some();
            if was_down {
                tracing::info!("{} can be used again: going on", dependency.name());
            }
            was_down
        });
    }

    /// Whether a dependency is believed to work.
    pub fn is_up(&self, dependency: Dependency) -> bool {
        self.reasons.borrow()[dependency as usize].is_none()
    }

    /// Why nothing is received at the moment; none when all is well.
    pub fn outage(&self) -> Option<String> {
        let reasons = self.reasons.borrow();
        ALL.into_iter().find_map(|dependency| {
            let reason = reasons[dependency as usize].as_ref()?;
            Some(format!("{}: {reason}", dependency.name()))
        })
    }

    /// Waits until the dependencies other than the queue work; the queue is probed by receiving.
    pub async fn ready_to_receive(&self) {
        let mut reasons = self.reasons.subscribe();
        let up = |reasons: &[Option<String>; 3]| {
            reasons[Dependency::Database as usize].is_none()
                && reasons[Dependency::Objects as usize].is_none()
        };
        // The sender lives as long as this value: waiting cannot fail.
        drop(reasons.wait_for(up).await);
    }

    /// Passes at once while S3 works. While it does not, waits for a turn and for the time of the next
    /// probe; whoever gets the turn makes that probe with its own work.
    pub async fn turn(&self) -> Turn<'_> {
        if self.is_up(Dependency::Objects) {
            return Turn(None);
        }
        let mut tries = self.probing.lock().await;
        if self.is_up(Dependency::Objects) {
            *tries = 0;
            return Turn(None);
        }
        *tries += 1;
        sleep(PROBE.jittered_delay(*tries, fastrand::f64())).await;
        Turn(Some(tries))
    }
}

impl Turn<'_> {
    /// Whether this try is a probe of something that is down.
    pub fn is_probe(&self) -> bool {
        self.0.is_some()
    }
}
