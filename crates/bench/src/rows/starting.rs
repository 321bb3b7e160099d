//! How long until the first copy, and from SIGTERM to the exit with the hands full.

use anyhow::Result;

use super::Size;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, Work, stop};
use crate::stats::float;

const WORK: Work = Work {
    images: 40_000,
    consumers: 1,
    in_flight: 64,
    latency_ms: 50,
};
/// When the consumer is told to stop: it is at full speed by then.
const STOP_AFTER: u64 = 4000;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let rows = rig.fresh_rows(WORK.images).await?;
        rig.stub.set_up(&WORK.setup(&rows)).await?;
        let consumer = rig.consumer(0, WORK.in_flight)?;
        rig.wait_for("CopyObject", STOP_AFTER, std::slice::from_ref(&consumer))
            .await?;
        let (usages, stopping) = stop(vec![consumer]).await?;
        let first = rig.stub.counts().await?.of("CopyObject").first_us;
        starts.push(float(first.saturating_sub(usages[0].started_us)) / 1e6);
        stops.push(stopping.as_secs_f64());
    }
    let (start, stop) = (
        "start to first copy",
        "SIGTERM to exit, latency 50 ms, at full speed",
    );
    results.rows.push(Row::plain(
        "start",
        start,
        "s",
        &starts,
        Target::AtMost(1.0),
    )?);
    results
        .rows
        .push(Row::plain("stop", stop, "s", &stops, Target::AtMost(2.0))?);
    Ok(())
}
