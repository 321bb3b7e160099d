//! The feeder against a loop that only sends.

use anyhow::Result;

use super::MeasurementSize;
use crate::bare_loop::BareCall;
use crate::process::RunningProcess;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, stop_processes};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const ROWS: u64 = 300_000;
/// The feeder's own.
const IN_FLIGHT: usize = 16;

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    rig.reset_tables().await?;
    let rows = rig.insert_rows(size.scaled_rows(ROWS)).await?;
    let count = rows.end - rows.start;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (mut our_cpu, mut bare_cpu) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        rig.stub.set_up(&StubSetup::default()).await?;
        let feeder = rig.start_feeder()?;
        rig.wait_for_count("SendMessageBatch", count, std::slice::from_ref(&feeder))
            .await?;
        ours.push(
            rig.stub
                .read_counts()
                .await?
                .meter_for("SendMessageBatch")
                .rate(),
        );
        // No consumer moves the rows, so it would begin again.
        let (usages, _) = stop_processes(vec![feeder]).await?;
        our_cpu.push(usages[0].cpu.as_secs_f64() * 1e6 / to_f64(count));
        rig.execute_sql("UPDATE bucket_brigade.feed_cursors SET cursor = NULL, sweep_fed = 0")
            .await?;

        rig.stub.set_up(&StubSetup::default()).await?;
        let command = rig.bare_command(BareCall::Send, &rows, IN_FLIGHT)?;
        let used = RunningProcess::start(command, Some(&rig.file_path("bare.log")))?
            .wait_for_exit()
            .await?;
        bare.push(
            rig.stub
                .read_counts()
                .await?
                .meter_for("SendMessageBatch")
                .rate(),
        );
        bare_cpu.push(used.cpu.as_secs_f64() * 1e6 / to_f64(count));
    }
    let against = "bare SendMessageBatch loop, 16 in flight";
    results.rows.push(ResultRow::from_ratio(
        ("feeder_rate", "feeder, rows/s into the queue", "/s"),
        &ours,
        (against, &bare),
        Some(TargetBound::AtLeast(0.8)),
    )?);
    results.rows.push(ResultRow::from_ratio(
        ("feeder_cpu", "CPU per row, feeder", "µs"),
        &our_cpu,
        (against, &bare_cpu),
        None,
    )?);
    rig.reset_tables().await
}
