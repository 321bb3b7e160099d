//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use crate::bare_loop::BareLoop;
use crate::machine::MachineInfo;
use crate::results::BenchResults;
use crate::rig::{BenchRig, StoreAddress};
use crate::rows::{Bench, RowGroup};
use crate::stub;

/// Measures feeder and consumer against what they are made of and against tools that only copy, on
/// a private Postgres and a stub of S3 and SQS. Nothing outside this machine is asked.
#[derive(Debug, Parser)]
#[command(name = "script/bench")]
struct BenchArguments {
    /// Fewer runs of fewer rows: shows that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Print the results as JSON; all else goes to standard error.
    #[arg(long)]
    json: bool,
    /// Measure only these groups of rows, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<RowGroup>,
    /// Runs of each figure [default: 5, with --quick 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Merge the results into this JSON file of earlier ones, and rewrite the tables in the page of the same name
    /// beside it.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// A store that runs, for the group `store`, as `script/stores/ceph DIRECTORY start` prints it. What its buckets
    /// old-images and new-images hold is deleted.
    #[arg(long, value_name = "ENDPOINT,KEY,SECRET")]
    store: Option<StoreAddress>,
    #[command(subcommand)]
    part: Option<BenchSubcommand>,
}

#[derive(Debug, Subcommand)]
enum BenchSubcommand {
    #[command(hide = true)]
    Stub,
    #[command(hide = true)]
    Bare(BareLoop),
}

/// Measures, or is a part of a measurement.
pub fn main() -> ExitCode {
    let arguments = BenchArguments::parse();
    let outcome = match &arguments.part {
        Some(BenchSubcommand::Stub) => stub::serve(),
        Some(BenchSubcommand::Bare(bare)) => bare.run(),
        None => run_measurements(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_to_stderr(&format!("script/bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_measurements(arguments: &BenchArguments) -> Result<()> {
    let (results, outcome) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure_groups(arguments))?;
    print_results(&results, arguments.json)?;
    outcome
}

/// What was measured, also before an error.
async fn measure_groups(arguments: &BenchArguments) -> Result<(BenchResults, Result<()>)> {
    let rig = BenchRig::start().await?;
    let machine = MachineInfo::detect(&rig.postgres_version().await?);
    let (rounds, divisor) = if arguments.quick { (1, 10) } else { (5, 1) };
    let mut bench = Bench {
        rig,
        results: BenchResults::new(machine),
        rounds: arguments.rounds.unwrap_or(rounds),
        divisor,
        store: arguments.store.clone(),
    };
    let groups = match &*arguments.only {
        [] => RowGroup::value_variants(),
        only => only,
    };
    for group in groups {
        print_to_stderr(&format!("script/bench: measuring {group:?}"));
        if let Err(error) = bench.measure(*group).await {
            return Ok((bench.results, Err(error)));
        }
        // After each group: a run that is cut off keeps what it has measured.
        if let Some(file) = &arguments.into {
            save_results(file, bench.results.clone())?;
        }
    }
    Ok((bench.results, Ok(())))
}

fn save_results(file: &Path, newer: BenchResults) -> Result<()> {
    let mut merged = newer;
    if file.exists() {
        let newer = std::mem::replace(&mut merged, BenchResults::read(file)?);
        merged.merge(newer);
    }
    merged.write(file)?;
    let page = file.with_extension("md");
    if page.exists() {
        let text = std::fs::read_to_string(&page)?;
        std::fs::write(&page, with_table(&text, &merged.render_table())?)?;
    }
    Ok(())
}

/// What is between these two lines of the page is ours.
const TABLE_BEGIN: &str = "<!-- figures: written by script/bench --into -->\n";
const TABLE_END: &str = "<!-- end of figures -->\n";

fn with_table(page: &str, table: &str) -> Result<String> {
    let place = page.split_once(TABLE_BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(TABLE_END)?;
        Some((before, after))
    });
    let (before, after) = place.context("no place for the table")?;
    Ok(format!(
        "{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}"
    ))
}

#[expect(clippy::print_stdout, reason = "the answer")]
fn print_results(results: &BenchResults, json: bool) -> Result<()> {
    if json {
        print_to_stderr(&results.render_table());
        println!("{}", serde_json::to_string(results)?);
    } else {
        print!("{}", results.render_table());
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "for people")]
fn print_to_stderr(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_the_one_before() {
        let page = format!("above\n{TABLE_BEGIN}old\n{TABLE_END}below\n");
        let new = with_table(&page, "| new |\n").unwrap();
        assert_eq!(
            new,
            format!("above\n{TABLE_BEGIN}\n| new |\n\n{TABLE_END}below\n")
        );
        assert_eq!(with_table(&new, "| new |\n").unwrap(), new);
        assert!(with_table("no place", "").is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        BenchArguments::command().debug_assert();
    }
}
