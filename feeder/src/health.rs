//! Outages: what the feeder depends on is down. Said once, told to whoever asks, and over by itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// What the feeder cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    /// Postgres.
    Database,
    /// SQS.
    Queue,
}

const ALL: [Dependency; 2] = [Dependency::Database, Dependency::Queue];

impl Dependency {
    fn name(self) -> &'static str {
        match self {
            Self::Database => "the database",
            Self::Queue => "the queue",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Database => {
                "check the database, DATABASE_URL or PGHOST, PGUSER, …, and the network"
            }
            Self::Queue => {
                "check QUEUE_URL, the queue, and the feeder's policy: sqs:SendMessage, sqs:GetQueueAttributes"
            }
        }
    }

    /// Tries of one call before the dependency counts as down: a deadlock, a cut connection or a
    /// throttled batch is not worth a word. A call to a dead database fails only after seconds.
    fn blinks(self) -> u32 {
        match self {
            Self::Database => 1,
            Self::Queue => 2,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    trouble: Option<String>,
    answered: Option<Instant>,
}

/// Which dependencies are down, and why.
#[derive(Debug, Default)]
pub struct Health(Mutex<[State; 2]>);

impl Health {
    /// A call that began at `began` failed for the `tries`th time in a row; logs it once per outage.
    pub fn failed(&self, dependency: Dependency, began: Instant, tries: u32, reason: &str) {
        let mut states = self.lock();
        let state = &mut states[dependency as usize];
        // Another call may have been answered since: the outage is over, and this is its last echo.
        let is_over = state.answered.is_some_and(|answered| answered >= began);
        if tries <= dependency.blinks() || is_over || state.trouble.is_some() {
            return;
        }
        let (name, advice) = (dependency.name(), dependency.advice());
        tracing::error!(
            reason,
            "{name} cannot be used: feeding waits until it can; {advice}"
        );
        state.trouble = Some(format!("{name}: {reason}; {advice}"));
    }

    /// A call was answered.
    pub fn answered(&self, dependency: Dependency) {
        let mut states = self.lock();
        let state = &mut states[dependency as usize];
        state.answered = Some(Instant::now());
        if state.trouble.take().is_some() {
            tracing::info!("{} can be used again: going on", dependency.name());
        }
    }

    /// Why nothing is fed at the moment; none when all is well.
    pub fn trouble(&self) -> Option<String> {
        let states = self.lock();
        ALL.into_iter()
            .find_map(|dependency| states[dependency as usize].trouble.clone())
    }

    fn lock(&self) -> MutexGuard<'_, [State; 2]> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_blink_is_no_outage_and_an_echo_no_second_one() {
        let health = Health::default();
        let began = Instant::now();
        health.failed(Dependency::Database, began, 1, "refused");
        assert_eq!(health.trouble(), None);
        health.failed(Dependency::Database, began, 2, "refused");
        let trouble = health.trouble().unwrap_or_default();
        assert!(
            trouble.starts_with("the database: refused; check"),
            "{trouble}"
        );
        advance(Duration::from_secs(1)).await;
        health.answered(Dependency::Database);
        assert_eq!(health.trouble(), None);
        health.failed(Dependency::Database, began, 9, "refused");
        assert_eq!(health.trouble(), None);
        advance(Duration::from_secs(1)).await;
        health.failed(Dependency::Database, Instant::now(), 2, "refused");
        assert!(health.trouble().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn each_dependency_has_its_own_trouble() {
        let health = Health::default();
        health.failed(Dependency::Queue, Instant::now(), 3, "gone");
        health.answered(Dependency::Database);
        let trouble = health.trouble().unwrap_or_default();
        assert!(trouble.contains("QUEUE_URL"), "{trouble}");
    }
}
