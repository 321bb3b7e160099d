//! A store whose partitions, ranges of keys, serve so many copies a second each and are split when they are hot:
//! rows fed in stretches against rows fed by id.

use anyhow::Result;

use super::Bench;
use crate::results::TargetBound;
use crate::rig::{BenchRig, WorkloadSpec};
use crate::stats::to_f64;
use crate::stub::{PartitionLimits, StubSetup};

const PER_SECOND: u64 = 1000;
const PARTITIONS: u64 = 8;
/// Those of `FEED_ORDER=spread`.
const STRETCHES: u64 = 256;
/// At the full rate, once it is reached.
const SECONDS: u64 = 45;
const CONSUMERS: usize = 2;
const IN_FLIGHT: usize = 128;
const LATENCY_MS: u64 = 10;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    // Smaller partitions rather than less time: they must be split.
    let per_second = PER_SECOND / bench.divisor;
    let (mut spread, mut by_id, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        // As many of each stretch.
        let images = (per_second * PARTITIONS * SECONDS).next_multiple_of(STRETCHES);
        let (rate, refused_share) = run(&mut bench.rig, images, per_second, STRETCHES).await?;
        spread.push(rate);
        refused.push(refused_share);
        let (rate, _) = run(&mut bench.rig, images / PARTITIONS, per_second, 0).await?;
        by_id.push(rate);
    }
    let what =
        format!("copies/s, {PARTITIONS} partitions of {per_second}/s, rows fed in stretches");
    let all = vec![to_f64(per_second * PARTITIONS); spread.len()];
    let (sum, results) = (("the sum of the partitions", &all[..]), &mut bench.results);
    let label = ("partitions_share", &*what, "/s");
    let row = results.add_ratio(label, &spread, sum, Some(TargetBound::AtLeast(0.85)))?;
    row.note = "once split: the second half".into();
    let label = ("partitions_spread", &*what, "/s");
    let (by_id, target) = (("rows fed by id", &by_id[..]), TargetBound::AtLeast(4.0));
    results.add_ratio(label, &spread, by_id, Some(target))?;
    let what = "share of these copies that was refused";
    let label = ("partitions_refused", what, "");
    results.add(label, &refused, TargetBound::AtMost(0.011))?;
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
        consumers: CONSUMERS,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
        ..WorkloadSpec::of(images)
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
