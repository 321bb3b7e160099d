//! What a run prints.

use std::io::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

const MAX_PRINTED_VIOLATIONS: usize = 20;

/// The first violations on standard error.
pub(crate) fn print_violations(violations: &[String]) {
    for violation in violations.iter().take(MAX_PRINTED_VIOLATIONS) {
        print_status(&format!("VIOLATION  {violation}"));
    }
    if violations.len() > MAX_PRINTED_VIOLATIONS {
        let more = violations.len() - MAX_PRINTED_VIOLATIONS;
        print_status(&format!("… and {more} more"));
    }
}

/// The figures for people or, with `--json`, for machines in the last line of standard output.
pub(crate) fn print_report(table: &str, holds: bool, json: Option<&impl Serialize>) -> Result<()> {
    let verdict = if holds {
        "Everything that must hold held."
    } else {
        "NOT everything that must hold held."
    };
    let table = format!("{table}\n{verdict}");
    match json {
        None => write_stdout(&table),
        Some(figures) => {
            print_status(&table);
            write_stdout(&serde_json::to_string(figures)?)
        }
    }
}

/// A line on the terminal or in a log, as an error of writing it is an error of the run.
fn write_stdout(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

pub(crate) fn print_status(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
