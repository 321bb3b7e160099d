//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use crate::bare::Bare;
use crate::chart;
use crate::machine::Machine;
use crate::results::Results;
use crate::rig::Rig;
use crate::rows::{Group, Size};
use crate::stub;

/// Measures feeder and consumer against what they are made of and against tools that only copy, on
/// a private Postgres and a stub of S3 and SQS. Nothing outside this machine is asked.
#[derive(Debug, Parser)]
#[command(name = "script/bench")]
struct Arguments {
    /// Fewer runs of fewer rows: shows that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Print the results as JSON; all else goes to standard error.
    #[arg(long)]
    json: bool,
    /// Measure only these groups of rows, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Group>,
    /// Runs of each figure [default: 5, with --quick 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Merge the results into this JSON file of earlier ones; redraw the chart, and rewrite the table in
    /// the page, of the same name beside it.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the bench runs as processes of their own.
#[derive(Debug, Subcommand)]
enum Part {
    /// The stub of S3 and SQS.
    #[command(hide = true)]
    Stub,
    /// One call in a loop.
    #[command(hide = true)]
    Bare(Bare),
}

/// Measures, or is a part of a measurement.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.part {
        Some(Part::Stub) => stub::serve(),
        Some(Part::Bare(bare)) => bare.run(),
        None => measure(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("script/bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let results = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure_all(arguments))?;
    print(&results, arguments.json)
}

async fn measure_all(arguments: &Arguments) -> Result<Results> {
    let size = Size {
        rounds: arguments
            .rounds
            .unwrap_or(if arguments.quick { 1 } else { 5 }),
        divisor: if arguments.quick { 10 } else { 1 },
    };
    let mut rig = Rig::start().await?;
    let mut results = Results {
        machine: Machine::ask(&rig.postgres_version().await?),
        rows: Vec::new(),
        growth: Vec::new(),
        told: std::collections::BTreeMap::new(),
    };
    let all = Group::value_variants();
    let groups = if arguments.only.is_empty() {
        all
    } else {
        &arguments.only
    };
    for group in groups {
        tell(&format!("script/bench: measuring {group:?}"));
        group.measure(&mut rig, size, &mut results).await?;
        // After each group: a run that is cut off keeps what it has measured.
        if let Some(file) = &arguments.into {
            keep(file, results.clone())?;
        }
    }
    Ok(results)
}

fn keep(file: &Path, newer: Results) -> Result<()> {
    let merged = if file.exists() {
        let mut merged = Results::read(file)?;
        merged.merge(newer);
        merged
    } else {
        newer
    };
    merged.write(file)?;
    std::fs::write(file.with_extension("svg"), chart::draw(&merged))?;
    let page = file.with_extension("md");
    if page.exists() {
        let text = std::fs::read_to_string(&page)?;
        std::fs::write(&page, with_table(&text, &merged.table())?)?;
    }
    Ok(())
}

/// What stands between these two lines of the page is ours.
const BEGIN: &str = "<!-- figures: written by script/bench --into -->\n";
const END: &str = "<!-- end of figures -->\n";

fn with_table(page: &str, table: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("no place for the table")?;
    let (_, after) = rest
        .split_once(END)
        .context("no end of the table's place")?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[expect(clippy::print_stdout, reason = "the answer")]
fn print(results: &Results, json: bool) -> Result<()> {
    if json {
        tell(&results.table());
        println!("{}", serde_json::to_string(results)?);
    } else {
        print!("{}", results.table());
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "for people")]
fn tell(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_the_one_before() {
        let page = format!("above\n{BEGIN}old\n{END}below\n");
        let new = with_table(&page, "| new |\n").unwrap();
        assert_eq!(new, format!("above\n{BEGIN}\n| new |\n\n{END}below\n"));
        assert_eq!(with_table(&new, "| new |\n").unwrap(), new);
        assert!(with_table("no place", "").is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
