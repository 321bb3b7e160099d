//! What grows with the table: nothing should. Tables of a thousand to ten million rows, of which all but
//! the last few thousand have been moved, with their evidence in the ledger.

use anyhow::Result;

use super::paging::page_ms;
use super::{Bench, commands, snapshot, sweeping};
use crate::results::GrowthPoint;
use crate::rig::{BenchRig, WorkloadSpec};
use crate::stats::to_f64;

const TABLE_SIZES: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const MOVED_IMAGES: u64 = 20_000;

/// From so many rows on, what feeder and commands cost is measured too.
const SMALL_TABLE: u64 = 100_000;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    bench.results.growth.clear();
    let largest = TABLE_SIZES[TABLE_SIZES.len() - 1] / bench.divisor;
    let (mut sweeps, mut runs) = (Vec::new(), Vec::new());
    for rows in TABLE_SIZES.into_iter().filter(|rows| *rows <= largest) {
        let growth = measure_size(&mut bench.rig, rows).await?;
        bench.results.growth.push(growth);
        if rows >= SMALL_TABLE {
            sweeps.push(sweeping::measure_size(&mut bench.rig, rows, bench.divisor).await?);
            runs.push(commands::measure_size(bench, rows).await?);
        }
    }
    sweeping::report(&sweeps, &mut bench.results)?;
    commands::report(&runs, &mut bench.results)?;
    snapshot::measure(bench).await?;
    bench.rig.reset_tables().await
}

async fn measure_size(rig: &mut BenchRig, rows: u64) -> Result<GrowthPoint> {
    rig.reset_tables().await?;
    let all = rig.insert_rows(rows).await?;
    let fed = rig.feed_rows(rows).await?;
    let page_ms = page_ms(rig, all.end.saturating_sub(41_000)).await?;
    let images = MOVED_IMAGES.min(rows);
    let rest = all.end - images..all.end;
    pretend_moved(rig, rest.start).await?;
    let done = rig.consume_rows(rest, WorkloadSpec::of(images)).await?;
    Ok(GrowthPoint {
        rows,
        consumer_cpu_us: done.cpu_us() / to_f64(images),
        images,
        consumer_rss_mib: done.usages[0].peak_rss_mib(),
        feeder_cpu_us: fed.cpu_us() / to_f64(rows),
        feeder_rss_mib: fed.peak_rss_mib(),
        page_ms,
    })
}

/// Rows before `first` as consumers would have left them.
pub(super) async fn pretend_moved(rig: &BenchRig, first: u64) -> Result<()> {
    sqlx::query(
        "WITH moved AS (
             UPDATE images SET path = 'avatar/avatar-' || id || '.png' WHERE id < $1 RETURNING id
         ), counted AS (
             INSERT INTO bucket_brigade.counters (run_id, worker, moved)
             SELECT id, 'bench', (SELECT count(*) FROM moved) FROM bucket_brigade.run
         )
         INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
         SELECT r.id, m.id::text, 'image/avatar-' || m.id || '.png',
                'avatar/avatar-' || m.id || '.png', '9b2cf535f27731c974343645a3985328', 'bench'
           FROM moved m, bucket_brigade.run r",
    )
    .bind(i64::try_from(first)?)
    .execute(&rig.pool)
    .await?;
    rig.vacuum().await
}
