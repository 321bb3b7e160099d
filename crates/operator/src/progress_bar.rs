//! How far a command is: a bar on a terminal, a log line every few seconds elsewhere.

use std::fmt;
use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::format_eta;
use bucket_brigade_common::printable::takes_escapes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::Instant;

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A bar on standard error; none where that is no terminal, or a dumb one.
pub fn stderr_bar(template: &str, total: Option<u64>) -> Option<ProgressBar> {
    if !takes_escapes(&std::io::stderr()) {
        return None;
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let whole = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{:.0}/s", state.per_sec());
    };
    bar.set_style(style.with_key("per_sec", whole));
    Some(bar)
}

/// Shows how many of how many, until it is dropped.
pub(crate) struct ProgressReporter {
    label: &'static str,
    bar: Option<ProgressBar>,
    done: u64,
    total: u64,
    logged_at: Instant,
}

impl ProgressReporter {
    /// `total` is an estimate.
    pub(crate) fn new(label: &'static str, total: u64) -> Self {
        let template = "{msg} {wide_bar} {pos}/{len} {per_sec} ETA {eta}";
        Self {
            label,
            bar: stderr_bar(template, Some(total)).map(|bar| bar.with_message(label)),
            done: 0,
            total,
            logged_at: Instant::now(),
        }
    }

    /// For people, at so many per second.
    pub(crate) fn describe(&self, per_second: f64) -> String {
        let Self {
            label, done, total, ..
        } = self;
        let left = total.saturating_sub(*done);
        if left == 0 || per_second <= 0.0 {
            return format!("{label}: {done}");
        }
        let eta = format_eta(left, per_second);
        format!("{label}: {done} of {total}, ETA {eta}")
    }

    pub(crate) fn advance_by(&mut self, count: usize) {
        self.done += u64::try_from(count).unwrap_or(0);
        self.total = self.total.max(self.done);
        if let Some(bar) = &self.bar {
            // At once, or the one is drawn without the other.
            bar.update(|state| {
                state.set_len(self.total);
                state.set_pos(self.done);
            });
        } else if self.logged_at.elapsed() >= LOG_INTERVAL {
            self.logged_at = Instant::now();
            tracing::info!(done = self.done, of = self.total, "{}", self.label);
        }
    }
}

impl Drop for ProgressReporter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
