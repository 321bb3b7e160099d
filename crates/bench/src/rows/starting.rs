//! How long until the first copy, and from SIGTERM to the exit with the hands full.

use anyhow::Result;

use super::MeasurementSize;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec, stop_processes};
use crate::stats::to_f64;

const STARTING_WORKLOAD: WorkloadSpec = WorkloadSpec {
    images: 40_000,
    consumers: 1,
    in_flight: 64,
    latency_ms: 50,
};
/// When the consumer gets SIGTERM: it is at full speed by then.
const STOP_AFTER: u64 = 4000;

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let rows = rig.insert_rows(STARTING_WORKLOAD.images).await?;
        rig.stub
            .set_up(&STARTING_WORKLOAD.stub_setup(&rows))
            .await?;
        let consumer = rig.start_consumer(0, STARTING_WORKLOAD.in_flight)?;
        rig.wait_for_count("CopyObject", STOP_AFTER, std::slice::from_ref(&consumer))
            .await?;
        let (usages, stopping) = stop_processes(vec![consumer]).await?;
        let first = rig
            .stub
            .read_counts()
            .await?
            .meter_for("CopyObject")
            .first_us;
        starts.push(to_f64(first.saturating_sub(usages[0].started_us)) / 1e6);
        stops.push(stopping.as_secs_f64());
    }
    let (start, stop) = (
        "start to first copy",
        "SIGTERM to exit, latency 50 ms, at full speed",
    );
    results.rows.push(ResultRow::from_runs(
        "start",
        start,
        "s",
        &starts,
        TargetBound::AtMost(1.0),
    )?);
    results.rows.push(ResultRow::from_runs(
        "stop",
        stop,
        "s",
        &stops,
        TargetBound::AtMost(2.0),
    )?);
    Ok(())
}
