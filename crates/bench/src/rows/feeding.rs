//! The feeder against a loop that only sends.

use anyhow::Result;

use super::Size;
use crate::bare::Call;
use crate::process::Running;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, stop};
use crate::stats::float;
use crate::stub::Setup;

const ROWS: u64 = 300_000;
/// The feeder's own.
const IN_FLIGHT: usize = 16;

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    rig.start_over().await?;
    let rows = rig.fresh_rows(size.rows(ROWS)).await?;
    let count = rows.end - rows.start;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (mut our_cpu, mut bare_cpu) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        rig.stub.set_up(&Setup::default()).await?;
        let feeder = rig.feeder()?;
        rig.wait_for("SendMessageBatch", count, std::slice::from_ref(&feeder))
            .await?;
        ours.push(rig.stub.counts().await?.of("SendMessageBatch").rate());
        // Nobody moves the rows, so it would begin again.
        let (usages, _) = stop(vec![feeder]).await?;
        our_cpu.push(usages[0].cpu.as_secs_f64() * 1e6 / float(count));
        rig.execute("UPDATE bucket_brigade.run SET cursor = NULL, sweep_fed = 0")
            .await?;

        rig.stub.set_up(&Setup::default()).await?;
        let command = rig.bare(Call::Send, &rows, IN_FLIGHT)?;
        let used = Running::start(command, Some(&rig.file("bare.log")))?
            .finish()
            .await?;
        bare.push(rig.stub.counts().await?.of("SendMessageBatch").rate());
        bare_cpu.push(used.cpu.as_secs_f64() * 1e6 / float(count));
    }
    let against = "bare SendMessageBatch loop, 16 in flight";
    results.rows.push(Row::ratio(
        ("feeder_rate", "feeder, rows/s into the queue", "/s"),
        &ours,
        (against, &bare),
        Some(Target::AtLeast(0.8)),
    )?);
    results.rows.push(Row::ratio(
        ("feeder_cpu", "CPU per row, feeder", "µs"),
        &our_cpu,
        (against, &bare_cpu),
        None,
    )?);
    rig.start_over().await
}
