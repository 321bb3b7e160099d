//! One consumer at full speed, against the calls it is made of and the tools that only copy.

use std::ops::Range;
use std::process::Command;

use anyhow::Result;

use super::Bench;
use super::peers::PeerTool;
use crate::bare_loop::BareCall;
use crate::results::{BenchResults, TargetBound};
use crate::rig::{BenchRig, WorkloadSpec};
use crate::stats::{SampleSpread, to_f64};
use crate::stub::StubSetup;

const IMAGES: u64 = 20_000;
const IN_FLIGHT: usize = 64;

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

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let images = bench.scaled_rows(IMAGES);
    let mut all = CopyingSamples::default();
    for _ in 0..bench.rounds {
        run_consumer(&mut bench.rig, images, &mut all).await?;
        run_bare_loops(&mut bench.rig, images, &mut all).await?;
        for (peer, runs) in [
            (PeerTool::S5cmd, &mut all.s5cmd),
            (PeerTool::Rclone, &mut all.rclone),
        ] {
            if let Some(program) = peer.find_program() {
                let rows = 1..images + 1;
                let command = peer.copy_command(program, &bench.rig, &rows, IN_FLIGHT)?;
                run_command(&bench.rig, command, &rows, runs).await?;
            }
        }
    }
    all.push_rows(&mut bench.results)
}

async fn run_consumer(rig: &mut BenchRig, images: u64, all: &mut CopyingSamples) -> Result<()> {
    let done = rig.consume_new_rows(WorkloadSpec::of(images)).await?;
    all.ours.cpu_us.push(done.cpu_us() / to_f64(images));
    all.ours.per_second.push(done.copy_rate());
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
    let used = rig.start_process(command, "peer")?.wait_for_exit().await?;
    let count = to_f64(rows.end - rows.start);
    let counts = rig.stub.read_counts().await?;
    let copies = counts.meter_for("CopyObject");
    runs.cpu_us.push(used.cpu_us() / count);
    runs.per_second
        .push(copies.sustained_rate(copies.items / 4));
    let s3 = counts.count_requests(|name| !name.contains("Message"));
    runs.s3_requests.push(to_f64(s3) / count);
    runs.peak_rss_mib.push(used.peak_rss_mib());
    Ok(())
}

impl CopyingSamples {
    fn push_rows(&self, results: &mut BenchResults) -> Result<()> {
        self.push_floor_rows(results)?;
        self.push_peer_rows(results)?;
        for (label, runs, most, note) in [
            (
                ("s3_requests", "S3 requests per image", ""),
                &self.ours.s3_requests,
                1.0,
                "without those of the start: two HEADs and a probe of six",
            ),
            (
                ("sqs_requests", "SQS requests per image", ""),
                &self.sqs_requests,
                0.32,
                "with the feeder's 0.1",
            ),
        ] {
            results.add(label, runs, TargetBound::AtMost(most))?.note = note.into();
        }
        Ok(())
    }

    fn push_floor_rows(&self, results: &mut BenchResults) -> Result<()> {
        let ours = &self.ours.cpu_us;
        let sum: Vec<f64> = (0..ours.len())
            .map(|run| self.copy.cpu_us[run] + self.receive.cpu_us[run] + self.commit.cpu_us[run])
            .collect();
        let what = "CPU per image, consumer, whole pipeline";
        for (name, of, theirs, most) in [
            (
                "cpu_floor",
                "bare CopyObject loop, the SDK as it comes",
                &self.copy.cpu_us,
                Some(0.7),
            ),
            (
                "cpu_sum",
                "bare loops of each call: copy, receive and delete, commit",
                &sum,
                Some(1.15),
            ),
            (
                "cpu_own_client",
                "bare CopyObject loop, with the consumer's client",
                &self.our_copy.cpu_us,
                None,
            ),
            (
                "cpu_receive",
                "receive and delete of ten",
                &self.receive.cpu_us,
                None,
            ),
            (
                "cpu_commit",
                "the commit statement",
                &self.commit.cpu_us,
                None,
            ),
        ] {
            let target = most.map(TargetBound::AtMost);
            results.add_ratio((name, what, "µs"), ours, (of, theirs), target)?;
        }
        Ok(())
    }

    fn push_peer_rows(&self, results: &mut BenchResults) -> Result<()> {
        let cpu = "CPU per image, against a tool that only copies";
        let rate = "images/s, one consumer, store latency 0";
        let at_most = TargetBound::AtMost(0.25);
        for (peer, runs, least_rate) in [
            (PeerTool::S5cmd, &self.s5cmd, 4.0),
            (PeerTool::Rclone, &self.rclone, 2.0),
        ] {
            let at_least = TargetBound::AtLeast(least_rate);
            let name = peer.name();
            let (cpu_name, rate_name) = (format!("cpu_{name}"), format!("rate_{name}"));
            if runs.cpu_us.is_empty() {
                let why = format!("{name} is not installed: script/setup --bench");
                results.add_missing(&cpu_name, cpu, at_most, &why);
                results.add_missing(&rate_name, rate, at_least, &why);
                continue;
            }
            let (label, theirs) = ((&*cpu_name, cpu, "µs"), (name, &runs.cpu_us[..]));
            results.add_ratio(label, &self.ours.cpu_us, theirs, Some(at_most))?;
            let (label, theirs) = ((&*rate_name, rate, "/s"), (name, &runs.per_second[..]));
            let row = results.add_ratio(label, &self.ours.per_second, theirs, Some(at_least))?;
            row.note = "after the first quarter".into();
            for (what, values) in [
                ("peak_rss_mib", &runs.peak_rss_mib),
                ("s3_requests", &runs.s3_requests),
            ] {
                let spread = SampleSpread::from_values(values);
                let figure = spread.map(|spread| (format!("{name}_{what}"), spread.median));
                results.figures.extend(figure);
            }
        }
        Ok(())
    }
}
