//! What was looked at, and what was found.

use bucket_brigade_common::ledger::LedgerError;
use bucket_brigade_common::preflight::PreflightError;
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CheckVerdict {
    /// Nothing stands in the way.
    Ok,
    /// It works, with a consequence that an operator should know.
    Warns,
    Fails,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct PlanCheck {
    pub(super) about: &'static str,
    pub(super) verdict: CheckVerdict,
    pub(super) finding: String,
    /// What to do about it.
    pub(super) mend: Option<String>,
}

impl PlanCheck {
    pub(super) fn new_ok(about: &'static str, finding: impl Into<String>) -> Self {
        Self {
            about,
            verdict: CheckVerdict::Ok,
            finding: finding.into(),
            mend: None,
        }
    }

    pub(super) fn new_warning(
        about: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            about,
            verdict: CheckVerdict::Warns,
            finding: finding.into(),
            mend: Some(mend.into()),
        }
    }

    pub(super) fn new_failure(
        about: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            about,
            verdict: CheckVerdict::Fails,
            finding: finding.into(),
            mend: Some(mend.into()),
        }
    }

    /// An error that names its culprit and, where there is one, the mend.
    pub(super) fn from_ledger_error(about: &'static str, error: &LedgerError) -> Self {
        match error {
            LedgerError::NotAllowed { user, what, sql } => Self::new_failure(
                about,
                format!("the database user '{user}' may not {what}"),
                sql.clone(),
            ),
            other => Self {
                about,
                verdict: CheckVerdict::Fails,
                finding: other.to_string(),
                mend: None,
            },
        }
    }

    pub(super) fn from_preflight_error(about: &'static str, error: &PreflightError) -> Self {
        Self {
            about,
            verdict: CheckVerdict::Fails,
            finding: error.to_string(),
            mend: None,
        }
    }
}
