//! What the looks at copy and source say of a move. Nothing here asks anybody.

use bucket_brigade_common::ledger::MovedRow;
use bucket_brigade_common::objects::Stat;

/// The source, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Removed by clean: nothing to compare with any more.
    Removed,
    /// Gone, and not by us.
    Gone,
    /// There.
    There(Stat),
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Both are as they should be.
    Sound,
    /// Something is wrong.
    Wrong(&'static str, String),
    /// The source is not what was copied.
    Changed(String),
    /// Another object stands in the copy's place.
    Replaced(String),
    /// The source was written in the second of the copy or later: the two must be compared.
    Compare,
}

/// Judges a move by the copy and the source.
///
/// Both times are S3's own, so no clock of ours is trusted; they know whole seconds only.
pub(super) fn judge(row: &MovedRow, copy: Option<&Stat>, source: &Source) -> Verdict {
    let Some(copy) = copy else {
        return Verdict::Wrong("CopyGone", "the copy does not exist".into());
    };
    if copy.etag != row.etag {
        return Verdict::Replaced(format!(
            "another object stands in the copy's place (ETag {}, recorded {})",
            copy.etag, row.etag
        ));
    }
    match row.size_bytes {
        Some(size) if size != copy.size_bytes => Verdict::Wrong(
            "SizeDiffers",
            format!("the copy has {} bytes, recorded {size}", copy.size_bytes),
        ),
        _ => against(copy, source),
    }
}

fn against(copy: &Stat, source: &Source) -> Verdict {
    match source {
        Source::Gone => Verdict::Wrong(
            "SourceGone",
            "the source does not exist any more, so this move cannot be undone".into(),
        ),
        Source::There(source) if source.size_bytes != copy.size_bytes => Verdict::Changed(format!(
            "the source has {} bytes, its copy {}",
            source.size_bytes, copy.size_bytes
        )),
        Source::There(source) if source.modified_seconds >= copy.modified_seconds => {
            Verdict::Compare
        }
        Source::There(source) if source.is_md5 && copy.is_md5 && source.etag != copy.etag => {
            Verdict::Changed("the source's bytes are not its copy's".into())
        }
        Source::There(_) | Source::Removed => Verdict::Sound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bucket_brigade_common::ledger::SourceState;

    fn row() -> MovedRow {
        MovedRow {
            id: "1".into(),
            old_path: "image/a".into(),
            new_path: "avatar/a".into(),
            etag: "copy".into(),
            size_bytes: Some(3),
            moved_micros: 0,
            current_path: Some("avatar/a".into()),
            source: SourceState::Kept,
        }
    }

    fn stat(etag: &str, size_bytes: i64, modified_seconds: i64) -> Stat {
        Stat {
            etag: etag.into(),
            size_bytes,
            modified_seconds,
            is_md5: true,
        }
    }

    fn code(copy: Option<&Stat>, source: &Source) -> &'static str {
        match judge(&row(), copy, source) {
            Verdict::Sound => "Sound",
            Verdict::Wrong(code, _) => code,
            Verdict::Changed(_) => "Changed",
            Verdict::Replaced(_) => "Replaced",
            Verdict::Compare => "Compare",
        }
    }

    #[test]
    fn the_copy_must_be_the_recorded_one() {
        let source = Source::There(stat("copy", 3, 1));
        assert_eq!(code(None, &source), "CopyGone");
        assert_eq!(code(Some(&stat("other", 3, 2)), &source), "Replaced");
        assert_eq!(code(Some(&stat("copy", 4, 2)), &source), "SizeDiffers");
        assert_eq!(code(Some(&stat("copy", 3, 2)), &source), "Sound");
    }

    #[test]
    fn the_source_must_be_what_was_copied() {
        let copy = stat("copy", 3, 10);
        let at = |source| code(Some(&copy), &Source::There(source));
        assert_eq!(at(stat("copy", 3, 9)), "Sound");
        assert_eq!(at(stat("copy", 4, 9)), "Changed");
        // In the same second nobody can tell by the time.
        assert_eq!(at(stat("copy", 3, 10)), "Compare");
        assert_eq!(at(stat("other", 3, 11)), "Compare");
        assert_eq!(at(stat("other", 3, 9)), "Changed");
        // ETags that are no MD5 prove nothing.
        let parts = Stat {
            is_md5: false,
            ..stat("other-2", 3, 9)
        };
        assert_eq!(at(parts), "Sound");
        assert_eq!(code(Some(&copy), &Source::Gone), "SourceGone");
        assert_eq!(code(Some(&copy), &Source::Removed), "Sound");
    }
}
