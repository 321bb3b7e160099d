//! One consumer when each copy takes 50 ms: 256 in flight make 5,120 a second at best.

use anyhow::Result;

use super::MeasurementSize;
use crate::bare_loop::BareCall;
use crate::process::RunningProcess;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec};

const IMAGES: u64 = 60_000;
const IN_FLIGHT: usize = 256;
const LATENCY_MS: u64 = 50;
/// 256 ÷ 0.05 s.
const IDEAL_RATE: f64 = 5120.0;

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
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let done = rig.consume_new_rows(work).await?;
        ours.push(
            done.counts
                .meter_for("CopyObject")
                .sustained_rate(work.images / 4),
        );
        bare.push(bare_loop_rate(rig, work).await?);
    }
    let what = "images/s, one consumer, store latency 50 ms, 256 in flight";
    // The loop may be kept from the ideal by the machine; then the consumer is, too.
    let reachable: Vec<f64> = bare.iter().map(|rate| rate.min(IDEAL_RATE)).collect();
    let against = (
        "the lesser of 5,120 and a bare CopyObject loop",
        &reachable[..],
    );
    let target = Some(TargetBound::AtLeast(0.9));
    let row = ResultRow::from_ratio(("rate_latency", what, "/s"), &ours, against, target)?;
    results.rows.push(row.with_note("after the first quarter"));
    Ok(())
}

async fn bare_loop_rate(rig: &mut BenchRig, work: WorkloadSpec) -> Result<f64> {
    let rows = 1..work.images + 1;
    rig.stub.set_up(&work.stub_setup(&rows)).await?;
    let command = rig.bare_command(BareCall::Copy, &rows, work.in_flight)?;
    RunningProcess::start(command, Some(&rig.file_path("bare.log")))?
        .wait_for_exit()
        .await?;
    let copies = rig.stub.read_counts().await?.meter_for("CopyObject");
    Ok(copies.sustained_rate(work.images / 4))
}
