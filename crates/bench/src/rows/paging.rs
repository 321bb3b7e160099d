//! A keyset page at the beginning of a large table and at its end.

use std::time::Instant;

use anyhow::{Context, Result};
use bucket_brigade_common::ledger::Ledger;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::Scope;

use super::Size;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, run_spec};
use crate::stats::Spread;

const ROWS: u64 = 10_000_000;
/// Near the beginning.
const EARLY: u64 = 10_000;
const PAGE: u32 = 1000;
/// Pages read for one run.
const PAGES: u64 = 40;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    rig.start_over().await?;
    let rows = rig.fresh_rows(size.rows(ROWS).max(4 * EARLY)).await?;
    let late = rows.end - PAGES * u64::from(PAGE) - 1;
    // Both ends come from memory: what is compared is the way there, not the disk.
    page_ms(rig, EARLY).await?;
    page_ms(rig, late).await?;
    let (mut early_ms, mut late_ms) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        early_ms.push(page_ms(rig, EARLY).await?);
        late_ms.push(page_ms(rig, late).await?);
    }
    let what = format!("a keyset page of {PAGE} at row {}", rows.end - 1);
    results.rows.push(Row::ratio(
        ("page", &what, "ms"),
        &late_ms,
        ("at row 10,000", &early_ms),
        Some(Target::AtMost(1.2)),
    )?);
    rig.start_over().await
}

/// The median page of those after `from`.
pub(super) async fn page_ms(rig: &Rig, from: u64) -> Result<f64> {
    let ledger = Ledger::open(rig.pool.clone(), &run_spec()?, "bench").await?;
    let mut times = Vec::new();
    for page in 0..PAGES {
        let cursor = RowId::from_database((from + page * u64::from(PAGE)).to_string());
        let started = Instant::now();
        ledger.page(Some(&cursor), PAGE).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Spread::of(&times).context("no page")?.median)
}
