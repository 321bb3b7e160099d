//! The operator's commands on tables that grow: how long their first answer takes, how many rows a second they do on
//! the stub, and what they cost the database and the application meanwhile.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::AssertSqlSafe;

use super::Bench;
use super::database::{READS_ALLOWED, p99_during, p99_ms};
use super::database_load::{DatabaseLoad, OLDEST_TRANSACTION};
use crate::bare_loop::BareCall;
use crate::images::FIRST_ROW;
use crate::process::{RunningProcess, built_binary};
use crate::results::{BenchResults, TargetBound};
use crate::rig::{BenchRig, stop_processes};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const MEASURED_FOR: Duration = Duration::from_secs(15);

/// The share of the rows that each command is measured on at most: the next one needs some, too.
const MAX_SHARE: u64 = 4;

const MAX_RSS_MIB: f64 = 64.0;

struct MeasuredCommand {
    arguments: &'static [&'static str],
    /// What one row of it is called.
    unit: &'static str,
    /// How many rows are done.
    count: &'static str,
}

/// In an order in which each leaves enough for the next.
const COMMANDS: [MeasuredCommand; 3] = [
    MeasuredCommand {
        arguments: &["verify", "--listings"],
        unit: "moves/s",
        count: "SELECT /* bench */ coalesce(sum(checked), 0)::bigint FROM bucket_brigade.verifications",
    },
    MeasuredCommand {
        arguments: &["rollback", "--all", "--yes"],
        unit: "rows/s",
        count: "SELECT /* bench */ coalesce(sum(-moved), 0)::bigint FROM bucket_brigade.counters WHERE worker <> 'bench'",
    },
    MeasuredCommand {
        arguments: &["clean", "--older-than", "0s", "--confirm", "old-images"],
        unit: "objects/s",
        count: "SELECT /* bench */ count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL",
    },
];

/// Of all commands, on one table.
pub(super) struct CommandRuns {
    rows: u64,
    idle_p99_ms: f64,
    /// Beside bare copies at full speed, which know no database.
    control_p99_ms: f64,
    clean_preview_ms: f64,
    costs: Vec<CommandCosts>,
}

struct CommandCosts {
    name: &'static str,
    first_ms: f64,
    resumed_ms: f64,
    rate: f64,
    cpu_us: f64,
    rss_mib: f64,
    longest_statement_ms: f64,
    longest_transaction_ms: f64,
    reads_p99_ms: f64,
}

/// What is seen of a command while it works.
#[derive(Default)]
struct ObservedWork {
    first_seconds: f64,
    rate: f64,
    done: u64,
    longest_transaction_seconds: f64,
}

/// All rows of the table have moved.
pub(super) async fn measure_size(bench: &mut Bench, rows: u64) -> Result<CommandRuns> {
    let rig = &bench.rig;
    rig.stub.set_up(&StubSetup::default()).await?;
    let all = FIRST_ROW..FIRST_ROW + rows;
    let idle_p99_ms = p99_ms(bench, &all).await?;
    let control_p99_ms = beside_bare_copies(bench, &all).await?;
    let setup = StubSetup {
        rows: all.clone(),
        is_copied: true,
        ..StubSetup::default()
    };
    bench.rig.stub.set_up(&setup).await?;
    let (mut costs, mut clean_preview_ms) = (Vec::new(), 0.0);
    for command in &COMMANDS {
        if command.arguments[0] == "clean" {
            mark_verified(rig).await?;
            create_named_indexes(rig).await?;
            clean_preview_ms = preview_ms(rig).await?;
        }
        costs.push(measure_command(rig, command, rows).await?);
    }
    Ok(CommandRuns {
        rows,
        idle_p99_ms,
        control_p99_ms,
        clean_preview_ms,
        costs,
    })
}

/// What a verify of all rows leaves.
async fn mark_verified(rig: &BenchRig) -> Result<()> {
    rig.execute_sql("UPDATE bucket_brigade.moves SET verified_at = clock_timestamp(), source_etag = etag, size_bytes = 2048 WHERE verified_at IS NULL")
        .await?;
    rig.vacuum().await
}

/// Those that a clean names, as an operator would.
async fn create_named_indexes(rig: &BenchRig) -> Result<()> {
    let mut command = rig.program_command(built_binary("feeder")?);
    let output = command
        .args(["clean", "--older-than", "0s", "--json"])
        .output()?;
    let preview: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    for index in preview["missing_indexes"].as_array().into_iter().flatten() {
        let sql = index["sql"].as_str().unwrap_or_default().to_owned();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&rig.pool).await?;
    }
    Ok(())
}

fn start(rig: &BenchRig, arguments: &[&str]) -> Result<RunningProcess> {
    let mut command = rig.program_command(built_binary("feeder")?);
    command.args(arguments);
    rig.start_process(command, arguments[0])
}

async fn preview_ms(rig: &BenchRig) -> Result<f64> {
    let began = Instant::now();
    let preview = start(rig, &["clean", "--older-than", "0s"])?;
    preview.wait_for_exit().await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

async fn beside_bare_copies(bench: &Bench, read_rows: &Range<u64>) -> Result<f64> {
    let command = bench
        .rig
        .bare_command(BareCall::OurCopy, &(1..10_000_000), 64)?;
    let copies = bench.rig.start_process(command, "bare")?;
    let p99 = p99_ms(bench, read_rows).await?;
    copies.ensure_alive()?;
    Ok(p99)
}

/// Twice: cut off after a while, it goes on.
async fn measure_command(
    rig: &BenchRig,
    command: &MeasuredCommand,
    rows: u64,
) -> Result<CommandCosts> {
    DatabaseLoad::reset(rig).await?;
    let process = start(rig, command.arguments)?;
    let observed = observe(rig, command, &process, rows / MAX_SHARE);
    let (reads_p99_ms, observed) =
        p99_during(rig, &(FIRST_ROW..FIRST_ROW + rows), observed).await?;
    let (work, usage) = (observed?, stop_processes(vec![process]).await?.0[0]);
    let resumed = start(rig, command.arguments)?;
    let resumed_work = observe(rig, command, &resumed, 1).await?;
    stop_processes(vec![resumed]).await?;
    Ok(CommandCosts {
        name: command.arguments[0],
        first_ms: work.first_seconds * 1e3,
        resumed_ms: resumed_work.first_seconds * 1e3,
        rate: work.rate,
        cpu_us: usage.cpu_us() / to_f64(work.done),
        rss_mib: usage.peak_rss_mib(),
        longest_statement_ms: DatabaseLoad::read(rig).await?.longest_statement_ms,
        longest_transaction_ms: work.longest_transaction_seconds * 1e3,
        reads_p99_ms,
    })
}

/// Until it has done so much, for a while at most.
async fn observe(
    rig: &BenchRig,
    command: &MeasuredCommand,
    process: &RunningProcess,
    most: u64,
) -> Result<ObservedWork> {
    let began = Instant::now();
    let before = count_done(rig, command).await?;
    let (mut first, mut last) = (None, (began, 0));
    let mut work = ObservedWork::default();
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let done = u64::try_from(count_done(rig, command).await? - before)?;
        let oldest: f64 = sqlx::query_scalar(OLDEST_TRANSACTION)
            .fetch_one(&rig.pool)
            .await?;
        work.longest_transaction_seconds = work.longest_transaction_seconds.max(oldest);
        if done > last.1 {
            last = (Instant::now(), done);
            first.get_or_insert(last);
        }
        let is_alive = process.ensure_alive();
        match first {
            Some((at, _)) if done >= most || at.elapsed() > MEASURED_FOR || is_alive.is_err() => {
                break;
            }
            Some(_) => {}
            None => {
                is_alive?;
                let is_over = began.elapsed() > MEASURED_FOR * 4;
                ensure!(!is_over, "{:?} does nothing", command.arguments);
            }
        }
    }
    let (at, done) = first.unwrap_or(last);
    let seconds = (last.0 - at).as_secs_f64().max(1e-3);
    work.first_seconds = (at - began).as_secs_f64();
    work.rate = to_f64(last.1 - done) / seconds;
    work.done = last.1;
    Ok(work)
}

async fn count_done(rig: &BenchRig, command: &MeasuredCommand) -> Result<i64> {
    let count = sqlx::query_scalar(AssertSqlSafe(command.count));
    Ok(count.fetch_one(&rig.pool).await?)
}

/// First answers at the largest table against the smallest, the rest at its worst.
pub(super) fn report(runs: &[CommandRuns], results: &mut BenchResults) -> Result<()> {
    for run in runs {
        let previewed = format!("clean_preview_ms_{}", run.rows);
        results.figures.insert(previewed, run.clean_preview_ms);
        for costs in &run.costs {
            costs.report_figures(run.rows, results);
        }
    }
    if let [smallest, .., largest] = runs {
        report_growth(smallest, largest, results)?;
    }
    for (index, command) in COMMANDS.iter().enumerate() {
        let costs: Vec<&CommandCosts> = runs.iter().map(|run| &run.costs[index]).collect();
        report_rate(command, &costs, results)?;
        report_reads(command, runs, &costs, results)?;
    }
    report_worst(runs, results)
}

impl CommandCosts {
    fn report_figures(&self, rows: u64, results: &mut BenchResults) {
        for (what, value) in [
            ("rate", self.rate),
            ("cpu_us", self.cpu_us),
            ("rss_mib", self.rss_mib),
            ("reads_p99_ms", self.reads_p99_ms),
            ("longest_statement_ms", self.longest_statement_ms),
            ("longest_transaction_ms", self.longest_transaction_ms),
        ] {
            let figure = format!("{}_{what}_{rows}", self.name);
            results.figures.insert(figure, value);
        }
    }
}

fn report_rate(
    command: &MeasuredCommand,
    costs: &[&CommandCosts],
    results: &mut BenchResults,
) -> Result<()> {
    let name = command.arguments[0];
    let slowest = costs
        .iter()
        .map(|costs| costs.rate)
        .fold(f64::MAX, f64::min);
    let cpu = costs.iter().map(|costs| costs.cpu_us).fold(0.0, f64::max);
    let label = (&*format!("{name}_rate"), name, command.unit);
    let row = results.add(label, &[slowest], TargetBound::AtLeast(5000.0))?;
    row.note = format!("{cpu:.0} µs each");
    Ok(())
}

fn report_growth(
    smallest: &CommandRuns,
    largest: &CommandRuns,
    results: &mut BenchResults,
) -> Result<()> {
    let against = format!("on {}", smallest.rows);
    let previews = (largest.clean_preview_ms, smallest.clean_preview_ms);
    let mut growths = vec![("clean", "preview", "preview", previews)];
    for (ours, theirs) in largest.costs.iter().zip(&smallest.costs) {
        let first = (ours.first_ms, theirs.first_ms);
        growths.push((ours.name, "first", "start to first page", first));
        let resumed = (ours.resumed_ms, theirs.resumed_ms);
        let what = "the same after a stop";
        growths.push((ours.name, "resumed", what, resumed));
    }
    for (name, key, what, (ours, theirs)) in growths {
        let what = format!("{name}: {what}, {} rows", largest.rows);
        let label = format!("{name}_{key}_ms");
        let target = Some(TargetBound::AtMost(2.0));
        results.add_ratio(
            (&label, &what, "ms"),
            &[ours],
            (&against, &[theirs]),
            target,
        )?;
    }
    Ok(())
}

fn report_worst(runs: &[CommandRuns], results: &mut BenchResults) -> Result<()> {
    let all = || runs.iter().flat_map(|run| &run.costs);
    let worst = |of: fn(&CommandCosts) -> f64| all().map(of).fold(0.0, f64::max);
    for (name, what, unit, value, most) in [
        (
            "command_statement",
            "longest statement of a command",
            "ms",
            worst(|costs| costs.longest_statement_ms),
            5000.0,
        ),
        (
            "command_transaction",
            "longest transaction of a command",
            "ms",
            worst(|costs| costs.longest_transaction_ms),
            5000.0,
        ),
        (
            "command_rss",
            "peak RSS of a command",
            "MiB",
            worst(|costs| costs.rss_mib),
            MAX_RSS_MIB,
        ),
    ] {
        let what = format!("{what}, to {} rows", runs.last().map_or(0, |run| run.rows));
        results.add((name, &what, unit), &[value], TargetBound::AtMost(most))?;
    }
    Ok(())
}

/// At each size, as runs.
fn report_reads(
    command: &MeasuredCommand,
    runs: &[CommandRuns],
    costs: &[&CommandCosts],
    results: &mut BenchResults,
) -> Result<()> {
    let name = command.arguments[0];
    let ours: Vec<f64> = costs.iter().map(|costs| costs.reads_p99_ms).collect();
    let allowed = |run: &CommandRuns| run.control_p99_ms.max(run.idle_p99_ms * 1.5);
    let allowed: Vec<f64> = runs.iter().map(allowed).collect();
    let what = format!("p99 of point reads beside {name}");
    let label = (&*format!("reads_p99_{name}"), &*what, "ms");
    let against = (READS_ALLOWED, &allowed[..]);
    let target = Some(TargetBound::AtMost(1.0));
    results.add_ratio(label, &ours, against, target)?;
    Ok(())
}
