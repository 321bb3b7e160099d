//! What grows with the table: nothing should. Tables of a thousand to ten million rows, of which all but
//! the last few thousand have been moved, with their evidence in the ledger.

use anyhow::Result;

use super::MeasurementSize;
use super::paging::page_ms;
use crate::results::{BenchResults, GrowthPoint};
use crate::rig::{BenchRig, WorkloadSpec, stop_processes};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const TABLE_SIZES: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const MIB: f64 = 1024.0 * 1024.0;
/// Images moved at each size.
const MOVED_IMAGES: u64 = 20_000;

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    results.growth.clear();
    for rows in TABLE_SIZES {
        if rows * size.divisor <= TABLE_SIZES[TABLE_SIZES.len() - 1] {
            let growth = measure_size(rig, rows).await?;
            results.growth.push(growth);
        }
    }
    super::commands::measure(rig, size, results).await
}

async fn measure_size(rig: &mut BenchRig, rows: u64) -> Result<GrowthPoint> {
    rig.reset_tables().await?;
    let all = rig.insert_rows(rows).await?;
    let (feeder_cpu_us, feeder_rss_mib) = run_feeder(rig, rows).await?;
    let page_ms = page_ms(rig, all.end.saturating_sub(41_000)).await?;
    let images = MOVED_IMAGES.min(rows);
    let rest = all.end - images..all.end;
    pretend_moved(rig, rest.start).await?;
    let work = WorkloadSpec {
        images,
        consumers: 1,
        in_flight: 64,
        latency_ms: 0,
    };
    let done = rig.consume_rows(rest, work).await?;
    Ok(GrowthPoint {
        rows,
        consumer_cpu_us: done.cpu_us() / to_f64(images),
        images,
        consumer_rss_mib: to_f64(done.usages[0].peak_rss_bytes) / MIB,
        feeder_cpu_us,
        feeder_rss_mib,
        page_ms,
    })
}

/// The feeder over all rows: CPU per row, and peak memory.
async fn run_feeder(rig: &BenchRig, rows: u64) -> Result<(f64, f64)> {
    rig.stub.set_up(&StubSetup::default()).await?;
    let feeder = rig.start_feeder()?;
    rig.wait_for_count("SendMessageBatch", rows, std::slice::from_ref(&feeder))
        .await?;
    let (usages, _) = stop_processes(vec![feeder]).await?;
    let used = usages[0];
    let cpu = used.cpu.as_secs_f64() * 1e6 / to_f64(rows);
    Ok((cpu, to_f64(used.peak_rss_bytes) / MIB))
}

/// Rows before `first` as consumers would have left them.
pub(super) async fn pretend_moved(rig: &BenchRig, first: u64) -> Result<()> {
    let first = i64::try_from(first)?;
    sqlx::query(
        "WITH moved AS (
             UPDATE images SET path = 'avatar/avatar-' || id || '.png' WHERE id < $1 RETURNING id
         )
         INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
         SELECT r.id, m.id::text, 'image/avatar-' || m.id || '.png',
                'avatar/avatar-' || m.id || '.png', '9b2cf535f27731c974343645a3985328', 'bench'
           FROM moved m, bucket_brigade.run r",
    )
    .bind(first)
    .execute(&rig.pool)
    .await?;
    rig.execute_sql("VACUUM ANALYZE images").await?;
    rig.execute_sql("VACUUM ANALYZE bucket_brigade.moves")
        .await?;
    rig.execute_sql("CHECKPOINT").await
}
