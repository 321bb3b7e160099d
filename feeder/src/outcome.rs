//! How the feeding ended, for the log and as an exit code.

use bucket_brigade_common::empty_scope::EmptyScope;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::printable::counted;

use crate::retry::FeederStopped;

/// Of failures, the most frequent.
const MAX_CODES: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedOutcome {
    pub progress: RunProgress,
    pub failures: Vec<(String, u64)>,
    /// Rows that can neither be fed nor recorded as failed.
    pub unrecorded: u64,
    /// Only a part of the rows was fed.
    pub is_canary: bool,
    /// Why no row was ever in scope; none where some were.
    pub empty_scope: Option<EmptyScope>,
}

/// Logs how it ended and what to do next, and returns the exit code.
pub fn log_summary(outcome: Result<FeedOutcome, FeederStopped>) -> u8 {
    let Ok(outcome) = outcome else {
        tracing::info!("stopped before the end; starting the feeder again goes on from here");
        return exit::STOPPED;
    };
    outcome.log_counts();
    if let Some(why) = &outcome.empty_scope {
        return log_empty_scope(why);
    }
    tracing::info!("next: {}", outcome.next_step());
    if outcome.progress.failed > 0 || outcome.unrecorded > 0 {
        exit::ROWS_FAILED
    } else {
        exit::DONE
    }
}

/// An empty table has nothing to move, and no setting at fault.
fn log_empty_scope(why: &EmptyScope) -> u8 {
    if let EmptyScope::OtherPaths(_) | EmptyScope::LeftOut(_) = why {
        tracing::error!("nothing was moved: {why}");
        exit::NOTHING_IN_SCOPE
    } else {
        tracing::warn!("nothing was to move: {why}");
        exit::DONE
    }
}

impl FeedOutcome {
    /// What came of one part: a canary's end says nothing of the failures before it.
    #[must_use]
    pub fn since(self, (before, failures): &(RunProgress, Vec<(String, u64)>)) -> Self {
        let count =
            |count: fn(&RunProgress) -> u64| count(&self.progress).saturating_sub(count(before));
        let progress = RunProgress {
            moved: count(|progress| progress.moved),
            changed: count(|progress| progress.changed),
            failed: count(|progress| progress.failed),
            orphans: count(|progress| progress.orphans),
            poison: count(|progress| progress.poison),
            ..self.progress
        };
        let earlier = |code: &str| {
            let mut same = failures.iter().filter(|(other, _)| other == code);
            same.next().map_or(0, |(_, count)| *count)
        };
        let failures = self.failures.into_iter().filter_map(|(code, count)| {
            let count = count.saturating_sub(earlier(&code));
            (count > 0).then_some((code, count))
        });
        Self {
            failures: failures.collect(),
            progress,
            ..self
        }
    }

    fn log_counts(&self) {
        let RunProgress {
            moved,
            changed,
            failed,
            orphans,
            poison,
            ..
        } = self.progress;
        tracing::info!(
            moved,
            changed,
            failed,
            orphans,
            poison,
            "done: {moved} moved, {changed} changed by the application, {failed} failed"
        );
        if orphans > 0 {
            tracing::info!(
                orphans,
                "{}: feeder clean --orphans removes what no row comes to name",
                counted(orphans, "copy has no row", "copies have no row")
            );
        }
        for (code, count) in self.failures.iter().take(MAX_CODES) {
            tracing::warn!(
                code,
                count,
                "{} failed with {code}: see bucket_brigade.failures",
                counted(*count, "row", "rows")
            );
        }
        if self.unrecorded > 0 {
            let count = self.unrecorded;
            tracing::error!(
                count,
                "{} failed that the ledger cannot hold: this log names them",
                counted(count, "row", "rows")
            );
        }
    }

    fn next_step(&self) -> &'static str {
        match (self.progress.failed, self.unrecorded, self.is_canary) {
            (0, 0, false) => {
                "prove the moves with `feeder verify`; stop the consumers (SIGTERM, Ctrl-C) once `feeder clean` is done"
            }
            (0, 0, true) => {
                "look at the rows that moved, then start the feeder without --limit and --sample"
            }
            (0, ..) => "correct the rows that cannot be recorded, then start the feeder again",
            _ => "see why with `feeder failures`, correct the cause, then `feeder retry`",
        }
    }
}
