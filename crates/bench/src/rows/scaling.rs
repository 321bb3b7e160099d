//! One, two and four consumers with 64 copies in flight each, when each copy takes 50 ms.

use anyhow::Result;

use super::MeasurementSize;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec};

/// For each consumer: a dozen seconds.
const IMAGES: u64 = 15_000;
const IN_FLIGHT: usize = 64;
const LATENCY_MS: u64 = 50;

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let (mut one, mut two, mut four) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        for (consumers, rates) in [(1, &mut one), (2, &mut two), (4, &mut four)] {
            rates.push(measure_rate(rig, size, consumers).await?);
        }
    }
    for (name, consumers, rates, target) in [
        ("scale_2", "2", &two, None),
        ("scale_4", "4", &four, Some(TargetBound::AtLeast(3.8))),
    ] {
        let what = format!("images/s, {consumers} consumers, latency 50 ms, 64 in flight each");
        let row =
            ResultRow::from_ratio((name, &what, "/s"), rates, ("one consumer", &one), target)?;
        results.rows.push(row.with_note("after the first quarter"));
    }
    Ok(())
}

async fn measure_rate(rig: &mut BenchRig, size: MeasurementSize, consumers: usize) -> Result<f64> {
    let work = WorkloadSpec {
        images: size.scaled_rows(IMAGES) * consumers as u64,
        consumers,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
    };
    let done = rig.consume_new_rows(work).await?;
    Ok(done
        .counts
        .meter_for("CopyObject")
        .sustained_rate(work.images / 4))
}
