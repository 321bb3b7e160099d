//! What grows with the table: nothing should. Tables of a thousand to ten million rows, of which all but
//! the last few thousand have been moved, with their evidence in the ledger.

use anyhow::Result;

use super::Size;
use super::paging::page_ms;
use crate::results::{Growth, Results};
use crate::rig::{Rig, Work, stop};
use crate::stats::float;
use crate::stub::Setup;

const SIZES: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const MIB: f64 = 1024.0 * 1024.0;
/// Images moved at each size.
const MOVED: u64 = 20_000;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    results.growth.clear();
    for rows in SIZES {
        if rows / size.divisor >= 1000 || rows == SIZES[0] {
            let growth = at(rig, rows).await?;
            results.growth.push(growth);
        }
    }
    rig.start_over().await
}

async fn at(rig: &mut Rig, rows: u64) -> Result<Growth> {
    rig.start_over().await?;
    let all = rig.fresh_rows(rows).await?;
    let (feeder_cpu_us, feeder_rss_mib) = feed(rig, rows).await?;
    let page_ms = page_ms(rig, all.end.saturating_sub(41_000)).await?;
    let images = MOVED.min(rows);
    let rest = all.end - images..all.end;
    pretend_moved(rig, rest.start).await?;
    let work = Work {
        images,
        consumers: 1,
        in_flight: 64,
        latency_ms: 0,
    };
    let done = rig.consume_rows(rest, work).await?;
    Ok(Growth {
        rows,
        consumer_cpu_us: done.cpu_us() / float(images),
        images,
        consumer_rss_mib: float(done.usages[0].peak_rss_bytes) / MIB,
        feeder_cpu_us,
        feeder_rss_mib,
        page_ms,
    })
}

/// The feeder over all rows: CPU per row, and peak memory.
async fn feed(rig: &Rig, rows: u64) -> Result<(f64, f64)> {
    rig.stub.set_up(&Setup::default()).await?;
    let feeder = rig.feeder()?;
    rig.wait_for("SendMessageBatch", rows, std::slice::from_ref(&feeder))
        .await?;
    let (usages, _) = stop(vec![feeder]).await?;
    let used = usages[0];
    let cpu = used.cpu.as_secs_f64() * 1e6 / float(rows);
    Ok((cpu, float(used.peak_rss_bytes) / MIB))
}

/// Rows before `first` as consumers would have left them.
async fn pretend_moved(rig: &Rig, first: u64) -> Result<()> {
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
    rig.execute("VACUUM ANALYZE images").await?;
    rig.execute("VACUUM ANALYZE bucket_brigade.moves").await?;
    rig.execute("CHECKPOINT").await
}
