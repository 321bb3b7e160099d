//! What one process sees of the world: its queue, its store and its database, each call with a way
//! there and a way back, and with whatever can go wrong on either. A process that has died hears
//! nothing any more, and what it had not sent is never done.

mod catalog;
mod control;
mod queue;
mod scope;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::fate::Fate;
use crate::shared::{Shared, Things};

/// When a process dies: at which of its calls, and on which side of the call's effect.
#[derive(Debug, Clone, Copy)]
pub struct Death {
    /// The number of the call, from 0.
    pub at_call: u64,
    /// Whether the call is carried out.
    pub after_effect: bool,
}

/// One process's view of the world.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    death: Option<Death>,
    calls: AtomicU64,
    is_dead: AtomicBool,
    died: Notify,
}

impl Client {
    /// A process that lives until it dies as told.
    pub fn new(shared: Arc<Shared>, death: Option<Death>) -> Self {
        Self {
            shared,
            death,
            calls: AtomicU64::new(0),
            is_dead: AtomicBool::new(false),
            died: Notify::new(),
        }
    }

    /// Waits for its death.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    /// Carries out a call: `act` is what it does to the world, `lost` the error when it, or its answer, is
    /// lost.
    async fn call<T, E>(
        &self,
        name: &'static str,
        lost: impl FnOnce(Fate) -> E,
        act: impl FnOnce(&mut Things) -> Result<T, E>,
    ) -> Result<T, E> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let (there, back, fate) = self.shared.roll();
        self.travel(there).await;
        let dies = self.death.filter(|death| death.at_call == number);
        if dies.is_some_and(|death| !death.after_effect) {
            self.die().await;
        }
        self.shared.trace(name, number, fate as u64);
        if fate == Fate::FailsBefore {
            self.travel(back).await;
            return Err(lost(fate));
        }
        let answer = self.shared.act(act);
        if dies.is_some() {
            self.die().await;
        }
        self.travel(back).await;
        match fate {
            Fate::FailsAfter => Err(lost(fate)),
            _ => answer,
        }
    }

    async fn travel(&self, time: Duration) {
        sleep(time).await;
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    async fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.died.notify_one();
        std::future::pending::<()>().await;
    }
}
