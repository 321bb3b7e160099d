//! What a consumer can do, and what can become of it. The answers come from the world; what to do
//! with them is the protocol's business.

use bucket_brigade_common::ledger::move_ledger::{PendingMove, PoisonRecord};
use bucket_brigade_common::message::{MoveTask, decode, named_run};
use bucket_brigade_common::object_store::{CopiedObject, DestinationState, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::row_id::{IdColumnType, RowId};
use bucket_brigade_consumer::commit::build_move;
use bucket_brigade_consumer::protocol::{Action, Event, FailureCause, MoveProtocol, RowState};
use bucket_brigade_consumer::record::{build_failure, build_settlement};

use super::{BrigadeModel, InHand, ModelAction, ModelState, RunState};
use crate::sabotage::Sabotage;
use crate::world::{COMPANION_SUFFIX, RUN, world_path_rule};

/// The code of a refusal that may be the row's trouble or the database's.
pub(super) const DAMAGED_ROW: &str = "XX000";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelOutcome {
    /// It is carried out, and the answer arrives.
    Answered,
    /// It is carried out, and the answer is lost: the consumer tries again.
    AnswerLost,
    /// It is not carried out, and the consumer gives up.
    GivenUp,
    /// The companions are copied, and the consumer gives up before the commit.
    CompanionsOnly,
    /// The connection falls silent: the consumer gives the request up and tries again, and whether it is
    /// carried out shows later.
    Silent,
    /// The database refuses the statement for what may be a row's trouble, and would without rows, too: the consumer
    /// tries again.
    Suspect,
    /// The lease is found to have run out.
    LeaseLost,
    /// The process is asked to stop and waits no longer.
    Interrupted,
}

impl ModelState {
    pub(super) fn consumer_actions(
        &self,
        consumer: usize,
        model: &BrigadeModel,
        actions: &mut Vec<ModelAction>,
    ) {
        let Some(in_hand) = &self.consumers[consumer] else {
            let numbers = self.mailbox.queued.keys();
            actions.extend(numbers.map(|number| ModelAction::Receive(consumer, *number)));
            return;
        };
        actions.push(ModelAction::Crash(consumer));
        let outcomes = possible_outcomes(&in_hand.action).iter();
        actions.extend(outcomes.map(|outcome| ModelAction::ConsumerAction(consumer, *outcome)));
        if model.has_companions && matches!(in_hand.action, Action::Commit(..)) {
            actions.push(ModelAction::ConsumerAction(
                consumer,
                ModelOutcome::CompanionsOnly,
            ));
        }
        if self.remaining.silences > 0 && has_effect(&in_hand.action) {
            actions.push(ModelAction::ConsumerAction(consumer, ModelOutcome::Silent));
        }
        if self.remaining.suspicions > 0 && is_statement(&in_hand.action) {
            actions.push(ModelAction::ConsumerAction(consumer, ModelOutcome::Suspect));
        }
        let is_end = matches!(
            in_hand.action,
            Action::EndLease | Action::Delete | Action::Release(_) | Action::Abandon
        );
        if model.stops && !is_end {
            actions.push(ModelAction::ConsumerAction(
                consumer,
                ModelOutcome::Interrupted,
            ));
        }
    }

    /// Takes a message in hand, as [`bucket_brigade_consumer::handle`] does.
    pub(super) fn receive_message(&mut self, consumer: usize, number: u64, model: &BrigadeModel) {
        let Some(message) = self.mailbox.receive(number) else {
            return;
        };
        let run = named_run(&message.body).unwrap_or(RUN);
        let task = decode(&message.body, run, IdColumnType::Text, &world_path_rule()).ok();
        let key = task.as_ref().map(|task| task.route.destination_key.clone());
        let key = key.unwrap_or_default();
        let mut protocol =
            MoveProtocol::new(message.receive_count, Some(model.max_receive_count), key);
        let understood = if task.is_some() {
            Event::Decoded
        } else {
            Event::Poison
        };
        let step = protocol.next(understood);
        let is_mixed_up = model.sabotage == Sabotage::RunsMixedUp;
        self.consumers[consumer] = Some(InHand {
            run: if is_mixed_up { 0 } else { place_of_run(run) },
            message,
            task,
            protocol,
            action: step,
        });
    }

    pub(super) fn take_action(
        &mut self,
        consumer: usize,
        outcome: ModelOutcome,
        model: &BrigadeModel,
    ) {
        let Some(mut in_hand) = self.consumers[consumer].take() else {
            return;
        };
        if self.apply_final_action(&in_hand, outcome) {
            return;
        }
        if let Some(event) = self.next_event(&in_hand, outcome, model) {
            in_hand.action = in_hand.protocol.next(event);
        }
        self.consumers[consumer] = Some(in_hand);
    }

    /// Carries out a step with which a message leaves the consumer's hands.
    fn apply_final_action(&mut self, in_hand: &InHand, outcome: ModelOutcome) -> bool {
        let handle = &in_hand.message.receipt_handle;
        match (&in_hand.action, outcome) {
            (Action::Delete, ModelOutcome::Answered) => self.delete_message(in_hand),
            (Action::Release(_), ModelOutcome::Answered) => {
                if let Some(number) = self.mailbox.find_by_handle(handle) {
                    self.mailbox.make_visible(number);
                }
            }
            // The queue was not reached: the visibility timeout does the rest.
            (Action::Delete | Action::Release(_) | Action::Abandon, _) => {}
            _ => return false,
        }
        true
    }

    fn delete_message(&mut self, in_hand: &InHand) {
        if self
            .mailbox
            .delete_message(&in_hand.message.receipt_handle)
            .is_none()
        {
            return;
        }
        match &in_hand.task {
            None => self.deleted_foreign_message = true,
            Some(task) => {
                let run = named_run(&in_hand.message.body).map_or(0, place_of_run);
                let holds = self.runs[run].table.rows.get(task.id.as_str());
                let is_dead = self.mailbox.dead_letters.contains(&in_hand.message.body);
                self.deleted_early |= holds == Some(&task.route.old_path) && !is_dead;
            }
        }
    }

    /// What the consumer receives; none when the response is lost.
    fn next_event(
        &mut self,
        in_hand: &InHand,
        outcome: ModelOutcome,
        model: &BrigadeModel,
    ) -> Option<Event> {
        let event = match outcome {
            ModelOutcome::Interrupted => return Some(Event::Interrupted),
            ModelOutcome::LeaseLost => return Some(Event::LeaseEnded { held: false }),
            ModelOutcome::GivenUp => return Some(give_up_event(&in_hand.action)),
            ModelOutcome::Silent => {
                self.remaining.silences -= 1;
                self.given_up.push(in_hand.clone());
                return None;
            }
            ModelOutcome::Suspect => {
                self.remaining.suspicions -= 1;
                let is_tested = model.sabotage != Sabotage::UntestedSuspicion;
                return refusal_event(&in_hand.action).filter(|_| !is_tested);
            }
            ModelOutcome::CompanionsOnly => {
                let task = in_hand.task.as_ref()?;
                let copied = self.runs[in_hand.run].copy_companion(&task.route);
                return Some(copied.err().unwrap_or(give_up_event(&in_hand.action)));
            }
            ModelOutcome::Answered | ModelOutcome::AnswerLost => match &in_hand.task {
                None => self.apply_poison_action(in_hand),
                Some(task) => self.apply_row_action(in_hand, task, model),
            },
        };
        (outcome == ModelOutcome::Answered).then_some(event)
    }

    fn apply_poison_action(&mut self, in_hand: &InHand) -> Event {
        if in_hand.action == Action::EndLease {
            return Event::LeaseEnded { held: true };
        }
        self.runs[in_hand.run].table.record_poison(&[PoisonRecord {
            message_id: in_hand.message.message_id.clone(),
            reason: String::new(),
            excerpt: String::new(),
        }]);
        Event::Recorded
    }

    fn apply_row_action(
        &mut self,
        in_hand: &InHand,
        task: &MoveTask,
        model: &BrigadeModel,
    ) -> Event {
        if self.is_refused(in_hand.run, task, model)
            && let Some(refused) = refusal_event(&in_hand.action)
        {
            return refused;
        }
        let run = &mut self.runs[in_hand.run];
        match in_hand.action.clone() {
            Action::ReadRow => {
                let row = run.table.read_rows(std::slice::from_ref(&task.id));
                Event::RowRead(RowState::from_row(
                    row.get(&task.id).cloned(),
                    task,
                    &world_path_rule(),
                ))
            }
            Action::Copy => {
                let only_new = model.sabotage != Sabotage::UnconditionalCopy;
                event_from_store(run.buckets.copy(&task.route, only_new).map(Event::Copied))
            }
            Action::Compare => Event::Compared(run.buckets.compare_objects(&task.route)),
            Action::Commit(copied, _) => self.commit_move(in_hand, task, copied, model),
            Action::RecordSettlement(seen, orphan) => {
                run.table
                    .settle_rows(&[build_settlement(task, seen, orphan)]);
                Event::Recorded
            }
            Action::RecordFailure(trouble, orphan) => {
                run.table
                    .record_failures(&[build_failure(task, trouble, orphan)]);
                Event::Recorded
            }
            Action::SendDeadLetter => {
                let body = in_hand.message.body.clone();
                if model.sabotage != Sabotage::UnsentDeadLetter {
                    self.mailbox.dead_letters.insert(body);
                }
                Event::DeadLetterSent { confirmed: true }
            }
            Action::EndLease => Event::LeaseEnded { held: true },
            Action::RecordPoison | Action::Delete | Action::Release(_) | Action::Abandon => {
                Event::Interrupted
            }
        }
    }

    pub(super) fn apply_late_effect(&mut self, index: usize, model: &BrigadeModel) {
        let in_hand = self.given_up.remove(index);
        if let Some(task) = &in_hand.task {
            self.apply_row_action(&in_hand, task, model);
        }
    }

    fn is_refused(&self, run: usize, task: &MoveTask, model: &BrigadeModel) -> bool {
        let id = task.id.as_str();
        let path = self.runs[run].table.rows.get(id);
        path.is_some_and(|path| model.is_damaged(id, path))
    }

    /// The application locks rows of the first run alone.
    fn is_locked(&self, run: usize, id: &RowId, model: &BrigadeModel) -> bool {
        self.lock.as_ref().is_some_and(|(locked, lock)| {
            run == 0 && locked == id.as_str() && lock.conflicts(model.path_is_key)
        })
    }

    fn commit_move(
        &mut self,
        in_hand: &InHand,
        task: &MoveTask,
        copied: CopiedObject,
        model: &BrigadeModel,
    ) -> Event {
        let sabotage = model.sabotage;
        if model.has_companions
            && sabotage != Sabotage::ForgottenCompanions
            && let Err(event) = self.runs[in_hand.run].copy_companion(&task.route)
        {
            return event;
        }
        let mut one = build_move(task, copied);
        if self.is_locked(in_hand.run, &one.id, model) {
            return Event::NotCommitted;
        }
        if model.rewrites_path && self.runs[in_hand.run].still_asks_for(&one) {
            if sabotage != Sabotage::UncheckedPath {
                return Event::CommitRefused(trouble("PathRewritten", true));
            }
            one.new_path.push_str("-rewritten");
        }
        if sabotage == Sabotage::DeleteBeforeCommit {
            self.delete_message(in_hand);
        }
        let table = &mut self.runs[in_hand.run].table;
        let exists = table.rows.contains_key(one.id.as_str());
        let is_moved = if sabotage == Sabotage::NoCompareAndSet && exists {
            table.set_path(&one);
            true
        } else {
            let moved = table.commit(std::slice::from_ref(&one));
            moved.contains::<RowId>(&one.id)
        };
        if is_moved {
            Event::Committed
        } else {
            Event::NotCommitted
        }
    }
}

impl RunState {
    fn still_asks_for(&self, one: &PendingMove) -> bool {
        self.table.rows.get(one.id.as_str()) == Some(&one.old_path)
    }

    /// As [`bucket_brigade_consumer::companions`] does before each try of the commit.
    fn copy_companion(&mut self, image: &MoveRoute) -> Result<(), Event> {
        let with_suffix = |key: &str| format!("{key}{COMPANION_SUFFIX}");
        let route = MoveRoute {
            source_key: with_suffix(&image.source_key),
            destination_key: with_suffix(&image.destination_key),
            ..image.clone()
        };
        let copied = self.buckets.copy(&route, true);
        let stands = || self.buckets.compare_objects(&route);
        match copied {
            Err(StoreError::DestinationExists)
                if matches!(stands(), DestinationState::Different(_)) =>
            {
                Err(Event::CopyFailed(trouble("CompanionConflict", true)))
            }
            // One that is not there is no failure.
            _ => Ok(()),
        }
    }
}

/// Runs are numbered from one.
fn place_of_run(run: i64) -> usize {
    usize::try_from(run - RUN).unwrap_or(0)
}

/// What the store's answer means, as [`bucket_brigade_consumer::copy`] sorts it.
fn event_from_store(answer: Result<Event, StoreError>) -> Event {
    match answer {
        Ok(event) => event,
        Err(StoreError::DestinationExists) => Event::DestinationExists,
        Err(error) => {
            let is_permanent = matches!(error, StoreError::Permanent { .. });
            Event::CopyFailed(trouble(error.code(), is_permanent))
        }
    }
}

fn give_up_event(step: &Action) -> Event {
    match step {
        Action::Commit(..) => Event::CommitRefused(trouble("Fault", true)),
        Action::SendDeadLetter => Event::DeadLetterSent { confirmed: false },
        _ => Event::CopyFailed(trouble("Fault", false)),
    }
}

/// Where the database refuses a row.
fn refusal_event(step: &Action) -> Option<Event> {
    let damaged = trouble(DAMAGED_ROW, true);
    match step {
        Action::ReadRow => Some(Event::RowUnreadable(damaged)),
        Action::Commit(..) => Some(Event::CommitRefused(damaged)),
        _ => None,
    }
}

fn trouble(code: &str, permanent: bool) -> FailureCause {
    FailureCause::new(code, "", permanent)
}

/// What becomes of a step while no connection falls silent.
fn possible_outcomes(step: &Action) -> &'static [ModelOutcome] {
    use ModelOutcome::{AnswerLost, Answered, GivenUp, LeaseLost};
    match step {
        Action::ReadRow | Action::Abandon => &[Answered],
        Action::Copy | Action::Commit(..) | Action::SendDeadLetter => {
            &[Answered, AnswerLost, GivenUp]
        }
        Action::RecordSettlement(..) | Action::RecordFailure(..) | Action::RecordPoison => {
            &[Answered, AnswerLost]
        }
        Action::EndLease => &[Answered, LeaseLost],
        Action::Compare | Action::Delete | Action::Release(_) => &[Answered, GivenUp],
    }
}

/// Whether the step is one of the database's.
fn is_statement(step: &Action) -> bool {
    matches!(
        step,
        Action::ReadRow
            | Action::Commit(..)
            | Action::RecordSettlement(..)
            | Action::RecordFailure(..)
            | Action::RecordPoison
    )
}

/// Whether the step changes the database or a bucket.
fn has_effect(step: &Action) -> bool {
    matches!(
        step,
        Action::Copy
            | Action::Commit(..)
            | Action::RecordSettlement(..)
            | Action::RecordFailure(..)
            | Action::SendDeadLetter
    )
}
