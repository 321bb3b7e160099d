//! One, two and four consumers with 64 copies in flight each, when each copy takes 50 ms.

use anyhow::Result;

use super::Size;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, Work};

/// For each consumer: a dozen seconds.
const IMAGES: u64 = 15_000;
const IN_FLIGHT: usize = 64;
const LATENCY_MS: u64 = 50;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    let (mut one, mut two, mut four) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        for (consumers, rates) in [(1, &mut one), (2, &mut two), (4, &mut four)] {
            rates.push(rate(rig, size, consumers).await?);
        }
    }
    for (name, consumers, rates, target) in [
        ("scale_2", "2", &two, None),
        ("scale_4", "4", &four, Some(Target::AtLeast(3.8))),
    ] {
        let what = format!("images/s, {consumers} consumers, latency 50 ms, 64 in flight each");
        let row = Row::ratio((name, &what, "/s"), rates, ("one consumer", &one), target)?;
        results.rows.push(row.noting("after the first quarter"));
    }
    Ok(())
}

async fn rate(rig: &mut Rig, size: Size, consumers: usize) -> Result<f64> {
    let work = Work {
        images: size.rows(IMAGES) * consumers as u64,
        consumers,
        in_flight: IN_FLIGHT,
        latency_ms: LATENCY_MS,
    };
    let done = rig.consume(work).await?;
    Ok(done.counts.of("CopyObject").sustained_rate(work.images / 4))
}
