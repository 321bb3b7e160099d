//! What a consumer does next with one message: the whole protocol as a pure function.
//!
//! ```text
//!   look ─► copy ─► commit ─► end the lease ─► delete
//!     │       │ ▲      │
//!     │       ▼ │      │
//!     │     compare    │                       (something stands at the destination)
//!     │       │        │
//!     │       └────────┴──► look again ─► fail ─► end the lease ─► release
//!     └──► settle ─► end the lease ─► delete   (somebody else wrote the row)
//! ```
//!
//! Nothing here waits, reads a clock or talks to anybody: [`Protocol::next`] is told what happened and
//! answers what to do. A message is deleted in two cases only: its row was moved by a commit, or its
//! row was seen not to need the move and that was written down; and in both only under a lease that
//! still holds.

use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::move_ledger::{CurrentRow, OrphanedCopy};
use bucket_brigade_common::object_store::{CopiedObject, DestinationState};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};

/// How often a commit may be skipped because somebody holds the row's lock before it counts as a
/// failure; with the waits between them about half a minute.
const MAX_SKIPPED_COMMITS: u32 = 12;

/// Waits between tries to commit a locked row.
const LOCKED_ROW_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(50),
    max_delay: Duration::from_secs(5),
};

/// How often the object at the destination may vanish between a refused copy and the look at it. A
/// store that goes on like that refuses for another reason.
const MAX_VANISHED_OBJECTS: u32 = 3;

/// How long a message stays hidden after a failure that may pass.
const REDELIVERY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_mins(5),
};

/// What stands in the row's path column, measured against what the message asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RowState {
    /// The old path: the move is still asked for.
    NeedsMove {
        /// The ledger holds a permanent failure for it.
        failed_for_good: bool,
    },
    /// The new path.
    Moved,
    /// Another path of the application's; under the old prefix it will be fed on its own.
    Changed {
        /// What the column holds.
        path: String,
        /// Whether that path is in scope itself.
        is_in_scope: bool,
    },
    /// No such row.
    Deleted,
}

impl RowState {
    /// Compares a row with the route its message asked for.
    pub fn from_row(row: Option<CurrentRow>, route: &MoveRoute, rule: &PathRule) -> Self {
        match row {
            None => Self::Deleted,
            Some(row) if row.path == route.old_path => Self::NeedsMove {
                failed_for_good: row.has_permanent_failure,
            },
            Some(row) if row.path == route.new_path => Self::Moved,
            Some(row) => Self::Changed {
                is_in_scope: rule.is_in_scope(&row.path),
                path: row.path,
            },
        }
    }
}

/// Why a row could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FailureCause {
    /// A short code: S3's or Postgres's own where there is one.
    pub code: String,
    /// What happened, for a person.
    pub message: String,
    /// Whether trying again unchanged is pointless.
    pub permanent: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The message was understood.
    Decoded,
    /// It was not.
    Poison,
    /// The row was read.
    RowRead(RowState),
    /// The copy was made and is proven.
    Copied(CopiedObject),
    /// Nothing was copied: an object stands at the destination.
    DestinationExists,
    /// What stands at the destination was compared with the source.
    Compared(DestinationState),
    /// The copy cannot be made, or the comparison.
    CopyFailed(FailureCause),
    /// The path is set and the evidence written.
    Committed,
    /// The row did not match, or was locked.
    NotCommitted,
    /// The database refuses this row.
    CommitRefused(FailureCause),
    /// What ended is written down: a settlement, a failure or a poison message.
    Recorded,
    /// The process is stopping, and what was waited for did not come.
    Interrupted,
    /// The renewals have ended. Whether the lease held to this moment.
    LeaseEnded {
        /// False when it ran out: the message is somebody else's.
        held: bool,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the row.
    ReadRow,
    /// Copy the object.
    Copy,
    /// Compare what stands at the destination with the source.
    Compare,
    /// Commit this copy after a wait.
    Commit(CopiedObject, Duration),
    /// Write down that the row needs no move.
    RecordSettlement(RowState, Option<OrphanedCopy>),
    /// Write down the failure.
    RecordFailure(FailureCause),
    /// Write down the poison message.
    RecordPoison,
    /// Stop renewing the lease, and see whether it held.
    EndLease,
    /// Delete the message: the end.
    Delete,
    /// Make the message visible again after this time: the end.
    Release(Duration),
    /// Do nothing more: somebody else has the message.
    Abandon,
}

/// How a message is to leave our hands, if its lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum FinalAction {
    Delete,
    Release(Duration),
}

/// One delivery of one message on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MoveProtocol {
    receive_count: u32,
    has_dead_letter_queue: bool,
    destination_key: Option<String>,
    copy: Option<CopiedObject>,
    failure: Option<FailureCause>,
    row_state: Option<RowState>,
    skipped_commits: u32,
    vanished_objects: u32,
    final_action: Option<FinalAction>,
}

impl MoveProtocol {
    /// A delivery as it arrives. `receive_count` is 1 for the first. The key is that of the copy to be.
    pub fn new(
        receive_count: u32,
        has_dead_letter_queue: bool,
        destination_key: Option<String>,
    ) -> Self {
        Self {
            receive_count,
            has_dead_letter_queue,
            destination_key,
            copy: None,
            failure: None,
            row_state: None,
            skipped_commits: 0,
            vanished_objects: 0,
            final_action: None,
        }
    }

    /// Takes in what happened and says what to do.
    pub fn next(&mut self, event: Event) -> Action {
        match event {
            Event::Poison => {
                self.failure = Some(poison_cause());
                Action::RecordPoison
            }
            Event::RowRead(seen) => self.after_row_read(seen),
            Event::Copied(copied) => self.commit_copy(copied),
            Event::DestinationExists => Action::Compare,
            Event::Compared(found) => self.after_compare(found),
            // The row is not ours to move any more: what could not be compared is no orphan for sure.
            Event::CopyFailed(_) if self.row_state.is_some() => self.record_settlement(None),
            Event::CopyFailed(trouble) | Event::CommitRefused(trouble) => {
                self.after_failure(trouble)
            }
            Event::Decoded | Event::NotCommitted => Action::ReadRow,
            Event::Committed => self.end_lease(FinalAction::Delete),
            Event::Recorded => self.after_record(),
            Event::Interrupted => self.end_lease(FinalAction::Release(Duration::ZERO)),
            Event::LeaseEnded { held } => self.after_lease(held),
        }
    }

    fn commit_copy(&mut self, copied: CopiedObject) -> Action {
        self.copy = Some(copied.clone());
        Action::Commit(copied, Duration::ZERO)
    }

    /// Before a failure is written down the row is read again: if it changed meanwhile, nothing failed.
    fn after_failure(&mut self, trouble: FailureCause) -> Action {
        self.failure = Some(trouble);
        Action::ReadRow
    }

    fn end_lease(&mut self, ending: FinalAction) -> Action {
        self.final_action = Some(ending);
        Action::EndLease
    }

    /// A lost lease is never acknowledged: its message is, or will be, in other hands.
    fn after_lease(&mut self, held: bool) -> Action {
        match self.final_action.take() {
            Some(FinalAction::Delete) if held => Action::Delete,
            Some(FinalAction::Release(delay)) if held => Action::Release(delay),
            _ => Action::Abandon,
        }
    }

    /// Our earlier copy is success, a stranger's object a conflict. When the row is already somebody
    /// else's, the question was whether a copy of ours has lost it.
    fn after_compare(&mut self, found: DestinationState) -> Action {
        if self.row_state.is_some() {
            let orphan = match found {
                DestinationState::Same(copied) => self.orphaned_copy(&copied),
                DestinationState::Empty | DestinationState::Different(_) => None,
            };
            return self.record_settlement(orphan);
        }
        match found {
            DestinationState::Same(copied) => self.commit_copy(copied),
            DestinationState::Different(difference) => {
                let conflict = self.destination_conflict(&difference);
                self.after_failure(conflict)
            }
            DestinationState::Empty => {
                self.vanished_objects += 1;
                if self.vanished_objects > MAX_VANISHED_OBJECTS {
                    return self.after_failure(destination_vanished());
                }
                Action::Copy
            }
        }
    }

    fn after_row_read(&mut self, seen: RowState) -> Action {
        let RowState::NeedsMove { failed_for_good } = seen else {
            return self.after_row_changed(seen);
        };
        match (&self.failure, &self.copy) {
            (Some(trouble), _) => Action::RecordFailure(trouble.clone()),
            (None, Some(copied)) => {
                let copied = copied.clone();
                self.retry_commit(copied)
            }
            // It failed for good at an earlier delivery: the redrive policy takes it from here.
            (None, None) if failed_for_good && self.receive_count > 1 => {
                self.end_lease(FinalAction::Release(self.release_delay(true)))
            }
            (None, None) => Action::Copy,
        }
    }

    /// The row still holds the old path, and yet the commit did not match it: somebody has it locked,
    /// or a trigger keeps the path as it is.
    fn retry_commit(&mut self, copied: CopiedObject) -> Action {
        self.skipped_commits += 1;
        if self.skipped_commits > MAX_SKIPPED_COMMITS {
            let trouble = FailureCause {
                code: "RowLocked".into(),
                message:
                    "the row stayed locked by another transaction, or a trigger undoes the change"
                        .into(),
                permanent: false,
            };
            self.failure = Some(trouble.clone());
            return Action::RecordFailure(trouble);
        }
        Action::Commit(
            copied,
            LOCKED_ROW_BACKOFF.delay_ceiling(self.skipped_commits),
        )
    }

    /// Somebody else wrote the row. A copy of ours may have lost it: the one of this delivery, or one
    /// that an earlier delivery made before it was cut off.
    fn after_row_changed(&mut self, seen: RowState) -> Action {
        let is_moved = seen == RowState::Moved;
        self.row_state = Some(seen);
        match &self.copy {
            _ if is_moved => self.record_settlement(None),
            Some(copied) => {
                let orphan = self.orphaned_copy(copied);
                self.record_settlement(orphan)
            }
            None if self.receive_count > 1 => Action::Compare,
            None => self.record_settlement(None),
        }
    }

    fn orphaned_copy(&self, copied: &CopiedObject) -> Option<OrphanedCopy> {
        Some(OrphanedCopy {
            destination_key: self.destination_key.clone()?,
            etag: copied.etag.clone(),
        })
    }

    /// Not for good: the application may be in the middle of replacing the image, and its row comes next.
    fn destination_conflict(&self, difference: &str) -> FailureCause {
        let key = self.destination_key.as_deref().unwrap_or_default();
        FailureCause {
            code: "DestinationConflict".into(),
            message: format!("another object stands at '{key}': {difference}"),
            permanent: false,
        }
    }

    fn record_settlement(&mut self, orphan: Option<OrphanedCopy>) -> Action {
        // Whatever went wrong before, the row does not ask for the move any more.
        self.failure = None;
        Action::RecordSettlement(self.row_state.take().unwrap_or(RowState::Deleted), orphan)
    }

    fn after_record(&mut self) -> Action {
        let ending = match &self.failure {
            Some(trouble) => FinalAction::Release(self.release_delay(trouble.permanent)),
            None => FinalAction::Delete,
        };
        self.end_lease(ending)
    }

    /// How long a failed message stays hidden. A permanent failure is given back at once, so that the
    /// redrive policy moves it to the dead-letter queue without delay; without such a policy it would
    /// circle at full speed, so it waits like any other.
    fn release_delay(&self, permanent: bool) -> Duration {
        if permanent && self.has_dead_letter_queue {
            Duration::ZERO
        } else {
            REDELIVERY_BACKOFF.delay_ceiling(self.receive_count)
        }
    }
}

fn destination_vanished() -> FailureCause {
    FailureCause {
        code: "DestinationVanished".into(),
        message: "the store refuses the copy because an object stands at the destination, and finds none there"
            .into(),
        permanent: false,
    }
}

fn poison_cause() -> FailureCause {
    FailureCause {
        code: "Poison".into(),
        message: String::new(),
        permanent: true,
    }
}

#[cfg(test)]
mod tests;
