//! What happens to a message, and what is done next.

use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::OrphanedCopy;
use bucket_brigade_common::object_store::{CopiedObject, DestinationState};

use super::{FailureCause, RowState};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    Decoded,
    /// The message was not understood.
    Poison,
    /// The message is of a run that other consumers serve.
    OtherRun,
    RowRead(RowState),
    /// The database refuses to read this row.
    RowUnreadable(FailureCause),
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
    /// A settlement, a failure or a poison message is in the ledger.
    Recorded,
    DeadLetterSent {
        /// False when the dead-letter queue may not have it.
        confirmed: bool,
    },
    /// The redrive policy names a queue that is not there.
    DeadLetterQueueMissing,
    /// The process is stopping, and what was waited for did not come.
    Interrupted,
    /// The renewals have ended. Whether the lease held to this moment.
    LeaseEnded {
        /// False when it ran out.
        held: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    ReadRow,
    Copy,
    /// Compare what stands at the destination with the source.
    Compare,
    /// Commit this copy after a wait.
    Commit(CopiedObject, Duration),
    /// Record that the row needs no move.
    RecordSettlement(RowState, Option<OrphanedCopy>),
    RecordFailure(FailureCause, Option<OrphanedCopy>),
    RecordPoison,
    SendDeadLetter,
    /// Stop renewing the lease, and see whether it held.
    EndLease,
    /// Delete the message: the end.
    Delete,
    /// Make the message visible again after this time: the end.
    Release(Duration),
    /// Do nothing more: another consumer has the message, or will have it.
    Abandon,
}
