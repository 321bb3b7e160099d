//! A store whose partitions, ranges of keys, serve so many copies a second each and are split when they are hot:
//! rows fed in stretches against rows fed by id.

use anyhow::Result;

use super::MeasurementSize;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec};
use crate::stats::to_f64;
use crate::stub::{PartitionLimits, StubSetup};

const PER_SECOND: u64 = 1000;
const PARTITIONS: u64 = 8;
/// Those of `FEED_ORDER=spread`.
const STRETCHES: u64 = 16;
/// At the full rate, once it is reached.
const SECONDS: u64 = 45;
const CONSUMERS: usize = 2;
const IN_FLIGHT: usize = 128;
const LATENCY_MS: u64 = 10;

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    // Smaller partitions rather than less time: they must be split.
    let per_second = PER_SECOND / size.divisor;
    let (mut spread, mut by_id, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let images = per_second * PARTITIONS * SECONDS;
        let (rate, refused_share) = run(rig, images, per_second, STRETCHES).await?;
        spread.push(rate);
        refused.push(refused_share);
        by_id.push(run(rig, images / PARTITIONS, per_second, 0).await?.0);
    }
    let sum = to_f64(per_second * PARTITIONS);
    let what =
        format!("copies/s, {PARTITIONS} partitions of {per_second}/s, rows fed in stretches");
    let all = vec![sum; spread.len()];
    let sum = ("the sum of the partitions", &all[..]);
    let target = Some(TargetBound::AtLeast(0.85));
    let row = ResultRow::from_ratio(("partitions_share", &what, "/s"), &spread, sum, target)?;
    results
        .rows
        .push(row.with_note("once split: the second half"));
    let by_id = ("rows fed by id", &by_id[..]);
    let target = Some(TargetBound::AtLeast(4.0));
    let row = ResultRow::from_ratio(("partitions_spread", &what, "/s"), &spread, by_id, target)?;
    results.rows.push(row);
    results.rows.push(ResultRow::from_runs(
        "partitions_refused",
        "share of these copies that was refused",
        "",
        &refused,
        TargetBound::AtMost(0.011),
    )?);
    Ok(())
}

/// Copies a second in the second half, and the share of all that was refused.
async fn run(
    rig: &mut BenchRig,
    images: u64,
    per_second: u64,
    stretches: u64,
) -> Result<(f64, f64)> {
    let work = WorkloadSpec {
        images,
        consumers: CONSUMERS,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
    };
    let setup = StubSetup {
        stretches,
        partitions: PartitionLimits {
            per_second: to_f64(per_second),
            most: usize::try_from(PARTITIONS)?,
        },
        ..work.stub_setup(&rig.insert_rows(images).await?)
    };
    let done = rig.consume_with(work, &setup, &[]).await?;
    let served = done.counts.meter_for("CopyObject");
    let refused = to_f64(done.counts.meter_for("CopyObject refused").items);
    let rate = served.sustained_rate(images / 2);
    Ok((rate, refused / (refused + to_f64(served.items))))
}
