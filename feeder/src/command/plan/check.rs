//! What was looked at, and what was found.

use bucket_brigade_common::ledger::LedgerError;
use bucket_brigade_common::preflight::PreflightError;
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Nothing stands in the way.
    Ok,
    /// It works, but somebody should know.
    Warns,
    /// It would fail.
    Fails,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    pub(super) about: &'static str,
    pub(super) verdict: Verdict,
    pub(super) finding: String,
    /// What to do about it.
    pub(super) mend: Option<String>,
}

impl Check {
    pub(super) fn good(about: &'static str, finding: impl Into<String>) -> Self {
        Self {
            about,
            verdict: Verdict::Ok,
            finding: finding.into(),
            mend: None,
        }
    }

    pub(super) fn warns(
        about: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            about,
            verdict: Verdict::Warns,
            finding: finding.into(),
            mend: Some(mend.into()),
        }
    }

    pub(super) fn fails(
        about: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            about,
            verdict: Verdict::Fails,
            finding: finding.into(),
            mend: Some(mend.into()),
        }
    }

    /// An error that names its culprit and, where there is one, the mend.
    pub(super) fn of_ledger(about: &'static str, error: &LedgerError) -> Self {
        match error {
            LedgerError::NotAllowed { user, what, sql } => Self::fails(
                about,
                format!("the database user '{user}' may not {what}"),
                sql.clone(),
            ),
            other => Self {
                about,
                verdict: Verdict::Fails,
                finding: other.to_string(),
                mend: None,
            },
        }
    }

    pub(super) fn of_preflight(about: &'static str, error: &PreflightError) -> Self {
        Self {
            about,
            verdict: Verdict::Fails,
            finding: error.to_string(),
            mend: None,
        }
    }
}
