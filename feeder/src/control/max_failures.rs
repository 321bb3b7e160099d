//! A run with too many failed rows pauses itself, before more of them fail for the same reason.

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_operator::history::Operator;
use bucket_brigade_operator::pause::pause_run;

/// Who paused the run, in `feeder status`.
pub(super) const PAUSED_BY: &str = "MAX_FAILURES";

/// After a resume as many rows again may fail.
#[derive(Debug)]
pub(super) struct FailureLimit {
    max: u64,
    /// Those after which an operator has resumed, or which a run that is not paused had when the feeder began.
    accepted: Option<u64>,
    was_paused: bool,
}

impl FailureLimit {
    pub(super) fn new(max: u64) -> Self {
        Self {
            max,
            accepted: None,
            was_paused: false,
        }
    }

    /// Pauses the run where too many rows have failed.
    pub(super) async fn check(
        &mut self,
        ledger: &PostgresLedger,
        failed: u64,
        is_paused: bool,
    ) -> Result<(), StatementError> {
        let Some(reason) = self.exceeded(failed, is_paused) else {
            return Ok(());
        };
        let operator = Operator {
            by: PAUSED_BY.into(),
            reason: Some(reason.clone()),
        };
        pause_run(ledger.pool(), ledger.run_id(), &operator).await?;
        // A resume may come before the pause was heard of.
        self.was_paused = true;
        tracing::error!(
            "paused by {PAUSED_BY}: {reason}; `feeder failures` says why, `feeder resume` goes on"
        );
        Ok(())
    }

    fn exceeded(&mut self, failed: u64, is_paused: bool) -> Option<String> {
        let was_paused = std::mem::replace(&mut self.was_paused, is_paused);
        let before = match self.accepted {
            Some(accepted) if !was_paused || is_paused => accepted,
            None if is_paused => 0,
            _ => failed,
        };
        // A retry takes failures off the record.
        let accepted = before.min(failed);
        self.accepted = Some(accepted);
        let is_exceeded = !is_paused && failed - accepted > self.max;
        is_exceeded.then(|| format!("{failed} rows failed, {} may", accepted + self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or a feeder that was restarted after one would pause the run again.
    #[test]
    fn failures_of_before_are_accepted_unless_the_run_is_paused() {
        let mut limit = FailureLimit::new(2);
        assert_eq!(limit.exceeded(5, false), None);
        assert!(limit.exceeded(8, false).is_some());
        let mut limit = FailureLimit::new(2);
        assert_eq!(limit.exceeded(5, true), None);
        assert_eq!(limit.exceeded(5, false), None);
        assert!(limit.exceeded(8, false).is_some());
    }

    #[test]
    fn a_resume_allows_as_many_again() {
        let mut limit = FailureLimit::new(2);
        assert_eq!(limit.exceeded(0, false), None);
        assert_eq!(limit.exceeded(2, false), None);
        let reason = limit.exceeded(3, false);
        assert_eq!(reason.as_deref(), Some("3 rows failed, 2 may"));
        // Until the pause is heard of.
        assert!(limit.exceeded(4, false).is_some());
        assert_eq!(limit.exceeded(5, true), None);
        assert_eq!(limit.exceeded(5, false), None);
        assert_eq!(limit.exceeded(7, false), None);
        assert!(limit.exceeded(8, false).is_some());
        // Retried, they are counted anew.
        assert_eq!(limit.exceeded(0, true), None);
        assert_eq!(limit.exceeded(2, false), None);
        assert!(limit.exceeded(5, false).is_some());
    }
}
