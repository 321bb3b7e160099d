//! One consumer when each copy takes 50 ms: 256 in flight make 5,120 a second at best.

use anyhow::Result;

use super::Size;
use crate::bare::Call;
use crate::process::Running;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, Work};

const IMAGES: u64 = 60_000;
const IN_FLIGHT: usize = 256;
const LATENCY_MS: u64 = 50;
/// 256 ÷ 0.05 s.
const IDEAL: f64 = 5120.0;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    let work = Work {
        images: size.rows(IMAGES),
        consumers: 1,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
    };
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let done = rig.consume(work).await?;
        ours.push(done.counts.of("CopyObject").sustained_rate(work.images / 4));
        bare.push(bare_loop(rig, work).await?);
    }
    let what = "images/s, one consumer, store latency 50 ms, 256 in flight";
    // The loop may be kept from the ideal by the machine; then the consumer is, too.
    let reachable: Vec<f64> = bare.iter().map(|rate| rate.min(IDEAL)).collect();
    let against = (
        "the lesser of 5,120 and a bare CopyObject loop",
        &reachable[..],
    );
    let target = Some(Target::AtLeast(0.9));
    let row = Row::ratio(("rate_latency", what, "/s"), &ours, against, target)?;
    results.rows.push(row.noting("after the first quarter"));
    Ok(())
}

async fn bare_loop(rig: &mut Rig, work: Work) -> Result<f64> {
    let rows = 1..work.images + 1;
    rig.stub.set_up(&work.setup(&rows)).await?;
    let command = rig.bare(Call::Copy, &rows, work.in_flight)?;
    Running::start(command, Some(&rig.file("bare.log")))?
        .finish()
        .await?;
    let copies = rig.stub.counts().await?.of("CopyObject");
    Ok(copies.sustained_rate(work.images / 4))
}
