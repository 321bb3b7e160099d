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
use bucket_brigade_common::catalog::{Orphan, Row};
use bucket_brigade_common::object_store::{Copied, Destination};
use bucket_brigade_common::path_rule::{PathRule, Route};

/// How often a commit may be skipped because somebody holds the row's lock before it counts as a
/// failure; with the waits between them about half a minute.
const MOST_SKIPPED_COMMITS: u32 = 12;

/// Waits between tries to commit a locked row.
const LOCKED: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_secs(5),
};

/// How often the object at the destination may vanish between a refused copy and the look at it. A
/// store that goes on like that refuses for another reason.
const MOST_VANISHED: u32 = 3;

/// How long a message stays hidden after a failure that may pass.
const RETRY_LATER: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_mins(5),
};

/// What stands in the row's path column, measured against what the message asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Seen {
    /// The old path: the move is still asked for.
    Wanted {
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
    Gone,
}

impl Seen {
    /// Compares a row with the route its message asked for.
    pub fn of(row: Option<Row>, route: &Route, rule: &PathRule) -> Self {
        match row {
            None => Self::Gone,
            Some(row) if row.path == route.old_path => Self::Wanted {
                failed_for_good: row.failed_for_good,
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
pub struct Trouble {
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
    Understood,
    /// It was not.
    Poison,
    /// The row was read.
    Looked(Seen),
    /// The copy was made and is proven.
    Copied(Copied),
    /// Nothing was copied: an object stands at the destination.
    DestinationTaken,
    /// What stands at the destination was compared with the source.
    Compared(Destination),
    /// The copy cannot be made, or the comparison.
    CopyFailed(Trouble),
    /// The path is set and the evidence written.
    Committed,
    /// The row did not match, or was locked.
    NotCommitted,
    /// The database refuses this row.
    CommitRefused(Trouble),
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
pub enum Step {
    /// Read the row.
    Look,
    /// Copy the object.
    Copy,
    /// Compare what stands at the destination with the source.
    Compare,
    /// Commit this copy after a wait.
    Commit(Copied, Duration),
    /// Write down that the row needs no move.
    Settle(Seen, Option<Orphan>),
    /// Write down the failure.
    Fail(Trouble),
    /// Write down the poison message.
    RecordPoison,
    /// Stop renewing the lease, and see whether it held.
    EndLease,
    /// Delete the message: the end.
    Delete,
    /// Make the message visible again after this time: the end.
    Release(Duration),
    /// Do nothing more: somebody else has the message.
    LetGo,
}

/// How a message is to leave our hands, if its lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ending {
    Delete,
    Release(Duration),
}

/// One delivery of one message on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Protocol {
    receive_count: u32,
    has_dead_letter_queue: bool,
    destination_key: Option<String>,
    copy: Option<Copied>,
    trouble: Option<Trouble>,
    seen: Option<Seen>,
    skipped_commits: u32,
    vanished: u32,
    ending: Option<Ending>,
}

impl Protocol {
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
            trouble: None,
            seen: None,
            skipped_commits: 0,
            vanished: 0,
            ending: None,
        }
    }

    /// Takes in what happened and says what to do.
    pub fn next(&mut self, event: Event) -> Step {
        match event {
            Event::Poison => {
                self.trouble = Some(poison());
                Step::RecordPoison
            }
            Event::Looked(seen) => self.after_look(seen),
            Event::Copied(copied) => self.commit(copied),
            Event::DestinationTaken => Step::Compare,
            Event::Compared(found) => self.after_compare(found),
            // The row is not ours to move any more: what could not be compared is no orphan for sure.
            Event::CopyFailed(_) if self.seen.is_some() => self.settle(None),
            Event::CopyFailed(trouble) | Event::CommitRefused(trouble) => self.failing(trouble),
            Event::Understood | Event::NotCommitted => Step::Look,
            Event::Committed => self.end(Ending::Delete),
            Event::Recorded => self.after_record(),
            Event::Interrupted => self.end(Ending::Release(Duration::ZERO)),
            Event::LeaseEnded { held } => self.after_lease(held),
        }
    }

    fn commit(&mut self, copied: Copied) -> Step {
        self.copy = Some(copied.clone());
        Step::Commit(copied, Duration::ZERO)
    }

    /// Before a failure is written down the row is read again: if it changed meanwhile, nothing failed.
    fn failing(&mut self, trouble: Trouble) -> Step {
        self.trouble = Some(trouble);
        Step::Look
    }

    fn end(&mut self, ending: Ending) -> Step {
        self.ending = Some(ending);
        Step::EndLease
    }

    /// A lost lease is never acknowledged: its message is, or will be, in other hands.
    fn after_lease(&mut self, held: bool) -> Step {
        match self.ending.take() {
            Some(Ending::Delete) if held => Step::Delete,
            Some(Ending::Release(delay)) if held => Step::Release(delay),
            _ => Step::LetGo,
        }
    }

    /// Our earlier copy is success, a stranger's object a conflict. When the row is already somebody
    /// else's, the question was whether a copy of ours has lost it.
    fn after_compare(&mut self, found: Destination) -> Step {
        if self.seen.is_some() {
            let orphan = match found {
                Destination::Same(copied) => self.orphan(&copied),
                Destination::Empty | Destination::Different(_) => None,
            };
            return self.settle(orphan);
        }
        match found {
            Destination::Same(copied) => self.commit(copied),
            Destination::Different(difference) => {
                let conflict = self.conflict(&difference);
                self.failing(conflict)
            }
            Destination::Empty => {
                self.vanished += 1;
                if self.vanished > MOST_VANISHED {
                    return self.failing(vanishing());
                }
                Step::Copy
            }
        }
    }

    fn after_look(&mut self, seen: Seen) -> Step {
        let Seen::Wanted { failed_for_good } = seen else {
            return self.not_wanted(seen);
        };
        match (&self.trouble, &self.copy) {
            (Some(trouble), _) => Step::Fail(trouble.clone()),
            (None, Some(copied)) => {
                let copied = copied.clone();
                self.commit_again(copied)
            }
            // It failed for good at an earlier delivery: the redrive policy takes it from here.
            (None, None) if failed_for_good && self.receive_count > 1 => {
                self.end(Ending::Release(self.give_back(true)))
            }
            (None, None) => Step::Copy,
        }
    }

    /// The row still holds the old path, and yet the commit did not match it: somebody has it locked,
    /// or a trigger keeps the path as it is.
    fn commit_again(&mut self, copied: Copied) -> Step {
        self.skipped_commits += 1;
        if self.skipped_commits > MOST_SKIPPED_COMMITS {
            let trouble = Trouble {
                code: "RowLocked".into(),
                message:
                    "the row stayed locked by another transaction, or a trigger undoes the change"
                        .into(),
                permanent: false,
            };
            self.trouble = Some(trouble.clone());
            return Step::Fail(trouble);
        }
        Step::Commit(copied, LOCKED.ceiling(self.skipped_commits))
    }

    /// Somebody else wrote the row. A copy of ours may have lost it: the one of this delivery, or one
    /// that an earlier delivery made before it was cut off.
    fn not_wanted(&mut self, seen: Seen) -> Step {
        let is_moved = seen == Seen::Moved;
        self.seen = Some(seen);
        match &self.copy {
            _ if is_moved => self.settle(None),
            Some(copied) => {
                let orphan = self.orphan(copied);
                self.settle(orphan)
            }
            None if self.receive_count > 1 => Step::Compare,
            None => self.settle(None),
        }
    }

    fn orphan(&self, copied: &Copied) -> Option<Orphan> {
        Some(Orphan {
            destination_key: self.destination_key.clone()?,
            etag: copied.etag.clone(),
        })
    }

    /// Not for good: the application may be in the middle of replacing the image, and its row comes next.
    fn conflict(&self, difference: &str) -> Trouble {
        let key = self.destination_key.as_deref().unwrap_or_default();
        Trouble {
            code: "DestinationConflict".into(),
            message: format!("another object stands at '{key}': {difference}"),
            permanent: false,
        }
    }

    fn settle(&mut self, orphan: Option<Orphan>) -> Step {
        // Whatever went wrong before, the row does not ask for the move any more.
        self.trouble = None;
        Step::Settle(self.seen.take().unwrap_or(Seen::Gone), orphan)
    }

    fn after_record(&mut self) -> Step {
        let ending = match &self.trouble {
            Some(trouble) => Ending::Release(self.give_back(trouble.permanent)),
            None => Ending::Delete,
        };
        self.end(ending)
    }

    /// How long a failed message stays hidden. A permanent failure is given back at once, so that the
    /// redrive policy moves it to the dead-letter queue without delay; without such a policy it would
    /// circle at full speed, so it waits like any other.
    fn give_back(&self, permanent: bool) -> Duration {
        if permanent && self.has_dead_letter_queue {
            Duration::ZERO
        } else {
            RETRY_LATER.ceiling(self.receive_count)
        }
    }
}

fn vanishing() -> Trouble {
    Trouble {
        code: "DestinationVanished".into(),
        message: "the store refuses the copy because an object stands at the destination, and finds none there"
            .into(),
        permanent: false,
    }
}

fn poison() -> Trouble {
    Trouble {
        code: "Poison".into(),
        message: String::new(),
        permanent: true,
    }
}

#[cfg(test)]
mod tests;
