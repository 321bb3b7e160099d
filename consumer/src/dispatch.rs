//! From a received message to its task: which run it is of, and whether that run can work on it now.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::message::named_run;
use bucket_brigade_common::queue::ReceivedMessage;
use bucket_brigade_common::retry::Backoff;
use tokio_util::task::TaskTracker;

use crate::context::ConsumerContext;
use crate::handle::{MessageEnds, Stages};
use crate::protocol::Event;
use crate::run_loader::RunParts;
use crate::runs::{Admission, InHand, LeasedMessage, Runs, STRAYS};

/// How long a message is hidden of which too many are parked: five receives take hours.
const POSTPONED_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_mins(15),
    max_delay: Duration::from_hours(6),
};

/// Starts messages, parks them or gives them back.
pub struct Dispatcher {
    pub runs: Runs,
    pub ends: Arc<MessageEnds>,
    /// The messages in hand.
    pub tasks: TaskTracker,
    pub context: ConsumerContext,
}

impl Dispatcher {
    /// The stages of one run of several.
    pub fn build_stages(&self, parts: RunParts) -> Arc<Stages> {
        let context = self.context.for_run(&parts.name, &parts.throttle);
        Arc::new(Stages::new(parts, true, &self.ends, context))
    }

    /// Those of the only run.
    pub fn build_only(&self, parts: RunParts) -> Arc<Stages> {
        let context = self.context.with_throttle(&parts.throttle);
        Arc::new(Stages::new(parts, false, &self.ends, context))
    }

    pub fn dispatch(&self, message: ReceivedMessage, receipt_handle: String) {
        let lease = self.context.leases.start_lease(receipt_handle);
        let only = self.runs.only();
        let named = || named_run(&message.body).filter(|run| *run > STRAYS);
        let run = only.or_else(named).unwrap_or(STRAYS);
        let leased = LeasedMessage {
            message,
            lease,
            is_stray: false,
        };
        if self.context.stop.is_cancelled() {
            return self.give_back(leased);
        }
        match self.runs.admit(run, leased) {
            Admission::Handle(stages, leased, in_hand) => {
                self.spawn_handler(stages, leased, in_hand);
            }
            Admission::Parked => {}
            Admission::GiveBack(leased) => self.give_back_later(leased),
            Admission::Postpone(leased) => self.postpone(leased),
        }
    }

    pub fn spawn_handler(&self, stages: Arc<Stages>, leased: LeasedMessage, in_hand: InHand) {
        self.tasks.spawn(async move {
            stages.handle(leased).await;
            drop(in_hand);
        });
    }

    /// Gives back all that is parked, at a stop.
    pub fn give_back_parked(&self) {
        for leased in self.runs.take_all_parked() {
            self.give_back(leased);
        }
    }

    fn give_back(&self, leased: LeasedMessage) {
        self.spawn_release(leased, Event::Interrupted);
    }

    /// Others serve its run.
    pub fn give_back_later(&self, leased: LeasedMessage) {
        self.spawn_release(leased, Event::OtherRun);
    }

    fn spawn_release(&self, leased: LeasedMessage, reason: Event) {
        let ends = Arc::clone(&self.ends);
        self.tasks
            .spawn(async move { ends.release(leased, reason).await });
    }

    fn postpone(&self, leased: LeasedMessage) {
        let ends = Arc::clone(&self.ends);
        let wait = POSTPONED_BACKOFF.delay_ceiling(leased.message.receive_count);
        self.tasks
            .spawn(async move { ends.postpone(leased, wait).await });
    }
}
