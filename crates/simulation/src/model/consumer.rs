//! What a consumer can do, and what can become of it. The answers come from the world; what to do
//! with them is the protocol's business.

use bucket_brigade_common::catalog::PoisonRecord;
use bucket_brigade_common::message::{Task, decode};
use bucket_brigade_common::object_store::{Copied, StoreError};
use bucket_brigade_common::row_id::{IdType, RowId};
use bucket_brigade_consumer::commit::move_of;
use bucket_brigade_consumer::record::{failure, settlement};
use bucket_brigade_consumer::step::{Event, Protocol, Seen, Step, Trouble};

use super::{Action, InHand, State};
use crate::sabotage::Sabotage;
use crate::world::rule;

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is carried out, and the answer arrives.
    Answered,
    /// It is carried out, and the answer is lost: the consumer tries again.
    AnswerLost,
    /// It is not carried out, and the consumer gives up.
    GivenUp,
    /// The row is locked, and the commit skips it.
    Locked,
    /// The lease is found to have run out.
    LeaseLost,
    /// The process is asked to stop and waits no longer.
    Interrupted,
}

impl State {
    pub(super) fn actions_of_consumer(
        &self,
        consumer: usize,
        stops: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(in_hand) = &self.consumers[consumer] else {
            let numbers = self.mailbox.queued.keys();
            actions.extend(numbers.map(|number| Action::Receive(consumer, *number)));
            return;
        };
        actions.push(Action::Crash(consumer));
        let outcomes = self.outcomes(&in_hand.step).iter();
        actions.extend(outcomes.map(|outcome| Action::Step(consumer, *outcome)));
        let is_end = matches!(
            in_hand.step,
            Step::EndLease | Step::Delete | Step::Release(_) | Step::LetGo
        );
        if stops && !is_end {
            actions.push(Action::Step(consumer, Outcome::Interrupted));
        }
    }

    fn outcomes(&self, step: &Step) -> &'static [Outcome] {
        use Outcome::{AnswerLost, Answered, GivenUp, LeaseLost, Locked};
        match step {
            Step::Look | Step::LetGo => &[Answered],
            Step::Commit(..) if self.left.locks > 0 => &[Answered, AnswerLost, GivenUp, Locked],
            Step::Copy | Step::Commit(..) => &[Answered, AnswerLost, GivenUp],
            Step::Settle(..) | Step::Fail(_) | Step::RecordPoison => &[Answered, AnswerLost],
            Step::EndLease => &[Answered, LeaseLost],
            Step::Compare | Step::Delete | Step::Release(_) => &[Answered, GivenUp],
        }
    }

    /// Takes a message in hand, as [`bucket_brigade_consumer::handle`] does.
    pub(super) fn receive(&mut self, consumer: usize, number: u64) {
        let Some(message) = self.mailbox.receive(number) else {
            return;
        };
        let task = decode(&message.body, IdType::Text, &rule()).ok();
        let key = task.as_ref().map(|task| task.route.destination_key.clone());
        let mut protocol = Protocol::new(message.receive_count, true, key);
        let understood = if task.is_some() {
            Event::Understood
        } else {
            Event::Poison
        };
        let step = protocol.next(understood);
        self.consumers[consumer] = Some(InHand {
            message,
            task,
            protocol,
            step,
        });
    }

    pub(super) fn step(&mut self, consumer: usize, outcome: Outcome, sabotage: Sabotage) {
        let Some(mut in_hand) = self.consumers[consumer].take() else {
            return;
        };
        if self.is_end(&in_hand, outcome) {
            return;
        }
        if let Some(event) = self.event(&in_hand, outcome, sabotage) {
            in_hand.step = in_hand.protocol.next(event);
        }
        self.consumers[consumer] = Some(in_hand);
    }

    /// Carries out a step with which a message leaves the consumer's hands.
    fn is_end(&mut self, in_hand: &InHand, outcome: Outcome) -> bool {
        let handle = &in_hand.message.receipt_handle;
        match (&in_hand.step, outcome) {
            (Step::Delete, Outcome::Answered) => self.delete(in_hand),
            (Step::Release(_), Outcome::Answered) => {
                if let Some(number) = self.mailbox.named_by(handle) {
                    self.mailbox.reveal(number);
                }
            }
            // The queue was not reached: the visibility timeout does the rest.
            (Step::Delete | Step::Release(_) | Step::LetGo, _) => {}
            _ => return false,
        }
        true
    }

    fn delete(&mut self, in_hand: &InHand) {
        if self
            .mailbox
            .delete(&in_hand.message.receipt_handle)
            .is_none()
        {
            return;
        }
        match &in_hand.task {
            None => self.deleted_stranger = true,
            Some(task) => {
                let holds = self.table.rows.get(task.id.as_str());
                self.deleted_early |= holds == Some(&task.route.old_path);
            }
        }
    }

    /// What the consumer is told; none when the answer is lost.
    fn event(&mut self, in_hand: &InHand, outcome: Outcome, sabotage: Sabotage) -> Option<Event> {
        let event = match outcome {
            Outcome::Interrupted => return Some(Event::Interrupted),
            Outcome::LeaseLost => return Some(Event::LeaseEnded { held: false }),
            Outcome::GivenUp => return Some(given_up(&in_hand.step)),
            Outcome::Locked => {
                self.left.locks -= 1;
                return Some(Event::NotCommitted);
            }
            Outcome::Answered | Outcome::AnswerLost => match &in_hand.task {
                None => self.for_poison(in_hand),
                Some(task) => self.for_row(in_hand, task, sabotage),
            },
        };
        (outcome == Outcome::Answered).then_some(event)
    }

    fn for_poison(&mut self, in_hand: &InHand) -> Event {
        if in_hand.step == Step::EndLease {
            return Event::LeaseEnded { held: true };
        }
        self.table.record_poison(&[PoisonRecord {
            message_id: in_hand.message.message_id.clone(),
            reason: String::new(),
            excerpt: String::new(),
        }]);
        Event::Recorded
    }

    fn for_row(&mut self, in_hand: &InHand, task: &Task, sabotage: Sabotage) -> Event {
        match in_hand.step.clone() {
            Step::Look => {
                let row = self.table.look(std::slice::from_ref(&task.id));
                Event::Looked(Seen::of(row.get(&task.id).cloned(), &task.route, &rule()))
            }
            Step::Copy => {
                let only_new = sabotage != Sabotage::UnconditionalCopy;
                told(self.buckets.copy(&task.route, only_new).map(Event::Copied))
            }
            Step::Compare => told(self.buckets.compare(&task.route).map(Event::Compared)),
            Step::Commit(copied, _) => self.commit(in_hand, task, copied, sabotage),
            Step::Settle(seen, orphan) => {
                self.table.settle(&[settlement(task, seen, orphan)]);
                Event::Recorded
            }
            Step::Fail(trouble) => {
                self.table.fail(&[failure(task, trouble)]);
                Event::Recorded
            }
            Step::EndLease => Event::LeaseEnded { held: true },
            Step::RecordPoison | Step::Delete | Step::Release(_) | Step::LetGo => {
                Event::Interrupted
            }
        }
    }

    fn commit(
        &mut self,
        in_hand: &InHand,
        task: &Task,
        copied: Copied,
        sabotage: Sabotage,
    ) -> Event {
        let one = move_of(task, copied);
        if sabotage == Sabotage::DeleteBeforeCommit {
            self.delete(in_hand);
        }
        let exists = self.table.rows.contains_key(one.id.as_str());
        let is_moved = if sabotage == Sabotage::NoCompareAndSet && exists {
            self.table.set(&one);
            true
        } else {
            let moved = self.table.commit(std::slice::from_ref(&one));
            moved.contains::<RowId>(&one.id)
        };
        if is_moved {
            Event::Committed
        } else {
            Event::NotCommitted
        }
    }
}

/// What the store's answer means, as [`bucket_brigade_consumer::copy`] tells it.
fn told(answer: Result<Event, StoreError>) -> Event {
    match answer {
        Ok(event) => event,
        Err(StoreError::DestinationExists) => Event::DestinationTaken,
        Err(error) => Event::CopyFailed(Trouble {
            code: error.code().to_owned(),
            message: String::new(),
            permanent: matches!(error, StoreError::Permanent { .. }),
        }),
    }
}

fn given_up(step: &Step) -> Event {
    let trouble = |permanent| Trouble {
        code: "Fault".into(),
        message: String::new(),
        permanent,
    };
    match step {
        Step::Commit(..) => Event::CommitRefused(trouble(true)),
        _ => Event::CopyFailed(trouble(false)),
    }
}
