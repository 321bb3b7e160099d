//! A keyset page at the beginning of a large table and at its end.

use std::time::Instant;

use anyhow::{Context, Result};
use bucket_brigade_common::ledger::feed_source::PageReader as _;
use bucket_brigade_common::row_id::RowId;

use super::Bench;
use crate::results::TargetBound;
use crate::rig::BenchRig;
use crate::stats::SampleSpread;

const ROWS: u64 = 10_000_000;
const EARLY_ROW: u64 = 10_000;
const PAGE_SIZE: u32 = 1000;
const PAGE_COUNT: u64 = 40;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let count = bench.scaled_rows(ROWS).max(4 * EARLY_ROW);
    let rig = &mut bench.rig;
    rig.reset_tables().await?;
    let rows = rig.insert_rows(count).await?;
    let late = rows.end - PAGE_COUNT * u64::from(PAGE_SIZE) - 1;
    // Both ends come from memory: what is compared is the way there, not the disk.
    page_ms(rig, EARLY_ROW).await?;
    page_ms(rig, late).await?;
    let (mut early_ms, mut late_ms) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        early_ms.push(page_ms(rig, EARLY_ROW).await?);
        late_ms.push(page_ms(rig, late).await?);
    }
    let what = format!("a keyset page of {PAGE_SIZE} at row {}", rows.end - 1);
    let against = ("at row 10,000", &early_ms[..]);
    let target = Some(TargetBound::AtMost(1.2));
    let label = ("page", &*what, "ms");
    bench.results.add_ratio(label, &late_ms, against, target)?;
    bench.rig.reset_tables().await
}

/// The median page of those after `from`.
pub(super) async fn page_ms(rig: &BenchRig, from: u64) -> Result<f64> {
    let ledger = rig.open_ledger().await?;
    let mut times = Vec::new();
    for page in 0..PAGE_COUNT {
        let cursor = RowId::from_database((from + page * u64::from(PAGE_SIZE)).to_string());
        let started = Instant::now();
        ledger.read(Some(&cursor), PAGE_SIZE).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(SampleSpread::from_values(&times).context("no page")?.median)
}
