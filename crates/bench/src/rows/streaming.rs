//! Images whose bytes go through the consumer, against rclone between two remotes; and the memory that it takes,
//! whatever the objects' sizes.

use anyhow::Result;

use super::MeasurementSize;
use super::peers::PeerTool;
use crate::process::RunningProcess;
use crate::results::{BenchResults, ResultRow, TargetBound};
use crate::rig::{BenchRig, WorkloadResult, WorkloadSpec};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const MIB: u64 = 1 << 20;
const IMAGES: u64 = 20_000;
const IMAGE_BYTES: u64 = 64 << 10;
const IN_FLIGHT: usize = 64;

/// How many of which size.
const SIZES: [(&str, u64, u64); 3] = [
    ("4 KiB", 4 << 10, 2000),
    ("1 MiB", MIB, 500),
    ("1 GiB", 1 << 30, 4),
];

#[derive(Debug, Default)]
struct StreamSamples {
    per_second: Vec<f64>,
    cpu_ms_per_mib: Vec<f64>,
}

pub(super) async fn measure(
    rig: &mut BenchRig,
    size: MeasurementSize,
    results: &mut BenchResults,
) -> Result<()> {
    let images = size.scaled_rows(IMAGES);
    let (mut ours, mut theirs) = (StreamSamples::default(), StreamSamples::default());
    let rclone = PeerTool::Rclone.find_program();
    for _ in 0..size.rounds {
        let done = stream(rig, images, Some(IMAGE_BYTES)).await?;
        ours.add(&done, images);
        if let Some(rclone) = &rclone {
            let command = PeerTool::stream_command(rclone.clone(), rig, IN_FLIGHT);
            rig.stub
                .set_up(&setup(1..images + 1, Some(IMAGE_BYTES)))
                .await?;
            let peer = RunningProcess::start(command, Some(&rig.file_path("peer.log")))?;
            let done = WorkloadResult {
                usages: vec![peer.wait_for_exit().await?],
                counts: rig.stub.read_counts().await?,
            };
            theirs.add(&done, images);
        }
    }
    push_rates(&ours, &theirs, results)?;
    measure_memory(rig, results).await
}

impl StreamSamples {
    fn add(&mut self, done: &WorkloadResult, images: u64) {
        let mib = to_f64(images * IMAGE_BYTES) / to_f64(MIB);
        let uploads = done.counts.meter_for("PutObject");
        self.per_second.push(uploads.sustained_rate(images / 4));
        self.cpu_ms_per_mib.push(done.cpu_us() / 1e3 / mib);
    }
}

fn setup(rows: std::ops::Range<u64>, object_bytes: Option<u64>) -> StubSetup {
    StubSetup {
        rows,
        object_bytes,
        ..StubSetup::default()
    }
}

/// Fresh rows; without a size the store copies.
async fn stream(
    rig: &mut BenchRig,
    images: u64,
    object_bytes: Option<u64>,
) -> Result<WorkloadResult> {
    let work = WorkloadSpec {
        images,
        consumers: 1,
        in_flight: IN_FLIGHT,
        latency_ms: 0,
    };
    let rows = rig.insert_rows(images).await?;
    // The same in other words: another store.
    let other = ("SOURCE_ENDPOINT", format!("{}/", rig.stub.endpoint()));
    let settings = object_bytes.map(|_| other);
    let setup = setup(rows, object_bytes);
    rig.consume_with(work, &setup, settings.as_slice()).await
}

fn push_rates(
    ours: &StreamSamples,
    theirs: &StreamSamples,
    results: &mut BenchResults,
) -> Result<()> {
    let rate = "images/s of 64 KiB through one consumer, store latency 0";
    let cpu = "CPU per MiB through one consumer, images of 64 KiB";
    for (name, what, unit, ours, theirs, target) in [
        (
            "stream_rate",
            rate,
            "/s",
            &ours.per_second,
            &theirs.per_second,
            TargetBound::AtLeast(2.0),
        ),
        (
            "stream_cpu",
            cpu,
            "ms",
            &ours.cpu_ms_per_mib,
            &theirs.cpu_ms_per_mib,
            TargetBound::AtMost(0.5),
        ),
    ] {
        results.rows.push(if theirs.is_empty() {
            let why = "rclone is not installed: script/setup --bench";
            ResultRow::not_measured(name, what, target, why)
        } else {
            let rclone = ("rclone copy between two remotes", &theirs[..]);
            ResultRow::from_ratio((name, what, unit), ours, rclone, Some(target))?
        });
    }
    Ok(())
}

/// Above what the same consumer takes where the store copies.
async fn measure_memory(rig: &mut BenchRig, results: &mut BenchResults) -> Result<()> {
    let peak_mib = |done: &WorkloadResult| to_f64(done.usages[0].peak_rss_bytes) / to_f64(MIB);
    let baseline = peak_mib(&stream(rig, 2000, None).await?);
    for (size_name, bytes, images) in SIZES {
        let done = stream(rig, images, Some(bytes)).await?;
        let mib = to_f64(images * bytes) / to_f64(MIB);
        let name = size_name.to_lowercase().replace(' ', "_");
        let cpu = done.cpu_us() / 1e3 / mib;
        results.figures.insert(format!("stream_cpu_ms_{name}"), cpu);
        results.rows.push(
            ResultRow::from_runs(
                &format!("stream_rss_{name}"),
                &format!("peak RSS above that of server-side copies, objects of {size_name}"),
                "MiB",
                &[(peak_mib(&done) - baseline).max(0.0)],
                TargetBound::AtMost(64.0),
            )?
            .with_note(&format!(
                "{IN_FLIGHT} in flight, which take {baseline:.0} MiB"
            )),
        );
    }
    Ok(())
}
