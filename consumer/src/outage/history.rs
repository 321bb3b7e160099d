//! What the copies of one process have shown of the store so far.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// So many objects that fail, without a copy in between, are worth a question.
pub(super) const FAILING_OBJECTS: usize = 3;

/// So many that fail before any was copied are not each to blame: it may be the source's key, or our rights to it.
pub(super) const MANY_OBJECTS: usize = 10;

/// So many are known of those in hand.
const MAX_UNTRIED: usize = 512;

/// Where all copies have been silent for so long, the store is asked whether it responds: their own time limits are
/// those of large ones.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// A store that throttles each copy for so long serves nothing.
pub(super) const THROTTLED_OUTAGE: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct CopyHistory {
    /// When the newest copy that succeeded was sent.
    pub(super) last_sent: Option<Instant>,
    /// The source key of the newest.
    pub(super) last_copied: Option<String>,
    /// Source keys that failed since.
    pub(super) failing: HashSet<String>,
    /// Before the first success: source keys that may be copied where any can.
    pub(super) untried: VecDeque<String>,
    /// Whether any object of the source has been copied.
    pub(super) is_source_proven: bool,
    pub(super) was_silent: bool,
    pub(super) refusals: Refusals,
    /// Requests without a response so far.
    pub(super) waiting: usize,
    /// When the first of them was sent.
    pub(super) waiting_since: Option<Instant>,
    /// What is given up without one, and sent again, does not end the silence.
    pub(super) last_response: Option<Instant>,
}

impl CopyHistory {
    pub(super) fn is_silent(&self) -> bool {
        let since = self.waiting_since.max(self.last_response);
        self.waiting > 0 && since.is_some_and(|at| at.elapsed() >= SILENCE)
    }

    /// Of what is in hand before the first success.
    pub(super) fn add_untried(&mut self, source_key: &str) {
        let is_known = || self.untried.iter().any(|key| key == source_key);
        if self.last_copied.is_some() || is_known() {
            return;
        }
        if self.untried.len() >= MAX_UNTRIED {
            self.untried.pop_front();
        }
        self.untried.push_back(source_key.to_owned());
    }

    /// Source objects that can be read where any can: the newest that was copied; or some of those in hand, others
    /// each time, and so many that it is not their own trouble.
    pub(super) fn sample_sources(&mut self) -> Vec<String> {
        if let Some(copied) = &self.last_copied {
            return vec![copied.clone()];
        }
        if self.untried.len() < FAILING_OBJECTS {
            return Vec::new();
        }
        self.untried.rotate_left(FAILING_OBJECTS);
        self.untried.iter().take(FAILING_OBJECTS).cloned().collect()
    }

    /// The same where it takes one of them to show that copies can be made.
    pub(super) fn sample_copies(&mut self) -> Vec<String> {
        if self.last_copied.is_some() || self.suspects_source() {
            return self.sample_sources();
        }
        Vec::new()
    }

    /// Whether objects of our own show nothing: only one of the source does.
    pub(super) fn suspects_source(&self) -> bool {
        let is_suspect = self.failing.len() >= MANY_OBJECTS || self.was_silent;
        is_suspect && !self.is_source_proven
    }

    /// A copy that was sent at `sent` succeeded, of an object of the source or of our own.
    pub(super) fn record_success(&mut self, sent: Instant, is_of_source: bool) {
        self.refusals = Refusals::default();
        self.last_sent = self.last_sent.max(Some(sent));
        self.is_source_proven |= is_of_source;
        if self.is_source_proven {
            self.failing.clear();
        }
    }
}

/// Throttled copies without another between them: when the first was, and the last.
#[derive(Debug, Default)]
pub(super) struct Refusals(Option<(Instant, Instant)>);

impl Refusals {
    /// One more. Returns how long they have lasted: what came long before says nothing of now.
    pub(super) fn record(&mut self) -> Duration {
        let now = Instant::now();
        let lasting = self.0.filter(|(_, last)| now - *last < THROTTLED_OUTAGE);
        let first = lasting.map_or(now, |(first, _)| first);
        self.0 = Some((first, now));
        now - first
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_long_apart_are_no_outage() {
        let mut refusals = Refusals::default();
        for _ in 0..3 {
            assert_eq!(refusals.record(), Duration::ZERO);
            advance(THROTTLED_OUTAGE).await;
        }
        refusals.record();
        for _ in 0..2 {
            advance(THROTTLED_OUTAGE / 2).await;
            refusals.record();
        }
        assert!(refusals.record() >= THROTTLED_OUTAGE);
    }
}
