//! Progress for people: a bar with rate and ETA on a terminal, a log line every few seconds elsewhere.

use std::io::Write;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::ledger::feed_source::{FeedSource, RunProgress};
use bucket_brigade_common::logging::stderr_writer;
use bucket_brigade_common::throttle::RateMeter;
use bucket_brigade_operator::progress_bar::stderr_bar;
use indicatif::ProgressBar;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::progress::FeederProgress;

const DRAW_INTERVAL: Duration = Duration::from_secs(1);

/// How often a line is logged where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

const RATE_WINDOW: Duration = Duration::from_mins(1);

/// The rate of the last minute says nothing of rows that have not moved for so long.
const ETA_EXPIRY: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct ProgressDisplay(Option<ProgressBar>);

impl ProgressDisplay {
    /// A bar on a terminal, log lines elsewhere.
    pub fn on_stderr() -> Self {
        Self(stderr_bar("{wide_bar} {pos}/{len} {msg}", None))
    }

    /// A writer for logs that does not tear the bar.
    pub fn log_writer(&self) -> BoxMakeWriter {
        match self.0.clone() {
            None => stderr_writer(),
            Some(bar) => BoxMakeWriter::new(move || AboveBarWriter(bar.clone())),
        }
    }

    /// Shows progress for as long as it is polled. Costs the database one sum over processes a time.
    pub async fn refresh_forever(&self, source: &dyn FeedSource, progress: &FeederProgress) {
        let mut ticks = interval(if self.0.is_some() {
            DRAW_INTERVAL
        } else {
            LOG_INTERVAL
        });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut estimate = EtaEstimate::new(Instant::now());
        // A feeder that watches, or waits for the queue, asks the database nothing else for a while.
        let (health, database) = (progress.health(), Dependency::Database);
        let mut failures = 0;
        loop {
            ticks.tick().await;
            let began = Instant::now();
            match source.run_progress().await {
                Ok(numbers) => {
                    failures = 0;
                    health.mark_up(database);
                    progress.set_run_progress(numbers);
                    let (rate, eta) = estimate.record(&numbers, Instant::now());
                    self.render_progress(&numbers, rate, &eta, progress);
                }
                Err(error) => {
                    failures += 1;
                    let reason = format!("reading progress: {error}");
                    health.record_failure(database, began, failures, &reason);
                }
            }
        }
    }

    fn render_progress(
        &self,
        numbers: &RunProgress,
        rate: f64,
        eta: &str,
        progress: &FeederProgress,
    ) {
        let phase = progress.describe_phase();
        let RunProgress {
            in_scope,
            fed,
            moved,
            changed,
            failed,
            ..
        } = *numbers;
        if let Some(bar) = &self.0 {
            if let Some(total) = in_scope {
                bar.set_length(total.max(numbers.accounted_rows()));
            }
            bar.set_position(numbers.accounted_rows());
            bar.set_message(format!("{rate:.0}/s ETA {eta} · {phase}"));
        } else {
            let rate = format!("{rate:.1}/s");
            let consumers = progress.running_consumers();
            // The template for ECS makes a metric of it.
            let held_back = progress.held_back_consumers();
            tracing::info!(
                moved, changed, failed, fed, in_scope, rate, eta, consumers, held_back, "{phase}"
            );
        }
    }

    pub fn clear_bar(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

struct EtaEstimate {
    rate: RateMeter,
    rows: u64,
    last_change: Instant,
}

impl EtaEstimate {
    fn new(now: Instant) -> Self {
        Self {
            rate: RateMeter::new(RATE_WINDOW, now),
            rows: 0,
            last_change: now,
        }
    }

    /// The rate and the time that is left.
    fn record(&mut self, progress: &RunProgress, now: Instant) -> (f64, String) {
        let rows = progress.accounted_rows();
        let rate = self.rate.record_total(rows, now);
        if self.rows != rows {
            (self.rows, self.last_change) = (rows, now);
        }
        let is_moving = now - self.last_change < ETA_EXPIRY;
        (
            rate,
            progress.format_eta(if is_moving { rate } else { 0.0 }),
        )
    }
}

/// Writes a log line above the bar.
struct AboveBarWriter(ProgressBar);

impl Write for AboveBarWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rows_have_an_eta_only_while_rows_move() {
        let began = Instant::now();
        let mut estimate = EtaEstimate::new(began);
        let mut eta_after = |seconds, moved| {
            let progress = RunProgress {
                in_scope: Some(1000),
                moved,
                ..RunProgress::default()
            };
            estimate
                .record(&progress, began + Duration::from_secs(seconds))
                .1
        };
        assert_eq!(eta_after(0, 0), "N/A");
        assert_eq!(eta_after(10, 999), "1s");
        assert_eq!(eta_after(15, 999), "1s");
        assert_eq!(eta_after(20, 999), "N/A");
        assert_eq!(eta_after(25, 1000), "0s");
    }
}
