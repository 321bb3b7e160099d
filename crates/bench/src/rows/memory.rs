//! Peak memory: a consumer with a thousand copies in flight, a feeder over ten million rows.

use anyhow::Result;

use super::MeasurementSize;
use crate::process::RunningProcess;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec, stop_processes};
use crate::stats::{SampleSpread, to_f64};
use crate::stub::StubSetup;

const MIB: f64 = 1024.0 * 1024.0;
/// A thousand in flight for half a second each.
const IN_FLIGHT: usize = 1000;
const LATENCY_MS: u64 = 500;
const IMAGES: u64 = 30_000;
const FED_ROWS: u64 = 10_000_000;

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let work = WorkloadSpec {
        images: size.scaled_rows(IMAGES),
        consumers: 1,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
    };
    let mut peaks = Vec::new();
    for _ in 0..size.rounds {
        let done = rig.consume_new_rows(work).await?;
        peaks.push(to_f64(done.usages[0].peak_rss_bytes) / MIB);
    }
    let what = "peak RSS, consumer, 1,000 in flight";
    results.rows.push(ResultRow::from_runs(
        "rss_consumer",
        what,
        "MiB",
        &peaks,
        TargetBound::AtMost(64.0),
    )?);
    measure_feeder(rig, size, results).await
}

/// One run: its samples on the way are what shows whether memory grows.
async fn measure_feeder(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    rig.reset_tables().await?;
    let rows = rig.insert_rows(size.scaled_rows(FED_ROWS)).await?;
    let count = rows.end - rows.start;
    rig.stub.set_up(&StubSetup::default()).await?;
    let feeder = rig.start_feeder()?;
    let mut samples = Vec::new();
    for tenth in 1..=10 {
        let sent = count * tenth / 10;
        rig.wait_for_count("SendMessageBatch", sent, std::slice::from_ref(&feeder))
            .await?;
        samples.push(to_f64(RunningProcess::rss_bytes(&feeder)) / MIB);
    }
    let (usages, _) = stop_processes(vec![feeder]).await?;
    let peak = to_f64(usages[0].peak_rss_bytes) / MIB;
    let what = format!("peak RSS, feeder over {count} rows");
    results.rows.push(ResultRow::from_runs(
        "rss_feeder",
        &what,
        "MiB",
        &[peak],
        TargetBound::AtMost(32.0),
    )?);
    let growth = samples[9] / samples[0];
    let what = "the same, at the last row against at a tenth of them";
    results.rows.push(ResultRow::from_runs(
        "rss_feeder_flat",
        what,
        "×",
        &[growth],
        TargetBound::AtMost(1.1),
    )?);
    for (tenth, sample) in (1..).zip(&samples) {
        results
            .figures
            .insert(format!("rss_feeder_at_{tenth:02}_tenths_mib"), *sample);
    }
    results.figures.extend(
        SampleSpread::from_values(&samples).map(|all| ("rss_feeder_median_mib".into(), all.median)),
    );
    rig.reset_tables().await
}
