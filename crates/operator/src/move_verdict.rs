//! What two HEADs say of a move. Nothing here makes a request.

use bucket_brigade_common::object_store::objects::ObjectStat;

use crate::moved_row::MovedRow;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceObject {
    /// Removed by clean: nothing to compare with any more.
    Removed,
    /// Removed by clean, and something stands there again.
    Rewritten,
    /// Gone, and not by us.
    Missing,
    Present(ObjectStat),
}

impl SourceObject {
    pub(crate) fn stat(&self) -> Option<&ObjectStat> {
        match self {
            Self::Present(stat) => Some(stat),
            Self::Removed | Self::Rewritten | Self::Missing => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MoveVerdict {
    Intact,
    Mismatch(&'static str, String),
    SourceChanged(String),
    /// Another object stands in the copy's place: the application has replaced the image.
    CopyReplaced,
    /// The source was written in the second of the copy or later, or may have been: the two must be
    /// compared.
    NeedsComparison,
}

/// Classifies a move by the copy and the source.
///
/// No clock of ours is trusted: both times are the store's, or unknown, and those of two stores are not compared.
/// They know whole seconds only.
pub(crate) fn classify_move(
    row: &MovedRow,
    copy: Option<&ObjectStat>,
    source: &SourceObject,
    is_one_store: bool,
) -> MoveVerdict {
    let Some(copy) = copy else {
        return MoveVerdict::Mismatch("CopyGone", "the copy does not exist".into());
    };
    if copy.etag != row.etag {
        return MoveVerdict::CopyReplaced;
    }
    match row.size_bytes {
        Some(size) if size != copy.size_bytes => MoveVerdict::Mismatch(
            "SizeDiffers",
            format!("the copy has {} bytes, recorded {size}", copy.size_bytes),
        ),
        _ => compare_with_source(copy, source, is_one_store),
    }
}

fn compare_with_source(
    copy: &ObjectStat,
    source: &SourceObject,
    is_one_store: bool,
) -> MoveVerdict {
    match source {
        SourceObject::Rewritten => MoveVerdict::Mismatch(
            "SourceRewritten",
            "clean has removed the source, and an object was written there since: a newer version of this image, or another's".into(),
        ),
        SourceObject::Missing => MoveVerdict::Mismatch(
            "SourceGone",
            "the source does not exist any more, so this move cannot be undone".into(),
        ),
        SourceObject::Present(source) if source.size_bytes != copy.size_bytes => {
            MoveVerdict::SourceChanged(format!(
                "the source has {} bytes, its copy {}",
                source.size_bytes, copy.size_bytes
            ))
        }
        SourceObject::Present(source) if !(is_one_store && is_older(source, copy)) => {
            MoveVerdict::NeedsComparison
        }
        SourceObject::Present(source)
            if source.is_md5 && copy.is_md5 && source.etag != copy.etag =>
        {
            MoveVerdict::SourceChanged("the source's bytes are not its copy's".into())
        }
        // An upload in parts bears the time of its beginning: it may have ended after the copy.
        SourceObject::Present(source) if !source.is_md5 && source.etag != copy.etag => {
            MoveVerdict::NeedsComparison
        }
        SourceObject::Present(_) | SourceObject::Removed => MoveVerdict::Intact,
    }
}

/// Whether a date proves it.
fn is_older(source: &ObjectStat, copy: &ObjectStat) -> bool {
    let dates = source.modified_seconds.zip(copy.modified_seconds);
    dates.is_some_and(|(source, copy)| source < copy)
}

/// How much later than the source's last write a row must have moved: S3's clock and the database's differ, and a
/// copy is made before its row moves.
const CLOCK_TOLERANCE_SECONDS: i64 = 15 * 60;

/// Whether a source is what was copied, where the copy cannot tell any more. The same ETag proves it. So does a date
/// well before the move, but not that of an upload in parts, which is of its beginning.
pub(crate) fn is_source_unchanged(
    row: &MovedRow,
    source: &SourceObject,
    is_one_store: bool,
) -> bool {
    let SourceObject::Present(source) = source else {
        return false;
    };
    let moved_seconds = row.moved_micros / 1_000_000;
    let is_older = source
        .modified_seconds
        .is_some_and(|at| at + CLOCK_TOLERANCE_SECONDS < moved_seconds);
    let is_same_size = row.size_bytes.is_none_or(|size| size == source.size_bytes);
    source.etag == row.etag
        || (is_one_store && is_older && is_same_size && !source.etag.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moved_row::RecordedCompanions;

    fn row() -> MovedRow {
        MovedRow {
            id: "1".into(),
            old_path: "image/a".into(),
            new_path: "avatar/a".into(),
            etag: "copy".into(),
            size_bytes: Some(3),
            moved_micros: 0,
            current_path: Some("avatar/a".into()),
            is_source_removed: false,
            is_source_in_removal: false,
            is_found: false,
            source_etag: None,
            is_companion: false,
            companions: RecordedCompanions::default(),
        }
    }

    fn stat(etag: &str, size_bytes: i64, modified_seconds: i64) -> ObjectStat {
        ObjectStat {
            unreadable_header: None,
            etag: etag.into(),
            size_bytes,
            modified_seconds: Some(modified_seconds),
            is_md5: true,
        }
    }

    fn code(copy: Option<&ObjectStat>, source: &SourceObject) -> &'static str {
        match classify_move(&row(), copy, source, true) {
            MoveVerdict::Intact => "Intact",
            MoveVerdict::Mismatch(code, _) => code,
            MoveVerdict::SourceChanged(_) => "Changed",
            MoveVerdict::CopyReplaced => "Replaced",
            MoveVerdict::NeedsComparison => "Compare",
        }
    }

    #[test]
    fn the_copy_must_be_the_recorded_one() {
        let source = SourceObject::Present(stat("copy", 3, 1));
        assert_eq!(code(None, &source), "CopyGone");
        assert_eq!(code(Some(&stat("other", 3, 2)), &source), "Replaced");
        assert_eq!(code(Some(&stat("copy", 4, 2)), &source), "SizeDiffers");
        assert_eq!(code(Some(&stat("copy", 3, 2)), &source), "Intact");
    }

    #[test]
    fn the_source_must_be_what_was_copied() {
        let copy = stat("copy", 3, 10);
        let at = |source| code(Some(&copy), &SourceObject::Present(source));
        assert_eq!(at(stat("copy", 3, 9)), "Intact");
        assert_eq!(at(stat("copy", 4, 9)), "Changed");
        // In the same second the time decides nothing.
        assert_eq!(at(stat("copy", 3, 10)), "Compare");
        assert_eq!(at(stat("other", 3, 11)), "Compare");
        assert_eq!(at(stat("other", 3, 9)), "Changed");
        // ETags that are no MD5 prove nothing, nor does the date of an upload in parts.
        let parts = |etag| ObjectStat {
            is_md5: false,
            ..stat(etag, 3, 9)
        };
        assert_eq!(at(parts("other-2")), "Compare");
        assert_eq!(at(parts("copy")), "Intact");
        let older = SourceObject::Present(stat("copy", 3, 9));
        assert!(matches!(
            classify_move(&row(), Some(&copy), &older, false),
            MoveVerdict::NeedsComparison
        ));
        let undated = ObjectStat {
            modified_seconds: None,
            ..stat("copy", 3, 9)
        };
        assert_eq!(at(undated), "Compare");
        assert_eq!(code(Some(&copy), &SourceObject::Missing), "SourceGone");
        assert_eq!(code(Some(&copy), &SourceObject::Removed), "Intact");
        let rewritten = code(Some(&copy), &SourceObject::Rewritten);
        assert_eq!(rewritten, "SourceRewritten");
    }

    #[test]
    fn a_source_without_its_copy_is_unchanged_by_its_etag_or_its_date() {
        let mut row = row();
        row.moved_micros = 10_000 * 1_000_000;
        let at = |source, is_one_store| {
            is_source_unchanged(&row, &SourceObject::Present(source), is_one_store)
        };
        let of = |source| at(source, true);
        assert!(of(stat("copy", 3, 20_000)));
        assert!(of(stat("kms", 3, 1_000)));
        assert!(!of(stat("kms", 3, 9_900)), "clocks differ");
        assert!(!of(stat("kms", 4, 1_000)));
        assert!(!of(stat("parts-2", 3, 1_000)));
        assert!(!at(stat("kms", 3, 1_000), false), "of another clock");
        assert!(at(stat("copy", 3, 20_000), false));
        assert!(!is_source_unchanged(&row, &SourceObject::Missing, true));
        assert!(!is_source_unchanged(&row, &SourceObject::Removed, true));
    }
}
