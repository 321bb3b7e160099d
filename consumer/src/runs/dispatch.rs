//! From a received message to its task: which run it is of, and whether that run can work on it now.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::{ParsedMessage, PoisonReason, RunKey, named_run, parse};
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::retry::Backoff;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{Admission, InHand, RunParts, Runs, STRAYS};
use crate::context::ConsumerContext;
use crate::fair_slots::FairSlots;
use crate::handle::{MessageEnds, Stages};
use crate::lease::Lease;

/// How long a message is hidden of which too many are parked: five receives take hours.
const POSTPONED_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_mins(15),
    max_delay: Duration::from_hours(6),
};

/// A message as it was received, parsed once.
pub struct IncomingMessage {
    pub message: ReceivedMessage,
    pub parsed: Result<ParsedMessage, PoisonReason>,
    /// Whether its run is unknown: it is recorded as poison.
    pub is_stray: bool,
}

pub struct LeasedMessage {
    pub incoming: IncomingMessage,
    pub lease: Lease,
    pub received_at: Instant,
}

/// Starts messages, parks them or gives them back.
pub(crate) struct Dispatcher {
    pub(crate) runs: Runs,
    pub(crate) ends: Arc<MessageEnds>,
    /// The messages in hand, and the runs that are taken on.
    pub(crate) tasks: TaskTracker,
    /// Copies in flight, of all runs.
    pub(crate) copies: FairSlots,
    /// Statements under way, of all runs.
    pub(crate) statements: FairSlots,
    pub(crate) context: ConsumerContext,
}

impl IncomingMessage {
    pub(super) fn new(message: ReceivedMessage) -> Self {
        Self {
            parsed: parse(&message.body),
            message,
            is_stray: false,
        }
    }

    fn run(&self) -> Option<i64> {
        match &self.parsed {
            Ok(parsed) => parsed.run.map(RunKey::number),
            Err(_) => named_run(&self.message.body),
        }
    }
}

impl Dispatcher {
    /// `serves_all`: whether the run is one of several.
    pub(crate) fn build_stages(&self, parts: RunParts, serves_all: bool) -> Arc<Stages> {
        let health = &self.context.health;
        let health = if serves_all {
            health.for_run(&parts.name)
        } else {
            health.clone()
        };
        let context = ConsumerContext {
            throttle: Arc::clone(&parts.throttle),
            health,
            copies: self.copies.share(),
            statements: self.statements.share(),
            ..self.context.clone()
        };
        Arc::new(Stages::new(parts, serves_all, &self.ends, context))
    }

    pub(crate) fn dispatch(&self, mut message: ReceivedMessage) {
        let receipt_handle = mem::take(&mut message.receipt_handle);
        let lease = self.context.leases.start_lease(receipt_handle);
        let incoming = IncomingMessage::new(message);
        let named = || incoming.run().filter(|run| *run > STRAYS);
        let run = self.runs.only().or_else(named).unwrap_or(STRAYS);
        let leased = LeasedMessage {
            incoming,
            lease,
            received_at: Instant::now(),
        };
        if self.context.stop.is_cancelled() {
            return self.release(leased, Duration::ZERO);
        }
        match self.runs.admit(run, leased) {
            Admission::Handle(stages, leased, in_hand) => {
                self.spawn_handler(stages, leased, in_hand);
            }
            Admission::Parked => {}
            Admission::Postpone(leased) => {
                let receives = leased.incoming.message.receive_count;
                self.release(leased, POSTPONED_BACKOFF.delay_ceiling(receives));
            }
        }
    }

    pub(super) fn spawn_handler(
        &self,
        stages: Arc<Stages>,
        leased: LeasedMessage,
        in_hand: InHand,
    ) {
        let runs = self.runs.clone();
        self.tasks.spawn(async move {
            let interrupted = stages.handle(leased).await;
            drop(in_hand);
            if let Some(leased) = interrupted {
                runs.park(stages.run, [leased]);
            }
        });
    }

    /// Gives back all that is parked, at a stop.
    pub(crate) fn give_back_parked(&self) {
        for leased in self.runs.take_all_parked() {
            self.release(leased, Duration::ZERO);
        }
    }

    pub(super) fn release(&self, leased: LeasedMessage, wait: Duration) {
        let ends = Arc::clone(&self.ends);
        self.tasks
            .spawn(async move { ends.release(leased, wait).await });
    }
}
