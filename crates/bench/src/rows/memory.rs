//! Peak memory: a consumer with a thousand copies in flight, a feeder over ten million rows.

use anyhow::Result;

use super::Size;
use crate::process::Running;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, Work, stop};
use crate::stats::{Spread, float};
use crate::stub::Setup;

const MIB: f64 = 1024.0 * 1024.0;
/// A thousand in flight for half a second each.
const IN_FLIGHT: usize = 1000;
const LATENCY_MS: u64 = 500;
const IMAGES: u64 = 30_000;
const FED: u64 = 10_000_000;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    let work = Work {
        images: size.rows(IMAGES),
        consumers: 1,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
    };
    let mut peaks = Vec::new();
    for _ in 0..size.rounds {
        let done = rig.consume(work).await?;
        peaks.push(float(done.usages[0].peak_rss_bytes) / MIB);
    }
    let what = "peak RSS, consumer, 1,000 in flight";
    results.rows.push(Row::plain(
        "rss_consumer",
        what,
        "MiB",
        &peaks,
        Target::AtMost(64.0),
    )?);
    feeder(rig, size, results).await
}

/// One run: its samples on the way are what shows whether memory grows.
async fn feeder(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    rig.start_over().await?;
    let rows = rig.fresh_rows(size.rows(FED)).await?;
    let count = rows.end - rows.start;
    rig.stub.set_up(&Setup::default()).await?;
    let feeder = rig.feeder()?;
    let mut samples = Vec::new();
    for tenth in 1..=10 {
        let sent = count * tenth / 10;
        rig.wait_for("SendMessageBatch", sent, std::slice::from_ref(&feeder))
            .await?;
        samples.push(float(Running::rss_bytes(&feeder)) / MIB);
    }
    let (usages, _) = stop(vec![feeder]).await?;
    let peak = float(usages[0].peak_rss_bytes) / MIB;
    let what = format!("peak RSS, feeder over {count} rows");
    results.rows.push(Row::plain(
        "rss_feeder",
        &what,
        "MiB",
        &[peak],
        Target::AtMost(32.0),
    )?);
    let growth = samples[9] / samples[0];
    let what = "the same, at the last row against at a tenth of them";
    results.rows.push(Row::plain(
        "rss_feeder_flat",
        what,
        "×",
        &[growth],
        Target::AtMost(1.1),
    )?);
    for (tenth, sample) in (1..).zip(&samples) {
        results
            .told
            .insert(format!("rss_feeder_at_{tenth:02}_tenths_mib"), *sample);
    }
    results
        .told
        .extend(Spread::of(&samples).map(|all| ("rss_feeder_median_mib".into(), all.median)));
    rig.start_over().await
}
