//! The operator's commands on tables that grow: how long their first answer takes, and how many rows a second they
//! do on the stub.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::AssertSqlSafe;

use super::Bench;
use crate::process::{RunningProcess, built_binary};
use crate::results::TargetBound;
use crate::rig::{BenchRig, stop_processes};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const TABLE_SIZES: [u64; 2] = [100_000, 1_000_000];
const LARGEST_TABLE: u64 = 10_000_000;

const MEASURED_FOR: Duration = Duration::from_secs(15);

/// The share of the rows that each command is measured on at most: the next one needs some, too.
const MAX_SHARE: u64 = 4;

/// Rows a second of each.
const TARGET: f64 = 5_000.0;

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
        arguments: &["verify"],
        unit: "moves/s",
        count: "SELECT coalesce(sum(checked), 0)::bigint FROM bucket_brigade.verifications",
    },
    MeasuredCommand {
        arguments: &["rollback", "--all", "--yes"],
        unit: "rows/s",
        count: "SELECT coalesce(sum(-moved), 0)::bigint FROM bucket_brigade.counters WHERE worker <> 'bench'",
    },
    MeasuredCommand {
        arguments: &["clean", "--older-than", "0s", "--confirm", "old-images"],
        unit: "objects/s",
        count: "SELECT count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL",
    },
];

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let (rig, results) = (&mut bench.rig, &mut bench.results);
    let largest = bench.ten_million_rows.then_some(LARGEST_TABLE);
    for rows in TABLE_SIZES.into_iter().chain(largest) {
        let rows = rows / bench.divisor;
        prepare(rig, rows).await?;
        for command in &COMMANDS {
            let name = command.arguments[0];
            if name == "clean" {
                mark_verified(rig).await?;
                create_named_indexes(rig).await?;
                let preview = preview_seconds(rig).await?;
                let name = format!("clean_preview_ms_{rows}");
                results.figures.insert(name, preview * 1000.0);
            }
            let (first, rate) = measure_command(rig, command, rows).await?;
            let figure = format!("{name}_first_page_ms_{rows}");
            results.figures.insert(figure, first * 1000.0);
            let (label, what) = (
                format!("{name}_rate_{rows}"),
                format!("{name} on {rows} rows"),
            );
            let target = TargetBound::AtLeast(TARGET);
            results.add((&label, &what, command.unit), &[rate], target)?;
        }
    }
    rig.reset_tables().await
}

/// Rows as consumers would have left them.
async fn prepare(rig: &mut BenchRig, rows: u64) -> Result<()> {
    rig.reset_tables().await?;
    let all = rig.insert_rows(rows).await?;
    super::growing::pretend_moved(rig, all.end).await?;
    sqlx::query(
        "INSERT INTO bucket_brigade.counters (run_id, worker, moved)
         SELECT id, 'bench', $1 FROM bucket_brigade.run",
    )
    .bind(i64::try_from(rows)?)
    .execute(&rig.pool)
    .await?;
    rig.stub.set_up(&StubSetup::default()).await
}

/// What a verify of all rows leaves.
async fn mark_verified(rig: &BenchRig) -> Result<()> {
    rig.execute_sql("UPDATE bucket_brigade.moves SET verified_at = clock_timestamp(), source_etag = etag, size_bytes = 2048 WHERE verified_at IS NULL")
        .await?;
    rig.execute_sql("VACUUM ANALYZE bucket_brigade.moves")
        .await?;
    rig.execute_sql("CHECKPOINT").await
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

async fn preview_seconds(rig: &BenchRig) -> Result<f64> {
    let began = Instant::now();
    start(rig, &["clean", "--older-than", "0s"])?
        .wait_for_exit()
        .await?;
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds to the first page that is done, and rows per second from then on.
async fn measure_command(
    rig: &BenchRig,
    command: &MeasuredCommand,
    rows: u64,
) -> Result<(f64, f64)> {
    let began = Instant::now();
    let process = start(rig, command.arguments)?;
    let (mut first, mut last) = (None, (began, 0));
    let most = rows / MAX_SHARE;
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let done: i64 = sqlx::query_scalar(AssertSqlSafe(command.count))
            .fetch_one(&rig.pool)
            .await?;
        let done = u64::try_from(done)?;
        if done > last.1 {
            last = (Instant::now(), done);
            first.get_or_insert(last);
        }
        let is_over = began.elapsed() > MEASURED_FOR * 4;
        let Some((at, _)) = first else {
            process.ensure_alive()?;
            ensure!(!is_over, "{:?} does nothing", command.arguments);
            continue;
        };
        if done >= most || at.elapsed() > MEASURED_FOR || process.ensure_alive().is_err() {
            break;
        }
    }
    stop_processes(vec![process]).await?;
    let (at, done) = first.unwrap_or(last);
    let seconds = (last.0 - at).as_secs_f64().max(1e-3);
    Ok(((at - began).as_secs_f64(), to_f64(last.1 - done) / seconds))
}
