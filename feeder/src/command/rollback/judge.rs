//! May a row go back?

use std::fmt;

use bucket_brigade_common::ledger::{MovedRow, SourceState, Undo};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::objects::{Inspect, Side, Stat};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::s3::S3Store;
use serde::Serialize;

use crate::command::store::{insist, is_about_one};

/// Why a row is left alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    /// The application set another path.
    Changed,
    /// The application deleted the row.
    Deleted,
    /// The application replaced the image under its new key.
    CopyReplaced,
    /// The copy is gone.
    CopyGone,
    /// The source is gone, and not by us.
    SourceGone,
    /// Clean removed the source.
    SourceRemoved,
    /// Clean was cut off while it removed the source.
    SourceInRemoval,
    /// A transaction holds the row.
    Locked,
    /// The database refuses the change.
    Refused,
    /// S3 does not let us look at one of the two objects.
    Unreadable,
    /// No move of this row is on record.
    NotMoved,
}

impl Reason {
    /// For people.
    pub(super) fn text(&self) -> &'static str {
        match self {
            Self::Changed => "the application has changed the path since",
            Self::Deleted => "the application has deleted the row",
            Self::CopyReplaced => "the application has replaced the image under its new key",
            Self::CopyGone => "the copy does not exist any more (see feeder verify)",
            Self::SourceGone => "the source does not exist any more",
            Self::SourceRemoved => "clean has removed the source: this move cannot be undone",
            Self::SourceInRemoval => {
                "clean was cut off while it removed the source: run feeder clean again, with any --older-than, to find out"
            }
            Self::Locked => "a transaction holds the row: end it and try again",
            Self::Refused => "the database refuses the change",
            Self::Unreadable => "one of its two objects cannot be looked at",
            Self::NotMoved => "no move of this row is on record",
        }
    }
}

/// A row that is left alone.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Left {
    /// The row's id.
    pub(super) id: String,
    /// The path it was given; none where no move is on record.
    pub(super) path: Option<String>,
    /// Why.
    pub(super) reason: Reason,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
}

impl Left {
    /// A row that is left alone.
    pub(super) fn new(row: &MovedRow, reason: Reason, detail: Option<String>) -> Self {
        Self {
            id: row.id.clone(),
            path: Some(row.new_path.clone()),
            reason,
            detail,
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "left alone  row {}", self.id)?;
        if let Some(path) = &self.path {
            write!(f, "  {path}")?;
        }
        write!(f, ": {}", self.reason.text())?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

/// Looks at the objects of a move.
pub(super) struct Judge<'a> {
    /// The buckets.
    pub(super) store: &'a S3Store,
    /// The path rule.
    pub(super) rule: &'a PathRule,
}

impl Judge<'_> {
    /// Whether a row may go back.
    ///
    /// # Errors
    /// The store does not answer.
    pub(super) async fn judge(&self, row: MovedRow) -> Result<Result<Undo, Left>, StoreError> {
        if let Some(reason) = by_the_database(&row) {
            return Ok(Err(Left::new(&row, reason, None)));
        }
        match self.by_the_objects(&row).await {
            Ok(Ok(destination_key)) => Ok(Ok(Undo {
                row,
                destination_key,
            })),
            Ok(Err(reason)) => Ok(Err(Left::new(&row, reason, None))),
            Err(error) if is_about_one(&error) => {
                let detail = Some(error.to_string());
                Ok(Err(Left::new(&row, Reason::Unreadable, detail)))
            }
            Err(error) => Err(error),
        }
    }

    /// The copy's key, if the copy is ours still and the source is there.
    async fn by_the_objects(&self, row: &MovedRow) -> Result<Result<String, Reason>, StoreError> {
        let Ok(route) = self.rule.route(&row.old_path) else {
            return Ok(Err(Reason::NotMoved));
        };
        let key = route.destination_key;
        let source = self.stat(Side::Source, &route.source_key).await?;
        if source.is_none() {
            return Ok(Err(Reason::SourceGone));
        }
        // The copy last: it is the one that the application may replace at any moment.
        let copy = self.stat(Side::Destination, &key).await?;
        Ok(match copy {
            None => Err(Reason::CopyGone),
            Some(copy) if copy.etag != row.etag => Err(Reason::CopyReplaced),
            Some(_) => Ok(key),
        })
    }

    /// A row that was set back and still is, with the key of its copy.
    pub(super) fn set_back(&self, row: MovedRow) -> Option<Undo> {
        let is_back = row.current_path.as_deref() == Some(&row.old_path);
        let route = self.rule.route(&row.old_path).ok().filter(|_| is_back)?;
        Some(Undo {
            row,
            destination_key: route.destination_key,
        })
    }

    /// Whether the application has replaced the copy by now.
    ///
    /// # Errors
    /// The store does not answer.
    pub(super) async fn is_replaced(&self, undo: &Undo) -> Result<bool, StoreError> {
        let copy = self.stat(Side::Destination, &undo.destination_key).await?;
        Ok(copy.is_some_and(|copy| copy.etag != undo.row.etag))
    }

    async fn stat(&self, side: Side, key: &str) -> Result<Option<Stat>, StoreError> {
        insist(async || self.store.stat(side, key).await).await
    }
}

fn by_the_database(row: &MovedRow) -> Option<Reason> {
    match (&row.current_path, row.source) {
        (None, _) => Some(Reason::Deleted),
        (Some(path), _) if *path != row.new_path => Some(Reason::Changed),
        (_, SourceState::Removed) => Some(Reason::SourceRemoved),
        (_, SourceState::InRemoval) => Some(Reason::SourceInRemoval),
        (_, SourceState::Kept) => None,
    }
}
