//! How far a command is: a bar on a terminal, a log line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how many of how many.
pub(super) struct ProgressReporter {
    label: &'static str,
    bar: Option<ProgressBar>,
    done: u64,
    total: u64,
    logged_at: Instant,
}

impl ProgressReporter {
    /// Begins at nothing of `total`, an estimate.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec:.0} ETA {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what);
            bar
        });
        Self {
            label: what,
            bar,
            done: 0,
            total,
            logged_at: Instant::now(),
        }
    }

    /// So many more are done.
    pub(super) fn advance_by(&mut self, count: usize) {
        self.done += u64::try_from(count).unwrap_or(0);
        self.total = self.total.max(self.done);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
            bar.set_position(self.done);
        } else if self.logged_at.elapsed() >= LOG_INTERVAL {
            self.logged_at = Instant::now();
            tracing::info!(done = self.done, of = self.total, "{}", self.label);
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
