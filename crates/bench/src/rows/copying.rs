//! One consumer at full speed, against the calls it is made of and the tools that only copy.

use std::ops::Range;
use std::process::Command;

use anyhow::Result;

use super::Size;
use super::peers::Peer;
use crate::bare::Call;
use crate::process::Running;
use crate::results::{Results, Row, Target};
use crate::rig::{Rig, Work};
use crate::stats::float;
use crate::stub::Setup;

const IMAGES: u64 = 20_000;
const IN_FLIGHT: usize = 64;

/// What one party took, run by run.
#[derive(Debug, Default)]
struct Runs {
    cpu_us: Vec<f64>,
    per_second: Vec<f64>,
    s3_requests: Vec<f64>,
    peak_rss_mib: Vec<f64>,
}

#[derive(Debug, Default)]
struct All {
    ours: Runs,
    sqs_requests: Vec<f64>,
    copy: Runs,
    our_copy: Runs,
    receive: Runs,
    commit: Runs,
    s5cmd: Runs,
    rclone: Runs,
}

pub(super) async fn measure(rig: &mut Rig, size: Size, results: &mut Results) -> Result<()> {
    let images = size.rows(IMAGES);
    let mut all = All::default();
    for _ in 0..size.rounds {
        consumer(rig, images, &mut all).await?;
        bare(rig, images, &mut all).await?;
        for peer in [Peer::S5cmd, Peer::Rclone] {
            run_peer(rig, images, peer, &mut all).await?;
        }
    }
    all.rows(results)
}

async fn consumer(rig: &mut Rig, images: u64, all: &mut All) -> Result<()> {
    let work = Work {
        images,
        consumers: 1,
        in_flight: IN_FLIGHT,
        latency_ms: 0,
    };
    let done = rig.consume(work).await?;
    let copies = done.counts.of("CopyObject");
    all.ours.cpu_us.push(done.cpu_us() / float(images));
    all.ours.per_second.push(copies.sustained_rate(images / 4));
    let s3 = ["CopyObject", "HeadObject of an image", "other S3 requests"];
    let s3 = done.counts.requests(|name| s3.contains(&name));
    all.ours.s3_requests.push(float(s3) / float(images));
    // The queue is asked for its attributes at the start, and when there is nothing to receive.
    let sqs = done.counts.requests(|name| name.contains("Message"));
    // A row's message was sent, a tenth of a request, before this began.
    all.sqs_requests.push(float(sqs) / float(images) + 0.1);
    Ok(())
}

async fn bare(rig: &mut Rig, images: u64, all: &mut All) -> Result<()> {
    for (call, runs, in_flight) in [
        (Call::Copy, &mut all.copy, IN_FLIGHT),
        (Call::OurCopy, &mut all.our_copy, IN_FLIGHT),
        (Call::Receive, &mut all.receive, 8),
        (Call::Commit, &mut all.commit, 1),
    ] {
        let rows = rig.fresh_rows(images).await?;
        let command = rig.bare(call, &rows, in_flight)?;
        run(rig, command, &rows, runs).await?;
    }
    Ok(())
}

async fn run_peer(rig: &mut Rig, images: u64, peer: Peer, all: &mut All) -> Result<()> {
    let Some(program) = peer.find() else {
        return Ok(());
    };
    let rows = 1..images + 1;
    let command = peer.copy(program, rig, &rows, IN_FLIGHT)?;
    let runs = match peer {
        Peer::S5cmd => &mut all.s5cmd,
        Peer::Rclone => &mut all.rclone,
    };
    run(rig, command, &rows, runs).await
}

/// Runs a command to its end and takes its account.
async fn run(rig: &Rig, command: Command, rows: &Range<u64>, runs: &mut Runs) -> Result<()> {
    let setup = Setup {
        rows: rows.clone(),
        ..Setup::default()
    };
    rig.stub.set_up(&setup).await?;
    let running = Running::start(command, Some(&rig.file("peer.log")))?;
    let used = running.finish().await?;
    let count = float(rows.end - rows.start);
    let counts = rig.stub.counts().await?;
    let copies = counts.of("CopyObject");
    runs.cpu_us.push(used.cpu.as_secs_f64() * 1e6 / count);
    runs.per_second
        .push(copies.sustained_rate(copies.items / 4));
    let s3 = counts.requests(|name| !name.contains("Message"));
    runs.s3_requests.push(float(s3) / count);
    runs.peak_rss_mib
        .push(float(used.peak_rss_bytes) / f64::from(1 << 20));
    Ok(())
}

impl All {
    fn rows(&self, results: &mut Results) -> Result<()> {
        self.floors(results)?;
        self.peers(results)?;
        let s3 = &self.ours.s3_requests;
        results.rows.push(
            Row::plain(
                "s3_requests",
                "S3 requests per image",
                "",
                s3,
                Target::AtMost(1.0),
            )?
            .noting("without those of the start: two HEADs and a probe of six"),
        );
        results.rows.push(
            Row::plain(
                "sqs_requests",
                "SQS requests per image",
                "",
                &self.sqs_requests,
                Target::AtMost(0.32),
            )?
            .noting("with the feeder's 0.1"),
        );
        Ok(())
    }

    fn floors(&self, results: &mut Results) -> Result<()> {
        let ours = &self.ours.cpu_us;
        let sum: Vec<f64> = (0..ours.len())
            .map(|run| self.copy.cpu_us[run] + self.receive.cpu_us[run] + self.commit.cpu_us[run])
            .collect();
        let what = "CPU per image, consumer, whole pipeline";
        let mut push = |name, of: &str, theirs: &[f64], target| -> Result<()> {
            let row = Row::ratio((name, what, "µs"), ours, (of, theirs), target)?;
            results.rows.push(row);
            Ok(())
        };
        let floor = "bare CopyObject loop, the SDK as it comes";
        push(
            "cpu_floor",
            floor,
            &self.copy.cpu_us,
            Some(Target::AtMost(1.5)),
        )?;
        let each = "bare loops of each call: copy, receive and delete, commit";
        push("cpu_sum", each, &sum, Some(Target::AtMost(1.15)))?;
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

    fn peers(&self, results: &mut Results) -> Result<()> {
        let cpu = "CPU per image, against a tool that only copies";
        let rate = "images/s, one consumer, store latency 0";
        for (peer, runs, cpu_target, rate_target) in [
            (Peer::S5cmd, &self.s5cmd, Some(0.25), Some(4.0)),
            (Peer::Rclone, &self.rclone, None, None),
        ] {
            let name = peer.name();
            let (cpu_name, rate_name) = (format!("cpu_{name}"), format!("rate_{name}"));
            if runs.cpu_us.is_empty() {
                let why = format!("{name} is not installed: script/setup --bench");
                results
                    .rows
                    .push(Row::missing(&cpu_name, cpu, Target::AtMost(0.25), &why));
                results
                    .rows
                    .push(Row::missing(&rate_name, rate, Target::AtLeast(4.0), &why));
                continue;
            }
            let theirs = (name, &runs.cpu_us[..]);
            let target = cpu_target.map(Target::AtMost);
            results.rows.push(Row::ratio(
                (&cpu_name, cpu, "µs"),
                &self.ours.cpu_us,
                theirs,
                target,
            )?);
            let theirs = (name, &runs.per_second[..]);
            let target = rate_target.map(Target::AtLeast);
            let row = Row::ratio(
                (&rate_name, rate, "/s"),
                &self.ours.per_second,
                theirs,
                target,
            )?;
            results.rows.push(row.noting("after the first quarter"));
            for (what, values) in [
                ("peak_rss_mib", &runs.peak_rss_mib),
                ("s3_requests", &runs.s3_requests),
            ] {
                if let Some(spread) = crate::stats::Spread::of(values) {
                    results.told.insert(format!("{name}_{what}"), spread.median);
                }
            }
        }
        Ok(())
    }
}
