//! A verification: what it is asked for, how far it is, and what it found.

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct VerificationSpec {
    pub(super) sample_percent: f64,
    pub(super) is_full: bool,
    pub(super) recopies: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct VerificationState {
    pub(super) spec: VerificationSpec,
    /// Which rows are in the sample.
    pub(super) seed: i64,
    /// Whether the moves are done and the table's rows are checked.
    pub(super) is_in_table: bool,
    /// The last row that was checked; none at a beginning.
    pub(super) cursor: Option<String>,
    /// Whether an earlier process began it.
    pub(super) is_resumed: bool,
}

impl VerificationState {
    pub(super) fn includes_row(&self, id: &str) -> bool {
        let percent = self.spec.sample_percent;
        bucket_brigade_common::sample::includes_id(id, self.seed.cast_unsigned(), percent)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::FromRow)]
pub(super) struct VerificationCounts {
    pub(super) checked: i64,
    /// Moves whose objects are as they should be.
    #[serde(rename = "sound")]
    #[sqlx(rename = "sound")]
    pub(super) intact: i64,
    /// Moves whose row the application has changed or deleted since, or whose image it has replaced.
    pub(super) outdated: i64,
    pub(super) recopied: i64,
    pub(super) table_rows: i64,
    /// Of these, rows whose path is outside the path rule.
    pub(super) table_outside: i64,
}

/// What is wrong: a code, and a sentence.
pub(super) type Mismatch = (&'static str, String);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct VerificationFinding {
    /// Whether both objects are as they should be.
    pub(super) is_intact: bool,
    /// Whether the application has changed or deleted the row, or replaced its image.
    pub(super) is_outdated: bool,
    pub(super) source_etag: Option<String>,
    /// Whether the source is what was copied, by what it says itself.
    pub(super) is_source_unchanged: bool,
    pub(super) size_bytes: Option<i64>,
    pub(super) new_etag: Option<String>,
    pub(super) mismatch: Option<Mismatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, sqlx::FromRow)]
pub(super) struct VerificationMismatch {
    #[sqlx(rename = "row_id")]
    pub(super) id: String,
    pub(super) path: String,
    pub(super) code: String,
    pub(super) message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct TableRow {
    pub(super) id: String,
    /// Null reads as empty.
    pub(super) path: String,
    /// Whether it has the old prefix, and the run's filter leaves it there.
    pub(super) is_left_out: bool,
    /// Whether this verification has checked the object already, by its move.
    pub(super) is_checked: bool,
    /// Why the server does not read it.
    #[sqlx(skip)]
    pub(super) unreadable: Option<String>,
}
