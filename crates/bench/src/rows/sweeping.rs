//! What it costs the feeder to look for rows where all have moved, or all but the last hundred: through an index on
//! those that are left, and without one.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::database_load::DatabaseLoad;
use crate::process::{RunningProcess, built_binary};
use crate::results::{BenchResults, TargetBound};
use crate::rig::{BenchRig, stop_processes};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const ROWS_LEFT: u64 = 100;
const WATCHED_FOR: Duration = Duration::from_mins(1);
const MAX_START: Duration = Duration::from_mins(20);

/// On one table.
pub(super) struct SweepCosts {
    rows: u64,
    /// A whole sweep by id: buffers, and seconds with the feeder's start.
    sweep: (f64, f64),
    found_ms: f64,
    found_buffers: f64,
    without_index: WatchCosts,
    with_index: WatchCosts,
}

/// In a minute of `--watch` with nothing to do.
struct WatchCosts {
    table: DatabaseLoad,
    all: DatabaseLoad,
    cpu_ms: f64,
}

/// All rows of the table have moved, and stay so.
pub(super) async fn measure_size(
    rig: &mut BenchRig,
    rows: u64,
    divisor: u64,
) -> Result<SweepCosts> {
    // An index on the path would say that nothing is left.
    rig.execute_sql("DROP INDEX IF EXISTS images_path").await?;
    rig.execute_sql(
        "UPDATE bucket_brigade.run SET in_scope = (SELECT sum(moved) FROM bucket_brigade.counters)",
    )
    .await?;
    rig.stub.set_up(&StubSetup::default()).await?;
    let sweep = sweep_everything(rig).await?;
    let without_index = watch(rig, divisor).await?;
    rig.execute_sql("CREATE INDEX images_left ON images (id) WHERE path LIKE 'image/%'")
        .await?;
    let with_index = watch(rig, divisor).await?;
    let (found_ms, found_buffers) = find_last_rows(rig).await?;
    rig.execute_sql("DROP INDEX images_left").await?;
    rig.execute_sql("CREATE INDEX images_path ON images (path)")
        .await?;
    Ok(SweepCosts {
        rows,
        sweep,
        found_ms,
        found_buffers,
        without_index,
        with_index,
    })
}

async fn start_feeder(rig: &BenchRig, arguments: &[&str]) -> Result<RunningProcess> {
    rig.execute_sql(
        "UPDATE bucket_brigade.feed_cursors SET cursor = NULL, sweep_fed = 0;
         UPDATE bucket_brigade.run SET finished_at = NULL",
    )
    .await?;
    DatabaseLoad::reset(rig).await?;
    let mut command = rig.program_command(built_binary("feeder")?);
    command.args(arguments);
    rig.start_process(command, "feeder")
}

async fn sweep_everything(rig: &BenchRig) -> Result<(f64, f64)> {
    let feeder = start_feeder(rig, &[]).await?;
    let began = Instant::now();
    feeder.wait_for_exit().await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok((DatabaseLoad::read_of_images(rig).await?.buffers, seconds))
}

async fn watch(rig: &BenchRig, divisor: u64) -> Result<WatchCosts> {
    let feeder = start_feeder(rig, &["--watch"]).await?;
    wait_until_watching(rig, &feeder).await?;
    let cpu = feeder.cpu_ms();
    DatabaseLoad::reset(rig).await?;
    tokio::time::sleep(WATCHED_FOR / u32::try_from(divisor)?).await;
    let costs = WatchCosts {
        table: DatabaseLoad::read_of_images(rig).await?,
        all: DatabaseLoad::read(rig).await?,
        cpu_ms: feeder.cpu_ms() - cpu,
    };
    stop_processes(vec![feeder]).await?;
    Ok(costs)
}

async fn wait_until_watching(rig: &BenchRig, feeder: &RunningProcess) -> Result<()> {
    let waiting = Instant::now();
    loop {
        let watching: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM bucket_brigade.workers WHERE role = 'feeder' AND state LIKE 'watching%'
                AND seen_at > now() - interval '3 seconds')",
        )
        .fetch_one(&rig.pool)
        .await?;
        if watching {
            return Ok(());
        }
        feeder.ensure_alive()?;
        ensure!(waiting.elapsed() < MAX_START, "the feeder does not watch");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Milliseconds from the feeder's start to the last send, and buffers.
async fn find_last_rows(rig: &mut BenchRig) -> Result<(f64, f64)> {
    let left = rig.insert_rows(ROWS_LEFT).await?;
    rig.stub.set_up(&StubSetup::default()).await?;
    let feeder = start_feeder(rig, &[]).await?;
    rig.wait_for_count("SendMessageBatch", ROWS_LEFT, [&feeder])
        .await?;
    let buffers = DatabaseLoad::read_of_images(rig).await?.buffers;
    let sent_us = rig.stub.read_counts().await?;
    let sent_us = sent_us.meter_for("SendMessageBatch").last_us;
    let (usages, _) = stop_processes(vec![feeder]).await?;
    rig.delete_rows(left).await?;
    let ms = to_f64(sent_us.saturating_sub(usages[0].started_us)) / 1e3;
    Ok((ms, buffers))
}

/// The largest table against the smallest.
pub(super) fn report(costs: &[SweepCosts], results: &mut BenchResults) -> Result<()> {
    let [smallest, .., largest] = costs else {
        return Ok(());
    };
    for costs in costs {
        let watches = [("", &costs.without_index), ("_indexed", &costs.with_index)];
        for (index, watch) in watches {
            let name = |what: &str| format!("watch{index}_{what}_{}", costs.rows);
            let figures = &mut results.figures;
            figures.insert(name("statements"), watch.all.statements);
            figures.insert(name("buffers"), watch.all.buffers);
            figures.insert(name("cpu_ms"), watch.cpu_ms);
        }
        let (buffers, seconds) = costs.sweep;
        let name = |what: &str| format!("sweep_{what}_{}", costs.rows);
        results.figures.insert(name("buffers"), buffers);
        results.figures.insert(name("seconds"), seconds);
    }
    let size = largest.rows;
    let against = format!("of {} rows", smallest.rows);
    for (name, what, unit, ours, theirs) in [
        (
            "found_ms",
            format!("start to the last {ROWS_LEFT} rows sent, of {size}, with the index"),
            "ms",
            largest.found_ms,
            smallest.found_ms,
        ),
        (
            "found_buffers",
            format!("buffers of the same sweep, {size} rows"),
            "",
            largest.found_buffers,
            smallest.found_buffers,
        ),
    ] {
        let target = Some(TargetBound::AtMost(2.0));
        results.add_ratio((name, &what, unit), &[ours], (&against, &[theirs]), target)?;
    }
    let what =
        format!("buffers a minute of looking for rows, --watch, {size} rows, with the index");
    let label = ("watch_buffers_indexed", &*what, "");
    let buffers = [largest.with_index.table.buffers];
    results.add(label, &buffers, TargetBound::AtMost(100.0))?;
    let what = "the same without the index";
    let sweep = ("a whole sweep", &[largest.sweep.0][..]);
    let buffers = [largest.without_index.table.buffers];
    let target = Some(TargetBound::AtMost(0.01));
    results.add_ratio(("watch_buffers", what, ""), &buffers, sweep, target)?;
    Ok(())
}
