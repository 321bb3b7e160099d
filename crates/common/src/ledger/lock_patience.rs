//! How long a commit waits for locks that others hold.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How long a commit waits for the locks that triggers, keys and indexes need: for the commits of other consumers, but
/// not for the application's long transactions, whose rows would keep others waiting meanwhile.
#[derive(Debug, Default)]
pub(super) struct LockPatience {
    /// What commits take lately, in milliseconds; zero before the first.
    commit_ms: AtomicU32,
    /// Whether the last batch has waited in vain: its parts do not.
    is_blocked: AtomicBool,
}

impl LockPatience {
    const MIN_MS: u32 = 100;
    const MAX_MS: u32 = 1000;
    const COMMITS: u32 = 4;

    /// As Postgres reads it.
    pub(super) fn timeout(&self) -> String {
        let patience = match self.commit_ms.load(Ordering::Relaxed) {
            _ if self.is_blocked.load(Ordering::Relaxed) => Self::MIN_MS,
            0 => Self::MAX_MS,
            taken => (taken * Self::COMMITS).clamp(Self::MIN_MS, Self::MAX_MS),
        };
        format!("{patience}ms")
    }

    pub(super) fn record_block(&self) {
        self.is_blocked.store(true, Ordering::Relaxed);
    }

    pub(super) fn record_commit(&self, took: Duration, rows: usize) {
        if rows > 1 {
            self.is_blocked.store(false, Ordering::Relaxed);
        }
        let took = u32::try_from(took.as_millis()).unwrap_or(Self::MAX_MS);
        let took = took.clamp(1, Self::MAX_MS);
        let before = self.commit_ms.load(Ordering::Relaxed);
        let mean = if before == 0 {
            took
        } else {
            (before * 3 + took).div_ceil(4)
        };
        self.commit_ms.store(mean, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_others_are_waited_for_and_long_transactions_are_not() {
        let patience = LockPatience::default();
        assert_eq!(patience.timeout(), "1000ms");
        patience.record_commit(Duration::from_millis(60), 50);
        assert_eq!(patience.timeout(), "240ms");
        patience.record_block();
        assert_eq!(patience.timeout(), "100ms");
        // A row alone says nothing of the others.
        patience.record_commit(Duration::from_millis(60), 1);
        assert_eq!(patience.timeout(), "100ms");
        patience.record_commit(Duration::from_millis(2), 2);
        assert_eq!(patience.timeout(), "184ms");
        for _ in 0..20 {
            patience.record_commit(Duration::from_millis(1), 2);
        }
        assert_eq!(patience.timeout(), "100ms");
        for _ in 0..20 {
            patience.record_commit(Duration::from_secs(9), 2);
        }
        assert_eq!(patience.timeout(), "1000ms");
    }
}
