//! What Postgres has to do for a migration, and what the application notices of it.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::MissedTickBehavior;

use super::MeasurementSize;
use crate::bare_loop::BareCall;
use crate::process::RunningProcess;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec, stop_processes};
use crate::stats::{SampleSpread, percentile, to_f64};
use crate::stub::StubSetup;

const COMMITTED_ROWS: u64 = 50_000;
/// Rows that the application reads from, before and during the migration.
const READ_ROWS: u64 = 200_000;
/// A thousand images a second: 50 in flight, 50 ms each.
const PACED_IN_FLIGHT: usize = 50;
const PACED_LATENCY_MS: u64 = 50;
/// How long the application reads, and how often.
const READ_DURATION: Duration = Duration::from_secs(8);
const READ_INTERVAL: Duration = Duration::from_millis(2);

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    measure_statements(rig, size, results).await?;
    measure_commit_stage(rig, size, results).await?;
    measure_reads(rig, size, results).await
}

/// As `pg_stat_statements` counts them.
async fn measure_statements(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let (mut per_image, mut wal_bytes, mut ledger_bytes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let work = WorkloadSpec {
            images: size.scaled_rows(50_000),
            consumers: 1,
            in_flight: 64,
            latency_ms: 0,
        };
        let rows = rig.insert_rows(work.images).await?;
        rig.execute_sql("SELECT pg_stat_statements_reset()").await?;
        let (wal, ledger) = wal_and_evidence_bytes(rig).await?;
        rig.consume_rows(rows, work).await?;
        let (wal_after, ledger_after) = wal_and_evidence_bytes(rig).await?;
        wal_bytes.push((wal_after - wal) / to_f64(work.images));
        ledger_bytes.push((ledger_after - ledger) / to_f64(work.images));
        per_image.push(to_f64(count_statements(rig).await?) / to_f64(work.images));
    }
    let what = "Postgres statements per image, consumer";
    let row = ResultRow::from_runs(
        "statements",
        what,
        "",
        &per_image,
        TargetBound::AtMost(0.05),
    )?;
    results.rows.push(row);
    for (name, values) in [("wal", wal_bytes), ("ledger", ledger_bytes)] {
        let median = SampleSpread::from_values(&values).context("no run")?.median;
        results
            .figures
            .insert(format!("{name}_bytes_per_image"), median);
    }
    Ok(())
}

/// WAL since the server was made, and the size of the evidence with its index, both in bytes.
async fn wal_and_evidence_bytes(rig: &BenchRig) -> Result<(f64, f64)> {
    let written = sqlx::query_as(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8,
                pg_total_relation_size('bucket_brigade.moves')::float8",
    );
    Ok(written.fetch_one(&rig.pool).await?)
}

/// All statements but the bench's own.
async fn count_statements(rig: &BenchRig) -> Result<u64> {
    let calls: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
          WHERE query NOT LIKE '%pg_stat_statements%' AND query NOT LIKE '%FROM images i JOIN%'",
    )
    .fetch_one(&rig.pool)
    .await?;
    Ok(u64::try_from(calls)?)
}

async fn measure_commit_stage(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        ours.push(commit_rate(rig, size, BareCall::CommitStage, 512).await?);
        bare.push(commit_rate(rig, size, BareCall::Commit, 1).await?);
    }
    results.rows.push(ResultRow::from_ratio(
        ("commit_stage", "rows/s, the commit stage alone", "/s"),
        &ours,
        ("bare loop of the statement, one connection", &bare),
        Some(TargetBound::AtLeast(0.8)),
    )?);
    Ok(())
}

/// The rate that the process itself prints.
async fn commit_rate(
    rig: &mut BenchRig,
    size: MeasurementSize,
    call: BareCall,
    in_flight: usize,
) -> Result<f64> {
    let rows = rig.insert_rows(size.scaled_rows(COMMITTED_ROWS)).await?;
    let mut command = rig.bare_command(call, &rows, in_flight)?;
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {log}", output.status);
    let rate = String::from_utf8(output.stdout)?;
    rate.trim().parse().context("no rate was printed")
}

/// Idle and under way in turn.
async fn measure_reads(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let read_rows = rig.insert_rows(size.scaled_rows(READ_ROWS)).await?;
    let (mut idle, mut busy, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut beside = Vec::new();
    for _ in 0..size.rounds {
        idle.push(p99_ms(rig, &read_rows, size).await?);
        let (p99, rate) = during_migration(rig, &read_rows, size).await?;
        busy.push(p99);
        rates.push(rate);
        beside.push(beside_copies(rig, &read_rows, size).await?);
    }
    let rate = SampleSpread::from_values(&rates).context("no run")?.median;
    let what = "p99 of the application's point read, 1,000 images/s meanwhile";
    let row = ResultRow::from_ratio(
        ("reads_p99", what, "ms"),
        &busy,
        ("idle", &idle),
        Some(TargetBound::AtMost(1.5)),
    )?;
    results
        .rows
        .push(row.with_note(&format!("{rate:.0} images/s were copied meanwhile")));
    let what = "the same beside a bare CopyObject loop of this rate, which knows no database";
    let idle = ("idle", &idle[..]);
    let row = ResultRow::from_ratio(("reads_p99_beside", what, "ms"), &beside, idle, None)?;
    results.rows.push(row);
    Ok(())
}

/// Reads while as much is copied that the database hears nothing of: what the company on the processors
/// costs by itself.
async fn beside_copies(
    rig: &mut BenchRig,
    read_rows: &Range<u64>,
    size: MeasurementSize,
) -> Result<f64> {
    let work = paced_workload(size.scaled_rows(14_000).max(6_000));
    let rows = rig.insert_rows(work.images).await?;
    rig.stub.set_up(&work.stub_setup(&rows)).await?;
    let command = rig.bare_command(BareCall::OurCopy, &rows, work.in_flight)?;
    let copies = RunningProcess::start(command, Some(&rig.file_path("bare.log")))?;
    rig.wait_for_count("CopyObject", 1000, std::slice::from_ref(&copies))
        .await?;
    let p99 = p99_ms(rig, read_rows, size).await?;
    copies.wait_for_exit().await?;
    rig.stub.set_up(&StubSetup::default()).await?;
    Ok(p99)
}

fn paced_workload(images: u64) -> WorkloadSpec {
    WorkloadSpec {
        images,
        consumers: 1,
        in_flight: PACED_IN_FLIGHT,
        latency_ms: PACED_LATENCY_MS,
    }
}

/// Reads while a consumer works; only once it has come to its pace.
async fn during_migration(
    rig: &mut BenchRig,
    read_rows: &Range<u64>,
    size: MeasurementSize,
) -> Result<(f64, f64)> {
    // Twice what can be copied while the reading goes on, and the way to the pace.
    let work = paced_workload(size.scaled_rows(20_000).max(8_000));
    let rows = rig.insert_rows(work.images).await?;
    rig.stub.set_up(&work.stub_setup(&rows)).await?;
    let consumer: RunningProcess = rig.start_consumer(0, work.in_flight)?;
    rig.wait_for_count("CopyObject", 4000, std::slice::from_ref(&consumer))
        .await?;
    let (before, started) = (rig.stub.item_count("CopyObject").await?, Instant::now());
    let p99 = p99_ms(rig, read_rows, size).await?;
    let copied = rig.stub.item_count("CopyObject").await? - before;
    let rate = to_f64(copied) / started.elapsed().as_secs_f64();
    rig.stub.set_up(&StubSetup::default()).await?;
    stop_processes(vec![consumer]).await?;
    Ok((p99, rate))
}

async fn p99_ms(rig: &BenchRig, rows: &Range<u64>, size: MeasurementSize) -> Result<f64> {
    let mut connection = rig.pool.acquire().await?;
    let mut ticks = tokio::time::interval(READ_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let reading = READ_DURATION / if size.divisor > 1 { 8 } else { 1 };
    let (mut times, until) = (Vec::new(), Instant::now() + reading);
    while Instant::now() < until {
        ticks.tick().await;
        let id = i64::try_from(fastrand::u64(rows.clone()))?;
        let asked = Instant::now();
        sqlx::query("SELECT path FROM images WHERE id = $1")
            .bind(id)
            .fetch_one(&mut *connection)
            .await?;
        times.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    percentile(&times, 99.0).context("no read")
}
