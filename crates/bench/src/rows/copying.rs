//! One consumer at full speed, against the calls it is made of and the tools that only copy.

use std::ops::Range;
use std::process::Command;

use anyhow::Result;

use super::MeasurementSize;
use super::peers::PeerTool;
use crate::bare_loop::BareCall;
use crate::process::RunningProcess;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const IMAGES: u64 = 20_000;
const IN_FLIGHT: usize = 64;

/// What one party took, run by run.
#[derive(Debug, Default)]
struct RunSamples {
    cpu_us: Vec<f64>,
    per_second: Vec<f64>,
    s3_requests: Vec<f64>,
    peak_rss_mib: Vec<f64>,
}

#[derive(Debug, Default)]
struct CopyingSamples {
    ours: RunSamples,
    sqs_requests: Vec<f64>,
    copy: RunSamples,
    our_copy: RunSamples,
    receive: RunSamples,
    commit: RunSamples,
    s5cmd: RunSamples,
    rclone: RunSamples,
}

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let images = size.scaled_rows(IMAGES);
    let mut all = CopyingSamples::default();
    for _ in 0..size.rounds {
        run_consumer(rig, images, &mut all).await?;
        run_bare_loops(rig, images, &mut all).await?;
        for peer in [PeerTool::S5cmd, PeerTool::Rclone] {
            run_peer(rig, images, peer, &mut all).await?;
        }
    }
    all.push_rows(results)
}

async fn run_consumer(rig: &mut BenchRig, images: u64, all: &mut CopyingSamples) -> Result<()> {
    let work = WorkloadSpec {
        images,
        consumers: 1,
        in_flight: IN_FLIGHT,
        latency_ms: 0,
    };
    let done = rig.consume_new_rows(work).await?;
    let copies = done.counts.meter_for("CopyObject");
    all.ours.cpu_us.push(done.cpu_us() / to_f64(images));
    all.ours.per_second.push(copies.sustained_rate(images / 4));
    let s3 = ["CopyObject", "HeadObject of an image", "other S3 requests"];
    let s3 = done.counts.count_requests(|name| s3.contains(&name));
    all.ours.s3_requests.push(to_f64(s3) / to_f64(images));
    // The queue is asked for its attributes at the start, and when there is nothing to receive.
    let sqs = done.counts.count_requests(|name| name.contains("Message"));
    // A row's message was sent, a tenth of a request, before this began.
    all.sqs_requests.push(to_f64(sqs) / to_f64(images) + 0.1);
    Ok(())
}

async fn run_bare_loops(rig: &mut BenchRig, images: u64, all: &mut CopyingSamples) -> Result<()> {
    for (call, runs, in_flight) in [
        (BareCall::Copy, &mut all.copy, IN_FLIGHT),
        (BareCall::OurCopy, &mut all.our_copy, IN_FLIGHT),
        (BareCall::Receive, &mut all.receive, 8),
        (BareCall::Commit, &mut all.commit, 1),
    ] {
        let rows = rig.insert_rows(images).await?;
        let command = rig.bare_command(call, &rows, in_flight)?;
        run_command(rig, command, &rows, runs).await?;
    }
    Ok(())
}

async fn run_peer(
    rig: &mut BenchRig,
    images: u64,
    peer: PeerTool,
    all: &mut CopyingSamples,
) -> Result<()> {
    let Some(program) = peer.find_program() else {
        return Ok(());
    };
    let rows = 1..images + 1;
    let command = peer.copy_command(program, rig, &rows, IN_FLIGHT)?;
    let runs = match peer {
        PeerTool::S5cmd => &mut all.s5cmd,
        PeerTool::Rclone => &mut all.rclone,
    };
    run_command(rig, command, &rows, runs).await
}

/// Runs a command to its end and takes its account.
async fn run_command(
    rig: &BenchRig,
    command: Command,
    rows: &Range<u64>,
    runs: &mut RunSamples,
) -> Result<()> {
    let setup = StubSetup {
        rows: rows.clone(),
        ..StubSetup::default()
    };
    rig.stub.set_up(&setup).await?;
    let running = RunningProcess::start(command, Some(&rig.file_path("peer.log")))?;
    let used = running.wait_for_exit().await?;
    let count = to_f64(rows.end - rows.start);
    let counts = rig.stub.read_counts().await?;
    let copies = counts.meter_for("CopyObject");
    runs.cpu_us.push(used.cpu.as_secs_f64() * 1e6 / count);
    runs.per_second
        .push(copies.sustained_rate(copies.items / 4));
    let s3 = counts.count_requests(|name| !name.contains("Message"));
    runs.s3_requests.push(to_f64(s3) / count);
    runs.peak_rss_mib
        .push(to_f64(used.peak_rss_bytes) / f64::from(1 << 20));
    Ok(())
}

impl CopyingSamples {
    fn push_rows(&self, results: &mut BenchResults) -> Result<()> {
        self.push_floor_rows(results)?;
        self.push_peer_rows(results)?;
        let s3 = &self.ours.s3_requests;
        results.rows.push(
            ResultRow::from_runs(
                "s3_requests",
                "S3 requests per image",
                "",
                s3,
                TargetBound::AtMost(1.0),
            )?
            .with_note("without those of the start: two HEADs and a probe of six"),
        );
        results.rows.push(
            ResultRow::from_runs(
                "sqs_requests",
                "SQS requests per image",
                "",
                &self.sqs_requests,
                TargetBound::AtMost(0.32),
            )?
            .with_note("with the feeder's 0.1"),
        );
        Ok(())
    }

    fn push_floor_rows(&self, results: &mut BenchResults) -> Result<()> {
        let ours = &self.ours.cpu_us;
        let sum: Vec<f64> = (0..ours.len())
            .map(|run| self.copy.cpu_us[run] + self.receive.cpu_us[run] + self.commit.cpu_us[run])
            .collect();
        let what = "CPU per image, consumer, whole pipeline";
        let mut push = |name, of: &str, theirs: &[f64], target| -> Result<()> {
            let row = ResultRow::from_ratio((name, what, "µs"), ours, (of, theirs), target)?;
            results.rows.push(row);
            Ok(())
        };
        let floor = "bare CopyObject loop, the SDK as it comes";
        push(
            "cpu_floor",
            floor,
            &self.copy.cpu_us,
            Some(TargetBound::AtMost(1.5)),
        )?;
        let each = "bare loops of each call: copy, receive and delete, commit";
        push("cpu_sum", each, &sum, Some(TargetBound::AtMost(1.15)))?;
        let own = "bare CopyObject loop, with the consumer's client";
        push("cpu_own_client", own, &self.our_copy.cpu_us, None)?;
        push(
            "cpu_receive",
            "receive and delete of ten",
            &self.receive.cpu_us,
            None,
        )?;
        push(
            "cpu_commit",
            "the commit statement",
            &self.commit.cpu_us,
            None,
        )
    }

    fn push_peer_rows(&self, results: &mut BenchResults) -> Result<()> {
        let cpu = "CPU per image, against a tool that only copies";
        let rate = "images/s, one consumer, store latency 0";
        for (peer, runs, cpu_target, rate_target) in [
            (PeerTool::S5cmd, &self.s5cmd, Some(0.25), Some(4.0)),
            (PeerTool::Rclone, &self.rclone, None, None),
        ] {
            let name = peer.name();
            let (cpu_name, rate_name) = (format!("cpu_{name}"), format!("rate_{name}"));
            if runs.cpu_us.is_empty() {
                let why = format!("{name} is not installed: script/setup --bench");
                results.rows.push(ResultRow::not_measured(
                    &cpu_name,
                    cpu,
                    TargetBound::AtMost(0.25),
                    &why,
                ));
                results.rows.push(ResultRow::not_measured(
                    &rate_name,
                    rate,
                    TargetBound::AtLeast(4.0),
                    &why,
                ));
                continue;
            }
            let theirs = (name, &runs.cpu_us[..]);
            let target = cpu_target.map(TargetBound::AtMost);
            results.rows.push(ResultRow::from_ratio(
                (&cpu_name, cpu, "µs"),
                &self.ours.cpu_us,
                theirs,
                target,
            )?);
            let theirs = (name, &runs.per_second[..]);
            let target = rate_target.map(TargetBound::AtLeast);
            let row = ResultRow::from_ratio(
                (&rate_name, rate, "/s"),
                &self.ours.per_second,
                theirs,
                target,
            )?;
            results.rows.push(row.with_note("after the first quarter"));
            for (what, values) in [
                ("peak_rss_mib", &runs.peak_rss_mib),
                ("s3_requests", &runs.s3_requests),
            ] {
                if let Some(spread) = crate::stats::SampleSpread::from_values(values) {
                    results
                        .figures
                        .insert(format!("{name}_{what}"), spread.median);
                }
            }
        }
        Ok(())
    }
}
