//! May a row go back?

use std::fmt;

use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_common::printable::printable;
use serde::Serialize;

use super::queries::{UncheckedRow, UndoTarget};
use crate::move_verdict::{MoveVerdict, SourceObject, classify_move};
use crate::moved_row::{MovedRow, recorded_companions};
use crate::retrying_store::{is_object_error, retry_about_object, stat_object};

/// What an upload takes that had begun before, and the difference of two clocks.
const LATE_WRITE_SECONDS: i64 = 60;

/// Why a row is left alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SkipReason {
    Changed,
    Deleted,
    CopyReplaced,
    CopyGone,
    SourceGone,
    SourceChanged,
    CompanionGone,
    CompanionChanged,
    CompanionReplaced,
    SourceRemoved,
    SourceInRemoval,
    Locked,
    Refused,
    Unreadable,
    NotMoved,
}

impl SkipReason {
    pub(super) fn as_text(&self) -> &'static str {
        match self {
            Self::Changed => "the application has changed the path since",
            Self::Deleted => "the application has deleted the row",
            Self::CopyReplaced => "the application has replaced the image under its new key",
            Self::CopyGone => {
                "the copy does not exist any more (feeder verify --recopy makes it anew)"
            }
            Self::SourceGone => "the source does not exist any more",
            Self::SourceChanged => {
                "the source holds other bytes than its copy: a newer version (feeder verify --recopy copies it), or another image"
            }
            Self::CompanionChanged => "a companion's source holds other bytes than its copy",
            Self::CompanionGone => "a companion's source does not exist any more",
            Self::CompanionReplaced => "the application has replaced a companion under its new key",
            Self::SourceRemoved => "clean has removed the source: this move cannot be undone",
            Self::SourceInRemoval => {
                "clean was cut off while it removed the source, or had no response: in half an hour run feeder clean again, with any --older-than, to find out"
            }
            Self::Locked => {
                "a transaction holds the row, or a trigger undoes the change: end the one or correct the other, and try again"
            }
            Self::Refused => "the database refuses the change",
            Self::Unreadable => "one of its two objects cannot be looked at",
            Self::NotMoved => "no move of this row is on record",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct SkippedRow {
    pub(super) id: String,
    /// The path it was given; none where no move is on record.
    pub(super) path: Option<String>,
    pub(super) reason: SkipReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
}

impl SkippedRow {
    pub(super) fn new(row: &MovedRow, reason: SkipReason, detail: Option<String>) -> Self {
        Self {
            id: row.id.clone(),
            path: Some(row.new_path.clone()),
            reason,
            detail,
        }
    }
}

impl fmt::Display for SkippedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "left alone  row {}", printable(&self.id))?;
        if let Some(path) = &self.path {
            write!(f, "  {}", printable(path))?;
        }
        write!(f, ": {}", self.reason.as_text())?;
        match &self.detail {
            Some(detail) => write!(f, " ({})", printable(detail)),
            None => Ok(()),
        }
    }
}

pub(super) struct UndoClassifier<'a> {
    pub(super) store: &'a S3Store,
    pub(super) rule: &'a PathRule,
    /// Whether the dates of source and copy are of one clock.
    pub(super) is_one_store: bool,
}

impl UndoClassifier<'_> {
    pub(super) async fn classify_row(
        &self,
        row: MovedRow,
    ) -> Result<Result<UndoTarget, SkippedRow>, StoreError> {
        if let Some(reason) = check_row(&row) {
            return Ok(Err(SkippedRow::new(&row, reason, None)));
        }
        let (reason, detail) = match self.check_objects(&row).await {
            Ok(Ok(destination_key)) => {
                return Ok(Ok(UndoTarget {
                    row,
                    destination_key,
                    undone_at: None,
                }));
            }
            Ok(Err(reason)) => (reason, None),
            Err(error) if is_object_error(&error) => {
                (SkipReason::Unreadable, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        Ok(Err(SkippedRow::new(&row, reason, detail)))
    }

    /// The copy's key, if the copy is ours still and the source holds what was copied.
    async fn check_objects(
        &self,
        row: &MovedRow,
    ) -> Result<Result<String, SkipReason>, StoreError> {
        let Ok(route) = self.rule.route_for(&row.old_path) else {
            return Ok(Err(SkipReason::NotMoved));
        };
        for (companion, etag) in recorded_companions(self.rule, row) {
            let companion_move = row.of_companion(etag);
            let reason = match self.check_object(&companion_move, &companion.route).await? {
                // One that is gone is no loss at the old path.
                None | Some(SkipReason::CopyGone) => continue,
                Some(SkipReason::SourceGone) => SkipReason::CompanionGone,
                Some(SkipReason::SourceChanged) => SkipReason::CompanionChanged,
                Some(_) => SkipReason::CompanionReplaced,
            };
            return Ok(Err(reason));
        }
        // The copy last: it is the one that the application may replace at any moment.
        let reason = self.check_object(row, &route).await?;
        Ok(reason.map_or(Ok(route.destination_key), Err))
    }

    /// What would be missing at the old path, or lost at the new one.
    async fn check_object(
        &self,
        row: &MovedRow,
        route: &MoveRoute,
    ) -> Result<Option<SkipReason>, StoreError> {
        let stat = async |side, key| stat_object(self.store, side, key).await;
        let Some(source) = stat(BucketSide::Source, &route.source_key).await? else {
            return Ok(Some(SkipReason::SourceGone));
        };
        let Some(copy) = stat(BucketSide::Destination, &route.destination_key).await? else {
            return Ok(Some(SkipReason::CopyGone));
        };
        if copy.etag != row.etag {
            return Ok(Some(SkipReason::CopyReplaced));
        }
        // Equal ETags prove equal bytes, also where the dates are of two clocks.
        let is_proven = source.etag == copy.etag || row.source_etag.as_ref() == Some(&source.etag);
        let source = SourceObject::Present(source);
        let is_same = match classify_move(row, Some(&copy), &source, self.is_one_store) {
            MoveVerdict::Intact => true,
            MoveVerdict::NeedsComparison if is_proven => true,
            MoveVerdict::NeedsComparison => {
                let compare = async || self.store.has_equal_bytes(route).await;
                retry_about_object(self.store, route, compare).await?
            }
            _ => false,
        };
        Ok((!is_same).then_some(SkipReason::SourceChanged))
    }

    /// A row that was set back and still is, with the key of its copy.
    pub(super) fn as_undone(&self, unchecked: UncheckedRow) -> Option<UndoTarget> {
        let UncheckedRow { row, undone_at } = unchecked;
        let is_back = row.current_path.as_deref() == Some(&row.old_path);
        let route = self.rule.route_for(&row.old_path).ok();
        Some(UndoTarget {
            destination_key: route.filter(|_| is_back)?.destination_key,
            row,
            undone_at: Some(undone_at),
        })
    }

    /// Whether the application has replaced the copy while the row was set back. What was written later, when the row
    /// named the copy no more, is another row's.
    pub(super) async fn is_copy_replaced(&self, undo: &UndoTarget) -> Result<bool, StoreError> {
        let copy = stat_object(self.store, BucketSide::Destination, &undo.destination_key).await?;
        Ok(copy.is_some_and(|copy| {
            let times = undo.undone_at.zip(copy.modified_seconds);
            let is_later =
                times.is_some_and(|(undone, modified)| modified > undone + LATE_WRITE_SECONDS);
            copy.etag != undo.row.etag && !is_later
        }))
    }
}

fn check_row(row: &MovedRow) -> Option<SkipReason> {
    match &row.current_path {
        None => Some(SkipReason::Deleted),
        Some(path) if *path != row.new_path => Some(SkipReason::Changed),
        _ if row.is_source_removed => Some(SkipReason::SourceRemoved),
        _ if row.is_source_in_removal => Some(SkipReason::SourceInRemoval),
        _ => None,
    }
}
