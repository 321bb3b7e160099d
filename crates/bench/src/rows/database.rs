//! What Postgres has to do for a migration, and what the application notices of it.

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::MissedTickBehavior;

use super::Bench;
use crate::bare_loop::BareCall;
use crate::results::TargetBound;
use crate::rig::{BenchRig, WorkloadSpec, stop_processes};
use crate::stats::{SampleSpread, percentile, to_f64};
use crate::stub::StubSetup;

const COMMITTED_ROWS: u64 = 50_000;
/// Rows that the application reads from, before and during the migration.
const READ_ROWS: u64 = 200_000;
/// A thousand images a second: 50 in flight, 50 ms each.
const PACED_IN_FLIGHT: usize = 50;
const PACED_LATENCY_MS: u64 = 50;
/// Or what a bare loop of the same rate, which knows no database, costs where all share two processors.
pub(super) const READS_ALLOWED: &str = "1.5 × idle, or beside bare copies";
const READ_DURATION: Duration = Duration::from_secs(8);
const READ_INTERVAL: Duration = Duration::from_millis(2);

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    measure_statements(bench).await?;
    measure_commit_stage(bench).await?;
    measure_reads(bench).await
}

/// As `pg_stat_statements` counts them.
async fn measure_statements(bench: &mut Bench) -> Result<()> {
    let (mut per_image, mut wal_bytes, mut ledger_bytes) = (Vec::new(), Vec::new(), Vec::new());
    let images = bench.scaled_rows(50_000);
    let rig = &mut bench.rig;
    for _ in 0..bench.rounds {
        let rows = rig.insert_rows(images).await?;
        rig.execute_sql("SELECT pg_stat_statements_reset()").await?;
        let (wal, ledger) = wal_and_evidence_bytes(rig).await?;
        rig.consume_rows(rows, WorkloadSpec::of(images)).await?;
        let (wal_after, ledger_after) = wal_and_evidence_bytes(rig).await?;
        wal_bytes.push((wal_after - wal) / to_f64(images));
        ledger_bytes.push((ledger_after - ledger) / to_f64(images));
        per_image.push(to_f64(count_statements(rig).await?) / to_f64(images));
    }
    let label = ("statements", "Postgres statements per image, consumer", "");
    bench
        .results
        .add(label, &per_image, TargetBound::AtMost(0.05))?;
    for (name, values) in [("wal", wal_bytes), ("ledger", ledger_bytes)] {
        let median = SampleSpread::from_values(&values).context("no run")?.median;
        let name = format!("{name}_bytes_per_image");
        bench.results.figures.insert(name, median);
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

async fn measure_commit_stage(bench: &mut Bench) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        ours.push(commit_rate(bench, BareCall::CommitStage, 512).await?);
        bare.push(commit_rate(bench, BareCall::Commit, 1).await?);
    }
    let label = ("commit_stage", "rows/s, the commit stage alone", "/s");
    let against = ("bare loop of the statement, one connection", &bare[..]);
    let target = Some(TargetBound::AtLeast(0.8));
    bench.results.add_ratio(label, &ours, against, target)?;
    Ok(())
}

/// The rate that the process itself prints.
async fn commit_rate(bench: &mut Bench, call: BareCall, in_flight: usize) -> Result<f64> {
    let count = bench.scaled_rows(COMMITTED_ROWS);
    let rows = bench.rig.insert_rows(count).await?;
    let mut command = bench.rig.bare_command(call, &rows, in_flight)?;
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {log}", output.status);
    let rate = String::from_utf8(output.stdout)?;
    rate.trim().parse().context("no rate was printed")
}

/// Idle and under way in turn.
async fn measure_reads(bench: &mut Bench) -> Result<()> {
    let count = bench.scaled_rows(READ_ROWS);
    let read_rows = bench.rig.insert_rows(count).await?;
    let (mut idle, mut busy, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut beside = Vec::new();
    for _ in 0..bench.rounds {
        idle.push(p99_ms(bench, &read_rows).await?);
        let (p99, rate) = during_migration(bench, &read_rows).await?;
        busy.push(p99);
        rates.push(rate);
        beside.push(beside_copies(bench, &read_rows).await?);
    }
    let rate = SampleSpread::from_values(&rates).context("no run")?.median;
    let allowed = idle.iter().zip(&beside);
    let allowed: Vec<f64> = allowed
        .map(|(idle, beside)| beside.max(idle * 1.5))
        .collect();
    let what = "p99 of the application's point read, 1,000 images/s meanwhile";
    let label = ("reads_p99", what, "ms");
    let against = (READS_ALLOWED, &allowed[..]);
    let target = Some(TargetBound::AtMost(1.0));
    let row = bench.results.add_ratio(label, &busy, against, target)?;
    row.note = format!("{rate:.0} images/s were copied meanwhile");
    Ok(())
}

/// Reads while as much is copied that the database hears nothing of: what the company on the processors
/// costs by itself.
async fn beside_copies(bench: &mut Bench, read_rows: &Range<u64>) -> Result<f64> {
    let (rows, work) = set_up_paced(bench, 14_000, 6_000).await?;
    let rig = &bench.rig;
    let command = rig.bare_command(BareCall::OurCopy, &rows, work.in_flight)?;
    let copies = rig.start_process(command, "bare")?;
    rig.wait_for_count("CopyObject", 1000, [&copies]).await?;
    let p99 = p99_ms(bench, read_rows).await?;
    copies.wait_for_exit().await?;
    rig.stub.set_up(&StubSetup::default()).await?;
    Ok(p99)
}

/// Twice what can be copied while the reading goes on, and the way to the pace.
async fn set_up_paced(
    bench: &mut Bench,
    images: u64,
    least: u64,
) -> Result<(Range<u64>, WorkloadSpec)> {
    let work = WorkloadSpec {
        in_flight: PACED_IN_FLIGHT,
        latency_ms: PACED_LATENCY_MS,
        ..WorkloadSpec::of(bench.scaled_rows(images).max(least))
    };
    let rows = bench.rig.insert_rows(work.images).await?;
    bench.rig.stub.set_up(&work.stub_setup(&rows)).await?;
    Ok((rows, work))
}

/// Reads while a consumer works; only once it has come to its pace.
async fn during_migration(bench: &mut Bench, read_rows: &Range<u64>) -> Result<(f64, f64)> {
    let (_, work) = set_up_paced(bench, 20_000, 8_000).await?;
    let rig = &bench.rig;
    let consumer = rig.start_consumer(0, work.in_flight, &[])?;
    rig.wait_for_count("CopyObject", 4000, [&consumer]).await?;
    let (before, started) = (rig.stub.item_count("CopyObject").await?, Instant::now());
    let p99 = p99_ms(bench, read_rows).await?;
    let copied = rig.stub.item_count("CopyObject").await? - before;
    let rate = to_f64(copied) / started.elapsed().as_secs_f64();
    rig.stub.set_up(&StubSetup::default()).await?;
    stop_processes(vec![consumer]).await?;
    Ok((p99, rate))
}

pub(super) async fn p99_ms(bench: &Bench, rows: &Range<u64>) -> Result<f64> {
    let reading = READ_DURATION / if bench.divisor > 1 { 8 } else { 1 };
    let (p99, ()) = p99_during(&bench.rig, rows, tokio::time::sleep(reading)).await?;
    Ok(p99)
}

/// Reads for as long as `work` goes on.
pub(super) async fn p99_during<T>(
    rig: &BenchRig,
    rows: &Range<u64>,
    work: impl Future<Output = T>,
) -> Result<(f64, T)> {
    let is_over = Cell::new(false);
    let work = async {
        let result = work.await;
        is_over.set(true);
        result
    };
    let (times, result) = tokio::join!(read_times(rig, rows, &is_over), work);
    let p99 = percentile(&times?, 99.0).context("no read")?;
    Ok((p99, result))
}

/// In milliseconds, sorted.
async fn read_times(rig: &BenchRig, rows: &Range<u64>, is_over: &Cell<bool>) -> Result<Vec<f64>> {
    let mut connection = rig.pool.acquire().await?;
    let mut ticks = tokio::time::interval(READ_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut times = Vec::new();
    while !is_over.get() {
        ticks.tick().await;
        let id = i64::try_from(fastrand::u64(rows.clone()))?;
        let asked = Instant::now();
        let query = sqlx::query("SELECT /* bench */ path FROM images WHERE id = $1").bind(id);
        query.fetch_one(&mut *connection).await?;
        times.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
