//! The screen, for people.

use std::fmt;
use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::printable::printable;
use indicatif::HumanCount;

use super::queries::{CodeCount, WorkerStatus};
use super::queue::QueueStatus;
use super::snapshot::{AllRunsStatus, StatusRates, StatusSnapshot};
use crate::output::write_lines;
use crate::runs::{NO_RUNS, RunSummary, format_filter};

const BAR_WIDTH: usize = 40;

impl fmt::Display for StatusSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        writeln!(
            f,
            "run {}     {}:{} {} → {}, s3://{} → s3://{}",
            run.id,
            run.table,
            format_filter(run.row_filter.as_deref()),
            quote_prefix(&run.old_prefix),
            quote_prefix(&run.new_prefix),
            run.source_bucket,
            run.destination_bucket
        )?;
        let reason = match &*self.reason {
            "" => String::new(),
            reason => format!(": {}", printable(reason)),
        };
        writeln!(f, "state     {}{reason}", self.state)?;
        write_rows(f, self.rows)?;
        let limits = run.limits.describe().unwrap_or_else(|| "none".into());
        let count = |one: &CodeCount| format!("{} {}", one.code, HumanCount(one.rows));
        let counts: Vec<String> = self.failures.iter().map(count).collect();
        let failures = match &*counts {
            [] => "none".into(),
            counts => counts.join(", "),
        };
        let (rate, queue, fleet) = (&self.rate, &self.queue, format_fleet(&self.workers));
        write!(
            f,
            "rate      {rate}\nqueue     {queue}\nlimits    {limits}\nfailures  {failures}\nalive     {fleet}"
        )?;
        write_workers(f, &self.workers)
    }
}

impl fmt::Display for AllRunsStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs: Vec<String> = self.runs.iter().map(render_run).collect();
        write_lines(f, &runs, NO_RUNS)?;
        match &self.queue {
            Some(queue) => write!(f, "\nqueue     {queue}"),
            None => Ok(()),
        }
    }
}

fn render_run(run: &RunSummary) -> String {
    let RunProgress {
        changed, failed, ..
    } = run.progress;
    let paused = run.paused.as_ref();
    let paused = paused.map_or(String::new(), |paused| format!(" {}", printable(paused)));
    let progress = match (run.progress.in_scope, HumanCount(run.progress.moved)) {
        (None, moved) => format!("{moved} moved"),
        (Some(all), moved) => {
            let (bar, percent) = render_bar(run.progress.accounted_rows(), all);
            format!("{bar} {percent:.1} %, {moved} of {} moved", HumanCount(all))
        }
    };
    let limits = run.limits.describe();
    let limits = limits.map_or_else(String::new, |limits| format!(", at most {limits}"));
    let action = run.last_action.as_deref().map(printable);
    let action = action.map_or_else(String::new, |action| format!("; last: {action}"));
    format!(
        "{} (run {}): {}{paused}\n          {progress}, {changed} changed, {failed} failed\n          {:.1}/s, ETA {}, {} consumers{limits}{action}",
        printable(&run.name),
        run.id,
        run.state,
        run.moved_per_second,
        run.eta.as_deref().unwrap_or("N/A"),
        run.consumers
    )
}

fn write_rows(f: &mut fmt::Formatter<'_>, rows: RunProgress) -> fmt::Result {
    let moved = HumanCount(rows.moved);
    match rows.in_scope {
        None => write!(f, "rows      {moved} moved, of how many is being counted")?,
        Some(all) => {
            let (bar, percent) = render_bar(rows.accounted_rows(), all);
            let all = HumanCount(all);
            write!(
                f,
                "rows      {bar} {percent:.1} %\n          {moved} moved of {all} in scope"
            )?;
        }
    }
    let (changed, failed) = (HumanCount(rows.changed), HumanCount(rows.failed));
    writeln!(f, ", {changed} changed by the application, {failed} failed")?;
    for (count, what) in [
        (rows.orphans, "copies without a row"),
        (rows.poison, "messages that are not ours"),
    ] {
        if count > 0 {
            writeln!(f, "          {} {what}", HumanCount(count))?;
        }
    }
    Ok(())
}

impl fmt::Display for StatusRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1}/s over the last minute, {:.1}/s overall, ETA {}",
            self.over_a_minute,
            self.overall,
            self.eta.as_deref().unwrap_or("N/A")
        )
    }
}

impl fmt::Display for QueueStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known =
            |count: Option<u64>| count.map_or("N/A".into(), |count| HumanCount(count).to_string());
        let oldest = self
            .oldest_seconds
            .map_or("N/A".into(), |seconds| format!("{seconds} s"));
        write!(
            f,
            "{} visible, {} in flight, oldest {oldest}, {} dead letters",
            known(self.visible),
            known(self.in_flight),
            known(self.dead_letters)
        )?;
        match &self.error {
            Some(error) => write!(f, " ({error})"),
            None => Ok(()),
        }
    }
}

/// A prefix may be empty, or end in a space.
fn quote_prefix(prefix: &str) -> String {
    if prefix.is_empty() || prefix.contains(char::is_whitespace) {
        format!("'{prefix}'")
    } else {
        prefix.to_owned()
    }
}

fn format_fleet(workers: &[WorkerStatus]) -> String {
    let consumers = workers.iter().filter(|worker| worker.role == "consumer");
    let (count, copies) = consumers.fold((0, 0), |(count, copies), consumer| {
        (count + 1, copies + consumer.concurrency)
    });
    let has_feeder = workers.iter().any(|worker| worker.role == "feeder");
    let feeder = if has_feeder {
        "the feeder"
    } else {
        "no feeder"
    };
    format!("{feeder}, consumers: {count}, together {copies} copies at once")
}

fn write_workers(f: &mut fmt::Formatter<'_>, workers: &[WorkerStatus]) -> fmt::Result {
    if workers.is_empty() {
        return Ok(());
    }
    let names = workers.iter().map(|worker| worker.worker.chars().count());
    let widest = names.fold("process".len(), usize::max);
    write!(
        f,
        "\n\n  {:widest$}  copies  in hand    moved/s   commit  state",
        "process"
    )?;
    for worker in workers {
        let commit = worker
            .commit_seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .map_or("N/A".into(), |took| format!("{} ms", took.as_millis()));
        let is_consumer = worker.role == "consumer";
        let own = |figure: String| if is_consumer { figure } else { "-".to_owned() };
        write!(
            f,
            "\n  {:widest$}  {:>6}  {:>7}  {:>9}  {commit:>7}  {}",
            worker.worker,
            own(worker.concurrency.to_string()),
            own(worker.in_hand.to_string()),
            own(format!("{:.1}", worker.moved_per_second)),
            worker.state
        )?;
        if !worker.reason.is_empty() {
            write!(f, ": {}", printable(&worker.reason))?;
        }
    }
    Ok(())
}

/// A bar and its share in per cent; full only when all is done.
fn render_bar(done: u64, all: u64) -> (String, f64) {
    let all = all.max(done).max(1);
    let filled = usize::try_from(u128::from(done) * BAR_WIDTH as u128 / u128::from(all))
        .unwrap_or(BAR_WIDTH);
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let percent = (done as f64 / all as f64 * 1000.0).floor() / 10.0;
    let bar = format!("[{}{}]", "#".repeat(filled), "-".repeat(BAR_WIDTH - filled));
    (bar, percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_only_at_the_end() {
        assert!(render_bar(999_999, 1_000_000).0.contains('-'));
        assert!((render_bar(999_999, 1_000_000).1 - 99.9).abs() < 1e-9);
        assert!(!render_bar(5, 5).0.contains('-'));
        assert!(!render_bar(7, 5).0.contains('-'));
        assert!(render_bar(0, 0).0.contains('-'));
    }
}
