//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
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
    /// Merge the results into this file of earlier ones, and redraw the chart beside it.
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
    if let Some(file) = &arguments.into {
        keep(file, results.clone())?;
    }
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
    Ok(std::fs::write(
        file.with_extension("svg"),
        chart::draw(&merged),
    )?)
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
