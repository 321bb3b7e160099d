//! The feeder against a loop that only sends.

use anyhow::Result;

use super::Bench;
use crate::bare_loop::BareCall;
use crate::results::TargetBound;
use crate::rig::BenchRig;
use crate::stats::to_f64;
use crate::stub::StubSetup;

const ROWS: u64 = 300_000;
/// The feeder's own.
const IN_FLIGHT: usize = 16;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let count = bench.scaled_rows(ROWS);
    let rig = &mut bench.rig;
    rig.reset_tables().await?;
    let rows = rig.insert_rows(count).await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (mut our_cpu, mut bare_cpu) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        our_cpu.push(rig.feed_rows(count).await?.cpu_us() / to_f64(count));
        ours.push(send_rate(rig).await?);
        rig.execute_sql("UPDATE bucket_brigade.feed_cursors SET cursor = NULL, sweep_fed = 0")
            .await?;
        rig.stub.set_up(&StubSetup::default()).await?;
        let used = rig.run_bare(BareCall::Send, &rows, IN_FLIGHT).await?;
        bare_cpu.push(used.cpu_us() / to_f64(count));
        bare.push(send_rate(rig).await?);
    }
    let against = "bare SendMessageBatch loop, 16 in flight";
    let (label, target) = (
        ("feeder_rate", "feeder, rows/s into the queue", "/s"),
        Some(TargetBound::AtLeast(0.8)),
    );
    let results = &mut bench.results;
    results.add_ratio(label, &ours, (against, &bare), target)?;
    let label = ("feeder_cpu", "CPU per row, feeder", "µs");
    results.add_ratio(label, &our_cpu, (against, &bare_cpu), None)?;
    bench.rig.reset_tables().await
}

async fn send_rate(rig: &BenchRig) -> Result<f64> {
    let counts = rig.stub.read_counts().await?;
    Ok(counts.meter_for("SendMessageBatch").rate())
}
