//! Images whose bytes go through the consumer, against rclone between two remotes; and the memory that it takes,
//! whatever the objects' sizes.

use anyhow::Result;

use super::Bench;
use super::peers::PeerTool;
use crate::process::to_mib;
use crate::results::{BenchResults, TargetBound};
use crate::rig::{BenchRig, WorkloadResult, WorkloadSpec};
use crate::stub::StubSetup;

const IMAGES: u64 = 20_000;
const IMAGE_BYTES: u64 = 64 << 10;
const IN_FLIGHT: usize = 64;

const SIZES: [(&str, u64, u64); 3] = [
    ("4 KiB", 4 << 10, 2000),
    ("1 MiB", 1 << 20, 500),
    ("1 GiB", 1 << 30, 4),
];

#[derive(Debug, Default)]
struct StreamSamples {
    per_second: Vec<f64>,
    cpu_ms_per_mib: Vec<f64>,
}

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let images = bench.scaled_rows(IMAGES);
    let (mut ours, mut theirs) = (StreamSamples::default(), StreamSamples::default());
    let rclone = PeerTool::Rclone.find_program();
    for _ in 0..bench.rounds {
        let rig = &mut bench.rig;
        let done = stream(rig, images, Some(IMAGE_BYTES)).await?;
        ours.add(&done, images);
        if let Some(rclone) = &rclone {
            let command = PeerTool::stream_command(rclone.clone(), rig, IN_FLIGHT);
            let setup = setup(1..images + 1, Some(IMAGE_BYTES));
            rig.stub.set_up(&setup).await?;
            let peer = rig.start_process(command, "peer")?;
            let done = WorkloadResult {
                usages: vec![peer.wait_for_exit().await?],
                counts: rig.stub.read_counts().await?,
            };
            theirs.add(&done, images);
        }
    }
    push_rates(&ours, &theirs, &mut bench.results)?;
    measure_memory(bench).await
}

impl StreamSamples {
    fn add(&mut self, done: &WorkloadResult, images: u64) {
        let mib = to_mib(images * IMAGE_BYTES);
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
    let rows = rig.insert_rows(images).await?;
    // The same in other words: another store.
    let other = ("SOURCE_ENDPOINT", format!("{}/", rig.stub.endpoint()));
    let settings = object_bytes.map(|_| other);
    let setup = setup(rows, object_bytes);
    rig.consume_with(WorkloadSpec::of(images), &setup, settings.as_slice())
        .await
}

fn push_rates(
    ours: &StreamSamples,
    theirs: &StreamSamples,
    results: &mut BenchResults,
) -> Result<()> {
    let rate = "images/s of 64 KiB through one consumer, store latency 0";
    let cpu = "CPU per MiB through one consumer, images of 64 KiB";
    for (label, ours, theirs, target) in [
        (
            ("stream_rate", rate, "/s"),
            &ours.per_second,
            &theirs.per_second,
            TargetBound::AtLeast(2.0),
        ),
        (
            ("stream_cpu", cpu, "ms"),
            &ours.cpu_ms_per_mib,
            &theirs.cpu_ms_per_mib,
            TargetBound::AtMost(0.5),
        ),
    ] {
        if theirs.is_empty() {
            let why = "rclone is not installed: script/setup --bench";
            results.add_missing(label.0, label.1, target, why);
        } else {
            let rclone = ("rclone copy between two remotes", &theirs[..]);
            results.add_ratio(label, ours, rclone, Some(target))?;
        }
    }
    Ok(())
}

/// Above what the same consumer takes where the store copies.
async fn measure_memory(bench: &mut Bench) -> Result<()> {
    let (rig, results) = (&mut bench.rig, &mut bench.results);
    let baseline = stream(rig, 2000, None).await?.usages[0].peak_rss_mib();
    for (size_name, bytes, images) in SIZES {
        let done = stream(rig, images, Some(bytes)).await?;
        let name = size_name.to_lowercase().replace(' ', "_");
        let cpu = done.cpu_us() / 1e3 / to_mib(images * bytes);
        results.figures.insert(format!("stream_cpu_ms_{name}"), cpu);
        let (name, what) = (
            format!("stream_rss_{name}"),
            format!("peak RSS above that of server-side copies, objects of {size_name}"),
        );
        let above = (done.usages[0].peak_rss_mib() - baseline).max(0.0);
        let target = TargetBound::AtMost(64.0);
        let row = results.add((&name, &what, "MiB"), &[above], target)?;
        row.note = format!("{IN_FLIGHT} in flight, which take {baseline:.0} MiB");
    }
    Ok(())
}
