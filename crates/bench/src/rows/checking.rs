//! `verify` against `rclone check` of the same objects.

use anyhow::Result;

use super::Bench;
use super::peers::PeerTool;
use crate::process::{ProcessUsage, built_binary};
use crate::results::TargetBound;
use crate::rig::BenchRig;
use crate::stats::to_f64;
use crate::stub::{StubSetup, now_us};

const OBJECTS: u64 = 50_000;
const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 3;

#[derive(Default)]
struct CheckSamples {
    seconds: Vec<f64>,
    cpu_us: Vec<f64>,
}

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let objects = bench.scaled_rows(OBJECTS);
    let (mut ours, mut theirs) = (CheckSamples::default(), CheckSamples::default());
    let rclone = PeerTool::Rclone.find_program();
    let rig = &mut bench.rig;
    rig.reset_tables().await?;
    let rows = rig.insert_rows(objects).await?;
    super::growth::pretend_moved(rig, rows.end).await?;
    let setup = StubSetup {
        rows,
        is_copied: true,
        ..StubSetup::default()
    };
    rig.stub.set_up(&setup).await?;
    for _ in 0..bench.rounds.min(ROUNDS) {
        ours.add(verify(rig).await?, objects);
        if let Some(rclone) = &rclone {
            let command = PeerTool::check_command(rclone.clone(), rig, IN_FLIGHT);
            let peer = rig.start_process(command, "peer")?;
            theirs.add(peer.wait_for_exit().await?, objects);
        }
    }
    report(bench, &ours, &theirs)
}

impl CheckSamples {
    /// Of a process that has just ended.
    fn add(&mut self, usage: ProcessUsage, objects: u64) {
        let took_us = now_us().saturating_sub(usage.started_us);
        self.seconds.push(to_f64(took_us) / 1e6);
        self.cpu_us.push(usage.cpu_us() / to_f64(objects));
    }
}

async fn verify(rig: &BenchRig) -> Result<ProcessUsage> {
    rig.execute_sql(
        "UPDATE bucket_brigade.moves SET verified_at = NULL;
         TRUNCATE bucket_brigade.verifications, bucket_brigade.mismatches, bucket_brigade.command_cursors",
    )
    .await?;
    rig.vacuum().await?;
    let mut command = rig.program_command(built_binary("feeder")?);
    command.args(["verify", "--listings"]);
    rig.start_process(command, "verify")?.wait_for_exit().await
}

fn report(bench: &mut Bench, ours: &CheckSamples, theirs: &CheckSamples) -> Result<()> {
    let results = &mut bench.results;
    for (name, what, unit, ours, theirs, most) in [
        (
            "check_seconds",
            "verify, start to end",
            "s",
            &ours.seconds,
            &theirs.seconds,
            0.5,
        ),
        (
            "check_cpu",
            "CPU per object, verify",
            "µs",
            &ours.cpu_us,
            &theirs.cpu_us,
            1.0 / 3.0,
        ),
    ] {
        let target = TargetBound::AtMost(most);
        if theirs.is_empty() {
            let why = "rclone is not installed: script/setup --bench";
            results.add_missing(name, what, target, why);
        } else {
            let rclone = ("rclone check, by listings", &theirs[..]);
            results.add_ratio((name, what, unit), ours, rclone, Some(target))?;
        }
    }
    Ok(())
}
