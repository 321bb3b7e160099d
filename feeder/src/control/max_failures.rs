//! A run with too many failed rows pauses itself, before more of them fail for the same reason: with more than
//! `MAX_FAILURES`, and with its first thousand rows, where no row has moved.

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_operator::history::Operator;
use bucket_brigade_operator::pause::pause_run;

/// Who paused the run, in `feeder status`.
pub(super) const PAUSED_BY: &str = "MAX_FAILURES";

/// A wrong bucket, prefix or right fails all rows alike. Fewer may be the oldest of a table, whose objects are lost.
const MAX_FIRST_FAILURES: u64 = 1000;

/// After a resume as many rows again may fail.
#[derive(Debug)]
pub(super) struct FailureLimit {
    max: Option<u64>,
    /// Those after which an operator has resumed, or which a run that is not paused had when the feeder began.
    accepted: Option<u64>,
    was_paused: bool,
}

impl FailureLimit {
    pub(super) fn new(max: Option<u64>) -> Self {
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
        progress: &RunProgress,
        is_paused: bool,
    ) -> Result<(), StatementError> {
        let Some(reason) = self.exceeded(progress, is_paused) else {
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

    fn exceeded(&mut self, progress: &RunProgress, is_paused: bool) -> Option<String> {
        let RunProgress { failed, moved, .. } = *progress;
        let was_paused = std::mem::replace(&mut self.was_paused, is_paused);
        let before = match self.accepted {
            Some(accepted) if !was_paused || is_paused => accepted,
            None if is_paused => 0,
            _ => failed,
        };
        // A retry takes failures off the record.
        let accepted = before.min(failed);
        self.accepted = Some(accepted);
        let is_first = accepted == 0 && moved == 0;
        let max = self.max.or(is_first.then_some(MAX_FIRST_FAILURES))?;
        let is_exceeded = !is_paused && failed - accepted > max;
        is_exceeded.then(|| match self.max {
            Some(max) => format!("{failed} rows failed, {} may", accepted + max),
            None => format!("the first {failed} rows failed, and none has moved"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl FailureLimit {
        fn exceeded_by(&mut self, failed: u64, is_paused: bool) -> Option<String> {
            let progress = RunProgress {
                failed,
                moved: 1,
                ..RunProgress::default()
            };
            self.exceeded(&progress, is_paused)
        }
    }

    #[test]
    fn a_run_whose_first_rows_all_fail_pauses_once() {
        let mut limit = FailureLimit::new(None);
        let mut exceeded = |failed, moved, is_paused| {
            let progress = RunProgress {
                failed,
                moved,
                ..RunProgress::default()
            };
            limit.exceeded(&progress, is_paused)
        };
        assert_eq!(exceeded(0, 0, false), None);
        assert_eq!(exceeded(1000, 0, false), None);
        assert_eq!(exceeded(1001, 1, false), None);
        let reason = exceeded(1001, 0, false);
        assert_eq!(
            reason.as_deref(),
            Some("the first 1001 rows failed, and none has moved")
        );
        assert_eq!(exceeded(1001, 0, true), None);
        assert_eq!(exceeded(1001, 0, false), None);
        assert_eq!(exceeded(5000, 0, false), None);
    }

    /// Or a feeder that was restarted after one would pause the run again.
    #[test]
    fn failures_of_before_are_accepted_unless_the_run_is_paused() {
        let mut limit = FailureLimit::new(Some(2));
        assert_eq!(limit.exceeded_by(5, false), None);
        assert!(limit.exceeded_by(8, false).is_some());
        let mut limit = FailureLimit::new(Some(2));
        assert_eq!(limit.exceeded_by(5, true), None);
        assert_eq!(limit.exceeded_by(5, false), None);
        assert!(limit.exceeded_by(8, false).is_some());
    }

    #[test]
    fn a_resume_allows_as_many_again() {
        let mut limit = FailureLimit::new(Some(2));
        assert_eq!(limit.exceeded_by(0, false), None);
        assert_eq!(limit.exceeded_by(2, false), None);
        let reason = limit.exceeded_by(3, false);
        assert_eq!(reason.as_deref(), Some("3 rows failed, 2 may"));
        // Until the pause is heard of.
        assert!(limit.exceeded_by(4, false).is_some());
        assert_eq!(limit.exceeded_by(5, true), None);
        assert_eq!(limit.exceeded_by(5, false), None);
        assert_eq!(limit.exceeded_by(7, false), None);
        assert!(limit.exceeded_by(8, false).is_some());
        // Retried, they are counted anew.
        assert_eq!(limit.exceeded_by(0, true), None);
        assert_eq!(limit.exceeded_by(2, false), None);
        assert!(limit.exceeded_by(5, false).is_some());
    }
}
