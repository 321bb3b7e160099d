//! What consumers ask of the database, as a trait of only those calls.
//!
//! The production implementation is the [ledger](crate::ledger); every call takes a batch, so that
//! a statement serves many messages.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use thiserror::Error;

use crate::companions::CompanionCopies;
use crate::retry::TransientError;
use crate::row_id::RowId;

/// What the database holds for a row that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentRow {
    /// The path column's value; null reads as empty, which no rule has in scope.
    pub path: String,
    /// Whether the ledger holds a permanent failure for this row at this path.
    pub has_permanent_failure: bool,
    /// The ETag of the copy that was made for this path before, when the row was moved or its source removed.
    pub copy_etag: Option<String>,
    /// The run's.
    pub fence: i64,
}

/// A proven copy, ready to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMove {
    pub id: RowId,
    /// The path it must still hold: the compare of the compare-and-set.
    pub old_path: String,
    pub new_path: String,
    /// The copy's key in the destination bucket.
    pub destination_key: String,
    /// The copy's ETag as S3 gave it, without quotes.
    pub etag: String,
    pub size_bytes: Option<i64>,
    /// Whether there was no source any more: the row was set back to a path whose image had moved.
    pub is_source_gone: bool,
    /// Whether the copy was there already: another delivery's, or the application's.
    pub is_found: bool,
    pub companions: CompanionCopies,
    /// The message's.
    pub fence: i64,
}

/// A copy of ours that has lost its row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OrphanedCopy {
    pub destination_key: String,
    /// A later removal removes only this version.
    pub etag: String,
}

/// A row that needs no move any more, because the application wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedRow {
    pub id: RowId,
    /// The path it was fed with.
    pub old_path: String,
    /// The path it would have got.
    pub new_path: String,
    /// The path it has now; none when it was deleted.
    pub found_path: Option<String>,
    /// Whether this is the row's end. False when it holds another path under the old prefix: that
    /// path is fed, and counted, on its own.
    pub is_final: bool,
    /// Our copy, when one was made for the old path.
    pub orphan: Option<OrphanedCopy>,
}

/// A row that could not be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveFailure {
    pub id: RowId,
    /// The path it was fed with.
    pub path: String,
    /// A short code: S3's own where there is one.
    pub code: String,
    /// What happened, for a person.
    pub message: String,
    /// Whether trying again unchanged is pointless.
    pub permanent: bool,
    /// Our copy, when one was made: no row names it until the row is moved after all.
    pub orphan: Option<OrphanedCopy>,
}

/// A message that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoisonRecord {
    /// The queue's id of the message.
    pub message_id: String,
    pub reason: String,
    /// The first characters of its body.
    pub excerpt: String,
}

/// Why a statement did nothing.
#[derive(Debug, Clone, Error)]
pub enum StatementError {
    /// The data itself was refused (a constraint, a length, a trigger): the batch holds a culprit.
    #[error("the database refused the row ({code}): {message}")]
    Rejected { code: String, message: String },
    /// One row may be the cause, or the statement itself: the same statement without rows tells.
    #[error("the database cannot be used ({code}): {message}")]
    Suspect { code: String, message: String },
    /// The database cannot do it now; the same call may succeed later.
    #[error("the database cannot be used: {0}")]
    Unavailable(String),
}

impl StatementError {
    /// Whether a right is missing (`insufficient_privilege`).
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Suspect { code, .. } if code == "42501")
    }
}

impl TransientError for StatementError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// The database as consumers see it.
#[async_trait]
pub trait MoveLedger: Send + Sync {
    /// Reads rows. An id without a row is absent from the result.
    async fn read_rows(&self, ids: &[RowId]) -> Result<HashMap<RowId, CurrentRow>, StatementError>;

    /// Old paths of a few rows that moved, and of the last that are to: where any object of the source can be copied,
    /// some of these can.
    async fn list_sample_paths(&self) -> Result<Vec<String>, StatementError> {
        Ok(Vec::new())
    }

    /// Sets the path and writes the evidence, in one statement, for each row that still holds its
    /// old path and is not locked by another session; for none where a move's fence is below the run's. Returns
    /// the ids that moved. Ids must be distinct.
    async fn commit(&self, moves: &[&PendingMove]) -> Result<HashSet<RowId>, StatementError>;

    /// Records rows that need no move any more. Rows that the ledger holds as moved stay moved.
    async fn record_changed_rows(&self, settlements: &[ChangedRow]) -> Result<(), StatementError>;

    /// Records failures, once per row.
    async fn record_failures(&self, failures: &[MoveFailure]) -> Result<(), StatementError>;

    /// Records poison messages, once per message.
    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), StatementError>;
}
