//! Is it this object, or everybody's trouble? One error says neither; several objects in a row
//! without a success between them do, unless an object that went well before still does.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;
use tokio::time::Instant;

/// So many different objects in trouble, one after the other, are an outage.
const STREAK: usize = 3;

#[derive(Debug, Default)]
struct State {
    in_trouble: HashSet<String>,
    witness: Option<MoveRoute>,
    last_success: Option<Instant>,
}

/// Whose trouble an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too early to tell.
    Unknown,
    /// An object that went well before still does: it is this object's own.
    Own,
    /// Everybody's, as far as can be known.
    Everybodys,
}

/// Watches the copies of a process for outages.
#[derive(Debug)]
pub struct OutageWatch(Mutex<State>);

impl OutageWatch {
    /// A watch with a witness from an earlier process, if there is one.
    pub fn new(witness: Option<MoveRoute>) -> Self {
        let state = State {
            witness,
            ..State::default()
        };
        Self(Mutex::new(state))
    }

    /// Whether there is an object to ask.
    pub fn has_witness(&self) -> bool {
        self.lock().witness.is_some()
    }

    /// A copy went well.
    pub fn went_well(&self, route: &MoveRoute) {
        let mut state = self.lock();
        state.in_trouble.clear();
        state.last_success = Some(Instant::now());
        if state.witness.is_none() {
            state.witness = Some(route.clone());
        }
    }

    /// A copy that was sent at `sent` met an error that may be its own or everybody's. When it is
    /// urgent, the witness is asked at once and not only after a streak.
    pub async fn verdict(
        &self,
        store: &dyn ObjectStore,
        route: &MoveRoute,
        sent: Instant,
        is_urgent: bool,
    ) -> Verdict {
        let witness = {
            let mut state = self.lock();
            state.in_trouble.insert(route.source_key.clone());
            let is_streak = state.in_trouble.len() >= STREAK || is_urgent;
            if !is_streak || state.last_success.is_some_and(|success| success >= sent) {
                return Verdict::Unknown;
            }
            state.witness.clone()
        };
        match witness {
            Some(witness) if self.testifies(store, &witness).await => Verdict::Own,
            _ => Verdict::Everybodys,
        }
    }

    /// Asks for a copy that was made before: a store that works, and lets us write, refuses because the
    /// destination exists. Nothing is copied.
    async fn testifies(&self, store: &dyn ObjectStore, witness: &MoveRoute) -> bool {
        match store.compare_objects(witness).await {
            Ok(DestinationState::Same(_) | DestinationState::Different(_)) => {}
            Ok(DestinationState::Empty) | Err(StoreError::Permanent { .. }) => {
                // The application has removed it since; the next success takes its place.
                self.lock().witness = None;
                return false;
            }
            Err(_) => return false,
        }
        let works = matches!(
            store.copy(witness).await,
            Err(StoreError::DestinationExists)
        );
        if works {
            self.lock().in_trouble.clear();
        }
        works
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
