//! A verification: what it is asked for, where it is, and what it found.

/// What a verification is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VerificationSpec {
    /// The share of the rows to look at, in percent.
    pub sample_percent: f64,
    /// Whether every row of the table is looked at too.
    pub is_full: bool,
    /// Whether copies are made anew where the source has changed.
    pub recopies: bool,
}

/// The place of a verification, and its numbers so far.
#[derive(Debug, Clone, PartialEq)]
pub struct VerificationState {
    /// What it was asked for.
    pub spec: VerificationSpec,
    /// Which rows are in the sample.
    pub seed: i64,
    /// Whether the moves are done and the table's rows are looked at.
    pub is_in_table: bool,
    /// The last row that was looked at; none at a beginning.
    pub cursor: Option<String>,
    /// Whether an earlier process began it.
    pub is_resumed: bool,
}

/// The numbers of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct VerificationCounts {
    /// Moves looked at.
    pub checked: i64,
    /// Moves whose objects are as they should be.
    pub sound: i64,
    /// Moves whose row the application has changed or deleted since.
    pub outdated: i64,
    /// Copies made anew.
    pub recopied: i64,
    /// Rows of the table that were looked at.
    pub table_rows: i64,
    /// Of these, rows whose path is outside the path rule.
    pub table_outside: i64,
}

/// What was found of one move.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerificationFinding {
    /// Whether both objects are as they should be.
    pub is_intact: bool,
    /// Whether the application has changed or deleted the row.
    pub is_outdated: bool,
    /// The source's ETag.
    pub source_etag: Option<String>,
    /// The copy's size in bytes.
    pub size_bytes: Option<i64>,
    /// The copy's ETag when it was made anew.
    pub new_etag: Option<String>,
    /// What is wrong: a code, and a sentence.
    pub mismatch: Option<(&'static str, String)>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VerificationMismatch {
    /// The row's id.
    pub id: String,
    /// The row's path.
    pub path: String,
    /// What kind of thing is wrong.
    pub code: String,
    /// What is wrong.
    pub message: String,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRow {
    /// The row's id.
    pub id: String,
    /// Its path; null reads as empty.
    pub path: String,
    /// Whether it is in the sample and this verification has not found its object already.
    pub needs_check: bool,
}
