//! A store that runs, as Ceph does: the consumer against tools that only copy, over the same objects, in turn.

use std::ops::Range;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use futures::{StreamExt, TryStreamExt};

use super::Bench;
use super::peers::PeerTool;
use crate::images::{DESTINATION_BUCKET, SOURCE_BUCKET, old_path};
use crate::process::ProcessUsage;
use crate::results::{BenchResults, TargetBound};
use crate::rig::{BenchRig, StoreAddress, WorkloadSpec};
use crate::stats::to_f64;
use crate::stub::StubSetup;

const IMAGES: u64 = 4000;
const IMAGE_BYTES: usize = 16 << 10;
const IN_FLIGHT: usize = 32;
const CPU_TARGET: TargetBound = TargetBound::AtMost(0.5);

/// How the run says that images are copied: as the consumer finds out, and by the store itself.
const METHODS: [(&str, &str); 2] = [
    (
        "auto",
        "UPDATE bucket_brigade.run SET options = options - 'COPY_METHOD'",
    ),
    (
        "server",
        r#"UPDATE bucket_brigade.run SET options = options || '{"COPY_METHOD": "server"}'"#,
    ),
];

#[derive(Debug, Default)]
struct StoreSamples {
    cpu_us: Vec<f64>,
    per_second: Vec<f64>,
}

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    let Some(address) = bench.store.clone() else {
        let why = "no store was named: --store";
        bench.results.add_missing(
            "store_cpu_server_s5cmd",
            "CPU per image on a store that runs",
            CPU_TARGET,
            why,
        );
        return Ok(());
    };
    let images = bench.scaled_rows(IMAGES);
    bench.rig.store = Some(address.clone());
    let measured = measure_on(&mut bench.rig, &open(&address), images, bench.rounds).await;
    bench.rig.store = None;
    let (ours, theirs) = measured?;
    push_rows(&ours, &theirs, &mut bench.results)
}

type Samples = [StoreSamples; 2];

async fn measure_on(
    rig: &mut BenchRig,
    client: &Client,
    images: u64,
    rounds: usize,
) -> Result<(Samples, Samples)> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        for ((_, sql), samples) in METHODS.iter().zip(&mut ours) {
            rig.execute_sql(sql).await?;
            let rows = rig.insert_rows(images).await?;
            refill(client, &rows).await?;
            let started = Instant::now();
            let used = consume(rig, rows).await?;
            samples.add(used, images, started);
        }
        for (peer, samples) in PEERS.iter().zip(&mut theirs) {
            let Some(program) = peer.find_program() else {
                continue;
            };
            let rows = rig.insert_rows(images).await?;
            refill(client, &rows).await?;
            let started = Instant::now();
            let command: Command = peer.copy_command(program, rig, &rows, IN_FLIGHT)?;
            let used = rig.start_process(command, "peer")?.wait_for_exit().await?;
            samples.add(used, images, started);
            ensure_copied(client, images).await?;
        }
    }
    Ok((ours, theirs))
}

const PEERS: [PeerTool; 2] = [PeerTool::S5cmd, PeerTool::Rclone];

async fn consume(rig: &mut BenchRig, rows: Range<u64>) -> Result<ProcessUsage> {
    let work = WorkloadSpec {
        in_flight: IN_FLIGHT,
        ..WorkloadSpec::of(rows.end - rows.start)
    };
    let setup = StubSetup {
        rows,
        ..StubSetup::default()
    };
    let accepted = [("ACCEPT_UNCONDITIONAL", "true".to_owned())];
    Ok(rig.consume_with(work, &setup, &accepted).await?.usages[0])
}

impl StoreSamples {
    fn add(&mut self, used: ProcessUsage, images: u64, started: Instant) {
        self.cpu_us.push(used.cpu_us() / to_f64(images));
        self.per_second
            .push(to_f64(images) / started.elapsed().as_secs_f64());
    }
}

fn push_rows(ours: &Samples, theirs: &Samples, results: &mut BenchResults) -> Result<()> {
    for ((method, _), ours) in METHODS.iter().zip(ours) {
        for (peer, theirs) in PEERS.iter().zip(theirs) {
            let name = peer.name();
            let cpu = (
                format!("store_cpu_{method}_{name}"),
                format!("CPU per image of 16 KiB on a store that runs, COPY_METHOD={method}"),
            );
            let rate = (
                format!("store_rate_{method}_{name}"),
                format!("images/s on it, start and end included, COPY_METHOD={method}"),
            );
            if theirs.cpu_us.is_empty() {
                results.add_missing(
                    &cpu.0,
                    &cpu.1,
                    CPU_TARGET,
                    &format!("{name} is not installed: script/setup --bench"),
                );
                continue;
            }
            let target = (*peer == PeerTool::S5cmd).then_some(CPU_TARGET);
            results.add_ratio(
                (&cpu.0, &cpu.1, "µs"),
                &ours.cpu_us,
                (name, &theirs.cpu_us),
                target,
            )?;
            results.add_ratio(
                (&rate.0, &rate.1, "/s"),
                &ours.per_second,
                (name, &theirs.per_second),
                None,
            )?;
        }
    }
    Ok(())
}

fn open(address: &StoreAddress) -> Client {
    let keys = Credentials::new(
        &address.access_key,
        &address.secret_key,
        None,
        None,
        "bench",
    );
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(&address.endpoint)
        .credentials_provider(keys)
        .force_path_style(true);
    Client::from_conf(config.build())
}

/// These images in the source, and nothing in the destination.
async fn refill(client: &Client, rows: &Range<u64>) -> Result<()> {
    for bucket in [SOURCE_BUCKET, DESTINATION_BUCKET] {
        empty_bucket(client, bucket).await?;
    }
    let put = |id| async move {
        let body = vec![0; IMAGE_BYTES].into();
        let upload = client
            .put_object()
            .bucket(SOURCE_BUCKET)
            .key(old_path(id))
            .body(body);
        upload.send().await.map(drop)
    };
    let puts = futures::stream::iter(rows.clone()).map(put);
    puts.buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| std::future::ready(Ok(())))
        .await?;
    Ok(())
}

/// Makes it where it is missing.
async fn empty_bucket(client: &Client, bucket: &str) -> Result<()> {
    if client.head_bucket().bucket(bucket).send().await.is_err() {
        client.create_bucket().bucket(bucket).send().await?;
    }
    loop {
        let page = client.list_objects_v2().bucket(bucket).send().await?;
        let key = |object: aws_sdk_s3::types::Object| {
            ObjectIdentifier::builder()
                .key(object.key.unwrap_or_default())
                .build()
        };
        let keys = page
            .contents
            .unwrap_or_default()
            .into_iter()
            .map(key)
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Ok(());
        }
        let delete = Delete::builder().set_objects(Some(keys)).build()?;
        client
            .delete_objects()
            .bucket(bucket)
            .delete(delete)
            .send()
            .await?;
    }
}

/// A tool may end well without having copied.
async fn ensure_copied(client: &Client, images: u64) -> Result<()> {
    let mut pages = client
        .list_objects_v2()
        .bucket(DESTINATION_BUCKET)
        .into_paginator()
        .send();
    let mut found = 0;
    while let Some(page) = pages.next().await {
        found += page?.contents.unwrap_or_default().len();
    }
    (found == usize::try_from(images)?)
        .then_some(())
        .with_context(|| format!("{found} of {images} objects were copied"))
}
