//! How long until the first copy, and from SIGTERM to the exit with the hands full.

use anyhow::Result;

use super::Bench;
use crate::results::TargetBound;
use crate::rig::{WorkloadSpec, stop_processes};
use crate::stats::to_f64;

const WORKLOAD: WorkloadSpec = WorkloadSpec {
    latency_ms: 50,
    ..WorkloadSpec::of(40_000)
};
/// When the consumer gets SIGTERM: it is at full speed by then.
const STOP_AFTER: u64 = 4000;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let rig = &mut bench.rig;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let rows = rig.insert_rows(WORKLOAD.images).await?;
        rig.stub.set_up(&WORKLOAD.stub_setup(&rows)).await?;
        let consumer = rig.start_consumer(0, WORKLOAD.in_flight, &[])?;
        rig.wait_for_count("CopyObject", STOP_AFTER, [&consumer])
            .await?;
        let (usages, stopping) = stop_processes(vec![consumer]).await?;
        let copies = rig.stub.read_counts().await?.meter_for("CopyObject");
        let took = copies.first_us.saturating_sub(usages[0].started_us);
        starts.push(to_f64(took) / 1e6);
        stops.push(stopping.as_secs_f64());
    }
    let label = ("start", "start to first copy", "s");
    bench
        .results
        .add(label, &starts, TargetBound::AtMost(1.0))?;
    let what = "SIGTERM to exit, latency 50 ms, at full speed";
    let target = TargetBound::AtMost(2.0);
    bench.results.add(("stop", what, "s"), &stops, target)?;
    Ok(())
}
