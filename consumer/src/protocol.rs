//! What a consumer does next with one message: the whole protocol as a pure function.
//!
//! ```text
//!   look ─► copy ─► commit ─► end the lease ─► delete
//!     │       │ ▲      │
//!     │       ▼ │      │
//!     │     compare    │                       (something stands at the destination)
//!     │       │        │
//!     │       └────────┴──► look again ─► fail ─► end the lease ─► release
//!     └──► settle ─► end the lease ─► delete   (the application wrote the row)
//!
//!   fail for good ─► dead letter ─► end the lease ─► delete, or release where it was not confirmed
//! ```
//!
//! Nothing here waits, reads a clock or calls another system: [`MoveProtocol::next`] takes what happened and
//! returns what to do. A message is deleted in three cases only: its row was moved by a commit, its row needs
//! no move and that is recorded, or its row's failure is recorded and the message stands in the dead-letter
//! queue; and in all only under a lease that still holds.

mod event;
mod failure_cause;
mod row_state;

use std::time::{Duration, SystemTime};

use bucket_brigade_common::ledger::move_ledger::OrphanedCopy;
use bucket_brigade_common::object_store::{CopiedObject, DestinationState};
use bucket_brigade_common::retry::Backoff;

pub use event::{Action, Event};
pub use failure_cause::FailureCause;
pub(crate) use failure_cause::NO_SUCH_KEY;
pub use row_state::RowState;

/// How often a commit may be skipped for a locked row before that is a failure: after about half a minute.
const MAX_SKIPPED_COMMITS: u32 = 12;

/// Waits between tries to commit a locked row.
const LOCKED_ROW_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(50),
    max_delay: Duration::from_secs(5),
};

/// How often the object at the destination may vanish between a refused copy and the look at it.
const MAX_VANISHED_OBJECTS: u32 = 3;

/// How long a message stays hidden after a failure that may pass.
const REDELIVERY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_mins(5),
};

/// How long an upload may take that comes after its row was saved, with a path whose source clean has removed.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(30);

/// How far the clocks of queue and store may be apart, in seconds.
const CLOCK_TOLERANCE: i64 = 60;

/// How long a message of another run or ledger stays hidden at most: whose it is may not be the next to receive it.
const OTHER_RUN_DELAY: Duration = Duration::from_secs(8);

/// How long a message stays hidden at least that no dead-letter queue can take.
const MISSING_QUEUE_DELAY: Duration = Duration::from_mins(1);

/// How the delivery ends, if its lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum FinalAction {
    Delete,
    Release(Duration),
}

/// How far the move is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// No copy of this delivery is proven yet.
    Copying {
        vanished_objects: u32,
        /// That of an earlier copy, by the ledger.
        copy_etag: Option<String>,
    },
    /// There is no source; perhaps the earlier copy stands.
    FindingCopy {
        copy_etag: String,
        cause: FailureCause,
    },
    /// The copy is proven, the path not yet set.
    Committing {
        copy: CopiedObject,
        skipped_commits: u32,
    },
    /// The move failed; the row is read again before that is recorded.
    Failing {
        cause: FailureCause,
        copy: Option<CopiedObject>,
    },
    /// The row was changed. An earlier delivery may have made a copy that has lost it.
    FindingOrphan(RowState),
    /// The row has failed for good; the message is to be in the dead-letter queue before it is deleted.
    DeadLettering,
    /// What is left is to record the outcome and to end the lease.
    Ending(FinalAction),
}

/// One delivery of one message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MoveProtocol {
    receive_count: u32,
    /// None without a dead-letter queue.
    max_receive_count: Option<u32>,
    /// Whether its row was saved long enough ago for its upload to be there.
    is_aged: bool,
    /// When it was sent, in seconds since 1970, where that is known.
    sent_seconds: Option<i64>,
    destination_key: String,
    phase: Phase,
}

impl MoveProtocol {
    /// `receive_count` is 1 for the first delivery. The key is that of the copy to be made.
    pub fn new(
        receive_count: u32,
        max_receive_count: Option<u32>,
        destination_key: String,
    ) -> Self {
        Self {
            receive_count,
            max_receive_count,
            is_aged: false,
            sent_seconds: None,
            destination_key,
            phase: Phase::Copying {
                vanished_objects: 0,
                copy_etag: None,
            },
        }
    }

    /// The same of a message that was sent then, where that is known.
    #[must_use]
    pub fn with_sent_at(self, sent_at: Option<SystemTime>, now: SystemTime) -> Self {
        let age = sent_at.and_then(|sent| now.duration_since(sent).ok());
        let since_1970 = sent_at.and_then(|sent| sent.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            is_aged: age.is_some_and(|age| age >= UPLOAD_PATIENCE),
            sent_seconds: since_1970.and_then(|sent| i64::try_from(sent.as_secs()).ok()),
            ..self
        }
    }

    /// Takes what happened and returns what to do.
    pub fn next(&mut self, event: Event) -> Action {
        match event {
            Event::Poison => self.after_poison(),
            Event::OtherRun => self.release_after(self.release_delay(false).min(OTHER_RUN_DELAY)),
            Event::RowRead(row) => self.after_row_read(row),
            Event::RowUnreadable(cause) => self.record_failure(cause),
            Event::Copied(copy) => self.commit_copy(copy),
            Event::DestinationExists => Action::Compare,
            Event::Compared(found) => self.after_compare(found),
            Event::CopyFailed(cause) | Event::CommitRefused(cause) => self.after_failure(cause),
            Event::Decoded | Event::NotCommitted => Action::ReadRow,
            Event::Committed | Event::DeadLetterSent { confirmed: true } => {
                self.end_lease(FinalAction::Delete)
            }
            Event::Recorded if self.phase == Phase::DeadLettering => Action::SendDeadLetter,
            Event::Recorded => Action::EndLease,
            Event::DeadLetterSent { confirmed: false } => self.release_failed(Duration::ZERO),
            Event::DeadLetterQueueMissing => self.release_failed(MISSING_QUEUE_DELAY),
            Event::Interrupted => self.release_after(Duration::ZERO),
            Event::LeaseEnded { held } => self.after_lease(held),
        }
    }

    fn after_poison(&mut self) -> Action {
        self.phase = Phase::Ending(FinalAction::Release(self.release_delay(true)));
        Action::RecordPoison
    }

    fn commit_copy(&mut self, copy: CopiedObject) -> Action {
        self.phase = Phase::Committing {
            copy: copy.clone(),
            skipped_commits: 0,
        };
        Action::Commit(copy, Duration::ZERO)
    }

    fn after_failure(&mut self, cause: FailureCause) -> Action {
        // The row asks for no move: what could not be compared is no orphan for sure.
        if let Phase::FindingOrphan(row) = &self.phase {
            return self.record_settlement(row.clone(), None);
        }
        // An application that saves a row whole writes the old path of a moved image, and its source may be
        // gone by now.
        if let Phase::Copying {
            copy_etag: Some(copy_etag),
            ..
        } = &self.phase
            && cause.code == NO_SUCH_KEY
        {
            self.phase = Phase::FindingCopy {
                copy_etag: copy_etag.clone(),
                cause,
            };
            return Action::Compare;
        }
        self.fail(cause)
    }

    fn fail(&mut self, cause: FailureCause) -> Action {
        self.phase = Phase::Failing {
            cause,
            copy: self.copy().cloned(),
        };
        Action::ReadRow
    }

    fn copy(&self) -> Option<&CopiedObject> {
        match &self.phase {
            Phase::Committing { copy, .. } => Some(copy),
            Phase::Failing { copy, .. } => copy.as_ref(),
            Phase::Copying { .. }
            | Phase::FindingCopy { .. }
            | Phase::FindingOrphan(_)
            | Phase::DeadLettering
            | Phase::Ending(_) => None,
        }
    }

    fn end_lease(&mut self, final_action: FinalAction) -> Action {
        self.phase = Phase::Ending(final_action);
        Action::EndLease
    }

    fn release_after(&mut self, delay: Duration) -> Action {
        self.end_lease(FinalAction::Release(delay))
    }

    /// A lost lease is never acknowledged: another consumer has the message, or will have it.
    fn after_lease(&mut self, held: bool) -> Action {
        match &self.phase {
            Phase::Ending(FinalAction::Delete) if held => Action::Delete,
            Phase::Ending(FinalAction::Release(delay)) if held => Action::Release(*delay),
            _ => Action::Abandon,
        }
    }

    /// Our earlier copy is a success, any other object a conflict.
    fn after_compare(&mut self, found: DestinationState) -> Action {
        if let Phase::FindingOrphan(row) = &self.phase {
            let orphan = match found {
                DestinationState::Same(copy) => self.orphaned_copy(&copy),
                // Without a source nothing shows whose it is, and there may be no other bytes of it.
                DestinationState::WithoutSource(_)
                | DestinationState::Empty
                | DestinationState::Different(_) => None,
            };
            return self.record_settlement(row.clone(), orphan);
        }
        match found {
            DestinationState::Same(copy) => self.commit_copy(copy),
            DestinationState::WithoutSource(copy) => self.after_copy_without_source(copy),
            DestinationState::Different(difference) => {
                let conflict =
                    FailureCause::destination_conflict(&self.destination_key, &difference);
                self.after_failure(conflict)
            }
            DestinationState::Empty => self.copy_again(),
        }
    }

    /// The earlier copy is as good as a new one; any other object proves nothing without a source.
    fn after_copy_without_source(&mut self, copy: CopiedObject) -> Action {
        let recorded = match &self.phase {
            Phase::Copying { copy_etag, .. } => copy_etag.as_ref(),
            Phase::FindingCopy { copy_etag, .. } => Some(copy_etag),
            _ => None,
        };
        if recorded != Some(&copy.etag) {
            return self.fail(FailureCause::source_vanished());
        }
        // Saved before its upload, a row has such a path, too, and means another image.
        if self.waits_for_upload() {
            return self.release_after(UPLOAD_PATIENCE);
        }
        self.commit_copy(copy)
    }

    /// Another consumer may have given an earlier delivery back at once. No clock keeps a row waiting: the third counts.
    fn waits_for_upload(&self) -> bool {
        let is_last = self.max_receive_count == Some(self.receive_count);
        !self.is_aged && !is_last && self.receive_count <= 2
    }

    fn copy_first(&mut self, recorded: Option<String>) -> Action {
        self.phase = Phase::Copying {
            vanished_objects: 0,
            copy_etag: recorded,
        };
        Action::Copy
    }

    fn copy_again(&mut self) -> Action {
        if let Phase::FindingCopy { cause, .. } = &self.phase {
            return self.fail(cause.clone());
        }
        if let Phase::Copying {
            vanished_objects, ..
        } = &mut self.phase
        {
            *vanished_objects += 1;
            if *vanished_objects <= MAX_VANISHED_OBJECTS {
                return Action::Copy;
            }
        }
        self.after_failure(FailureCause::destination_vanished())
    }

    fn after_row_read(&mut self, row: RowState) -> Action {
        let RowState::NeedsMove {
            failed_for_good,
            copy_etag: recorded,
        } = row
        else {
            return self.after_row_changed(row);
        };
        match &self.phase {
            // It failed for good at an earlier delivery.
            Phase::Copying { .. } if failed_for_good && self.receive_count > 1 => {
                self.send_dead_letter()
            }
            Phase::Copying { .. } => self.copy_first(recorded),
            Phase::Committing { .. } => self.retry_commit(),
            Phase::Failing { cause, .. } => self.record_failure(cause.clone()),
            // No row is read in these phases.
            Phase::FindingCopy { .. }
            | Phase::FindingOrphan(_)
            | Phase::DeadLettering
            | Phase::Ending(_) => self.release_after(Duration::ZERO),
        }
    }

    /// The row still holds the old path, and yet the commit did not match it: another transaction has it
    /// locked, or a trigger keeps the path as it is.
    fn retry_commit(&mut self) -> Action {
        match &mut self.phase {
            Phase::Committing {
                copy,
                skipped_commits,
            } if *skipped_commits < MAX_SKIPPED_COMMITS => {
                *skipped_commits += 1;
                let wait = LOCKED_ROW_BACKOFF.delay_ceiling(*skipped_commits);
                Action::Commit(copy.clone(), wait)
            }
            _ => self.record_failure(FailureCause::row_locked()),
        }
    }

    /// A copy of ours may have lost the row: that of this delivery, or of one that was cut off.
    fn after_row_changed(&mut self, row: RowState) -> Action {
        if row == RowState::Moved {
            return self.record_settlement(row, None);
        }
        // What was made before a clean may be gone.
        let copy = self.copy().filter(|_| row != RowState::Fenced);
        if let Some(orphan) = copy.and_then(|copy| self.orphaned_copy(copy)) {
            return self.record_settlement(row, Some(orphan));
        }
        // Rows like this are few, and a copy may have been made for any, by a delivery that is not known.
        self.phase = Phase::FindingOrphan(row);
        Action::Compare
    }

    /// What was there at the first delivery, or before the message, is the application's, for all that is known.
    fn orphaned_copy(&self, copy: &CopiedObject) -> Option<OrphanedCopy> {
        let times = copy.modified_seconds.zip(self.sent_seconds);
        let is_older = times.is_some_and(|(modified, sent)| modified + CLOCK_TOLERANCE < sent);
        (!copy.is_found || (self.receive_count > 1 && !is_older)).then(|| OrphanedCopy {
            destination_key: self.destination_key.clone(),
            etag: copy.etag.clone(),
        })
    }

    fn record_settlement(&mut self, row: RowState, orphan: Option<OrphanedCopy>) -> Action {
        self.phase = Phase::Ending(FinalAction::Delete);
        Action::RecordSettlement(row, orphan)
    }

    fn record_failure(&mut self, cause: FailureCause) -> Action {
        let made = self.copy().filter(|copy| !copy.is_found);
        let orphan = made.and_then(|copy| self.orphaned_copy(copy));
        self.phase = match self.max_receive_count {
            Some(_) if cause.permanent => Phase::DeadLettering,
            _ => Phase::Ending(FinalAction::Release(self.release_delay(cause.permanent))),
        };
        Action::RecordFailure(cause, orphan)
    }

    fn send_dead_letter(&mut self) -> Action {
        if self.max_receive_count.is_none() {
            return self.release_failed(Duration::ZERO);
        }
        self.phase = Phase::DeadLettering;
        Action::SendDeadLetter
    }

    fn release_failed(&mut self, least_delay: Duration) -> Action {
        let delay = self.release_delay(true).max(least_delay);
        self.release_after(delay)
    }

    /// How long a failed message stays hidden. After a permanent failure it is released at once, so that the redrive
    /// policy takes it without delay; where none does, it would come again at full speed, so it waits like any other.
    fn release_delay(&self, permanent: bool) -> Duration {
        let prompt_receives = self.max_receive_count.filter(|_| permanent).unwrap_or(0);
        match self.receive_count.saturating_sub(prompt_receives) {
            0 => Duration::ZERO,
            late_receives => REDELIVERY_BACKOFF.delay_ceiling(late_receives),
        }
    }
}

#[cfg(test)]
mod tests;
