//! Peak memory: a consumer with a thousand copies in flight, a feeder over ten million rows.

use anyhow::Result;

use super::Bench;
use crate::process::to_mib;
use crate::results::TargetBound;
use crate::rig::{WorkloadSpec, stop_processes};
use crate::stats::SampleSpread;
use crate::stub::StubSetup;

/// A thousand in flight for half a second each.
const IN_FLIGHT: usize = 1000;
const LATENCY_MS: u64 = 500;
const IMAGES: u64 = 30_000;
const FED_ROWS: u64 = 10_000_000;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let work = WorkloadSpec {
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
        ..WorkloadSpec::of(bench.scaled_rows(IMAGES))
    };
    let mut peaks = Vec::new();
    for _ in 0..bench.rounds {
        let done = bench.rig.consume_new_rows(work).await?;
        peaks.push(done.usages[0].peak_rss_mib());
    }
    let label = ("rss_consumer", "peak RSS, consumer, 1,000 in flight", "MiB");
    bench
        .results
        .add(label, &peaks, TargetBound::AtMost(64.0))?;
    measure_feeder(bench).await
}

/// One run: its samples on the way are what shows whether memory grows.
async fn measure_feeder(bench: &mut Bench) -> Result<()> {
    let count = bench.scaled_rows(FED_ROWS);
    let (rig, results) = (&mut bench.rig, &mut bench.results);
    rig.reset_tables().await?;
    rig.insert_rows(count).await?;
    rig.stub.set_up(&StubSetup::default()).await?;
    let feeder = rig.start_feeder()?;
    let mut samples = Vec::new();
    for tenth in 1..=10 {
        rig.wait_for_count("SendMessageBatch", count * tenth / 10, [&feeder])
            .await?;
        samples.push(to_mib(feeder.rss_bytes()));
    }
    let (usages, _) = stop_processes(vec![feeder]).await?;
    let what = format!("peak RSS, feeder over {count} rows");
    let peak = usages[0].peak_rss_mib();
    let target = TargetBound::AtMost(32.0);
    results.add(("rss_feeder", &what, "MiB"), &[peak], target)?;
    let growth = samples[9] / samples[0];
    let what = "the same, at the last row against at a tenth of them";
    let target = TargetBound::AtMost(1.1);
    results.add(("rss_feeder_flat", what, "×"), &[growth], target)?;
    let tenths = (1..).zip(&samples);
    results
        .figures
        .extend(tenths.map(|(tenth, mib)| (format!("rss_feeder_at_{tenth:02}_tenths_mib"), *mib)));
    results.figures.extend(
        SampleSpread::from_values(&samples).map(|all| ("rss_feeder_median_mib".into(), all.median)),
    );
    rig.reset_tables().await
}
