//! The plan, for people.

use std::fmt;
use std::time::Duration;

use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::printable::printable;
use indicatif::{DecimalBytes, HumanCount};

use super::check::{CheckVerdict, PlanCheck};
use super::estimate::MigrationEstimate;
use super::table_inspector::RowCounts;
use super::{MigrationPlan, SampleRow};
use crate::runs::format_filter;

impl fmt::Display for MigrationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}:{} '{}' → '{}', s3://{} → s3://{}",
            self.table,
            format_filter(self.row_filter.as_deref()),
            self.old_prefix,
            self.new_prefix,
            self.source_bucket,
            self.destination_bucket
        )?;
        if let Some(rows) = &self.rows {
            writeln!(f, "\n{rows}")?;
        }
        if !self.samples.is_empty() {
            writeln!(f, "\nWhat becomes of some of them:")?;
            for sample in &self.samples {
                writeln!(f, "{sample}")?;
            }
        }
        writeln!(f)?;
        for check in &self.checks.0 {
            writeln!(f, "{check}")?;
        }
        if let Some(estimate) = &self.estimate {
            writeln!(f, "\n{estimate}")?;
        }
        let result = match self.failing {
            0 => "It can be done".to_owned(),
            some => format!("It would fail: see the {some} marked FAIL"),
        };
        write!(f, "\n{result}. Nothing was changed.")
    }
}

impl fmt::Display for RowCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Rows: {} in scope, {} moved already, {} outside the rule",
            HumanCount(self.in_scope),
            HumanCount(self.moved),
            HumanCount(self.outside)
        )?;
        if self.without_path > 0 {
            write!(f, ", {} without a path", HumanCount(self.without_path))?;
        }
        match self.sampled_percent {
            None => Ok(()),
            Some(percent) => write!(f, ", about: from {percent} % of the table"),
        }
    }
}

impl fmt::Display for SampleRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MoveRoute {
            old_path,
            new_path,
            source_key,
            destination_key,
        } = &self.route;
        write!(f, "  row {}", printable(&self.id))?;
        match self.size_bytes.map(u64::try_from) {
            Some(Ok(size)) => write!(f, " ({})", DecimalBytes(size))?,
            _ if self.is_missing => f.write_str(" (no object)")?,
            _ => {}
        }
        write!(f, ": {} → {}", printable(old_path), printable(new_path))?;
        if (old_path, new_path) == (source_key, destination_key) {
            return Ok(());
        }
        let (source, destination) = (printable(source_key), printable(destination_key));
        write!(f, "\n    keys {source} → {destination}")
    }
}

impl fmt::Display for PlanCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            CheckVerdict::Ok => "ok",
            CheckVerdict::Warns => "WARN",
            CheckVerdict::Fails => "FAIL",
        };
        let finding = printable(&self.finding);
        write!(f, "  {word:4}  {:12}  {finding}", self.about)?;
        match &self.mend {
            Some(mend) => write!(f, "\n        {:12}  → {mend}", ""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for MigrationEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = ", S3's limit for one prefix";
        let bound = if self.is_bound_by_prefix { limit } else { "" };
        writeln!(f, "Estimate:")?;
        writeln!(
            f,
            "  time      {} at {:.0} copies per second{bound} ({} consumers, {} copies at once)",
            format_seconds(self.seconds),
            self.copies_per_second,
            self.consumers,
            self.copies_in_flight
        )?;
        writeln!(
            f,
            "  requests  {} {}, {} SQS",
            HumanCount(self.copy_requests),
            self.copy_operations.join(" and "),
            HumanCount(self.queue_requests)
        )?;
        if let (true, Some(size)) = (self.is_streamed, self.gigabytes) {
            writeln!(
                f,
                "  bytes     {size:.1} GB through the consumers, in and out"
            )?;
        }
        write!(f, "  money     ${:.2}", self.dollars)?;
        if let (Some(size), Some(month)) = (self.gigabytes, self.dollars_per_month) {
            write!(
                f,
                ", and ${month:.2} a month for {size:.1} GB kept twice until the sources are cleaned away"
            )?;
        }
        write!(
            f,
            "\n  database  {} of WAL",
            DecimalBytes(saturating_u64(self.wal_bytes))
        )
    }
}

fn format_seconds(seconds: f64) -> String {
    let rounded = seconds.ceil().max(1.0);
    match Duration::try_from_secs_f64(rounded) {
        Ok(time) => humantime::format_duration(time).to_string(),
        Err(_) => "N/A".into(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is positive"
)]
fn saturating_u64(number: f64) -> u64 {
    number as u64
}
