//! What was looked at, and what was found.

use std::fmt::Display;

use bucket_brigade_common::ledger::LedgerError;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CheckVerdict {
    /// Nothing stands in the way.
    Ok,
    /// It works, with a consequence that an operator should know.
    Warns,
    Fails,
}

#[derive(Debug, Serialize)]
pub(super) struct PlanCheck {
    pub(super) about: &'static str,
    pub(super) verdict: CheckVerdict,
    pub(super) finding: String,
    pub(super) mend: Option<String>,
}

/// In the order in which they are printed.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct PlanChecks(pub(super) Vec<PlanCheck>);

impl PlanChecks {
    pub(super) fn ok(&mut self, about: &'static str, finding: impl Into<String>) {
        self.add(about, CheckVerdict::Ok, finding.into(), None);
    }

    pub(super) fn warn(
        &mut self,
        about: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let mend = Some(mend.into());
        self.add(about, CheckVerdict::Warns, finding.into(), mend);
    }

    pub(super) fn fail(
        &mut self,
        about: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let mend = Some(mend.into());
        self.add(about, CheckVerdict::Fails, finding.into(), mend);
    }

    /// An error that says itself what to do about it.
    pub(super) fn fail_by(&mut self, about: &'static str, error: &impl Display) {
        let text = error.to_string();
        let finding = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.add(about, CheckVerdict::Fails, finding, None);
    }

    pub(super) fn fail_by_ledger(&mut self, about: &'static str, error: &LedgerError) {
        match error {
            LedgerError::NotAllowed { user, what, sql } => {
                let finding = format!("the database user '{user}' may not {what}");
                self.fail(about, finding, sql);
            }
            LedgerError::Unreachable(_) | LedgerError::TimedOut { .. } => {
                let mend = "check DATABASE_URL, the server and its connection limits, the network and the security group";
                self.fail(about, error.to_string(), mend);
            }
            other => self.fail_by(about, other),
        }
    }

    pub(super) fn count_failing(&self) -> usize {
        let fails = |check: &&PlanCheck| check.verdict == CheckVerdict::Fails;
        self.0.iter().filter(fails).count()
    }

    fn add(
        &mut self,
        about: &'static str,
        verdict: CheckVerdict,
        finding: String,
        mend: Option<String>,
    ) {
        self.0.push(PlanCheck {
            about,
            verdict,
            finding,
            mend,
        });
    }
}
