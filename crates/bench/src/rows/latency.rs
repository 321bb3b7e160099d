//! Consumers when each copy takes 50 ms: with 256 in flight, which make 5,120 a second at best, and one, two and four
//! with 64 each.

use anyhow::Result;

use super::Bench;
use crate::bare_loop::BareCall;
use crate::results::TargetBound;
use crate::rig::{BenchRig, WorkloadSpec};

const IMAGES: u64 = 60_000;
const IN_FLIGHT: usize = 256;
const LATENCY_MS: u64 = 50;
/// 256 ÷ 0.05 s.
const IDEAL_RATE: f64 = 5120.0;
/// For each of several consumers: a dozen seconds.
const IMAGES_OF_EACH: u64 = 15_000;

const AFTER_QUARTER: &str = "after the first quarter";

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let work = WorkloadSpec {
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
        ..WorkloadSpec::of(bench.scaled_rows(IMAGES))
    };
    let (mut ours, mut reachable) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        ours.push(bench.rig.consume_new_rows(work).await?.copy_rate());
        // The loop may be kept from the ideal by the machine; then the consumer is, too.
        reachable.push(bare_loop_rate(&bench.rig, work).await?.min(IDEAL_RATE));
    }
    let what = "images/s, one consumer, store latency 50 ms, 256 in flight";
    let against = "the lesser of 5,120 and a bare CopyObject loop";
    let (label, target) = (
        ("rate_latency", what, "/s"),
        Some(TargetBound::AtLeast(0.9)),
    );
    let row = bench
        .results
        .add_ratio(label, &ours, (against, &reachable), target)?;
    row.note = AFTER_QUARTER.into();
    Ok(())
}

async fn bare_loop_rate(rig: &BenchRig, work: WorkloadSpec) -> Result<f64> {
    let rows = 1..work.images + 1;
    rig.stub.set_up(&work.stub_setup(&rows)).await?;
    rig.run_bare(BareCall::Copy, &rows, work.in_flight).await?;
    let copies = rig.stub.read_counts().await?.meter_for("CopyObject");
    Ok(copies.sustained_rate(work.images / 4))
}

pub(super) async fn measure_scaling(bench: &mut Bench) -> Result<()> {
    let (mut one, mut two, mut four) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        for (consumers, rates) in [(1, &mut one), (2, &mut two), (4, &mut four)] {
            let work = WorkloadSpec {
                consumers,
                latency_ms: LATENCY_MS,
                ..WorkloadSpec::of(bench.scaled_rows(IMAGES_OF_EACH) * consumers as u64)
            };
            rates.push(bench.rig.consume_new_rows(work).await?.copy_rate());
        }
    }
    let target = Some(TargetBound::AtLeast(3.8));
    for (name, consumers, rates, target) in
        [("scale_2", 2, &two, None), ("scale_4", 4, &four, target)]
    {
        let what = format!("images/s, {consumers} consumers, latency 50 ms, 64 in flight each");
        let against = ("one consumer", &one[..]);
        let label = (name, &*what, "/s");
        let row = bench.results.add_ratio(label, rates, against, target)?;
        row.note = AFTER_QUARTER.into();
    }
    Ok(())
}
