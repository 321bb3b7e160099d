//! A migration on a store: moved while an application uses the images, verified, undone in part, moved
//! again and cleaned, by the real programs.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::time::sleep;

use super::probes::{ProbeResult, describe_error, honours_conditions, knows_tags};
use super::store::Store;
use crate::application::{Application, ObjectLocation};
use crate::checker::check_invariants_after_clean;
use crate::cloud::CloudOptions;
use crate::process::ChildProcess;
use crate::run::{
    EXIT_SOME_FAILED, EnvironmentOptions, ProcessGroup, RunEnvironment, print_status,
};
use crate::traffic::Traffic;

const CONSUMERS: u32 = 2;
const ACCEPT_UNCONDITIONAL: &str = "ACCEPT_UNCONDITIONAL";
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What became of it.
#[derive(Default)]
pub(super) struct MigrationResult {
    pub(super) moved: u64,
    pub(super) removed: usize,
    pub(super) reads: u64,
    /// Whether the store held keys with all kinds of characters.
    pub(super) odd_keys: String,
    /// How the consumer says that it copies.
    pub(super) copying: String,
    pub(super) violations: Vec<String>,
}

impl MigrationResult {
    pub(super) fn has_held(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for MigrationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} moved, {} sources removed, {} reads, {} violations",
            self.moved,
            self.removed,
            self.reads,
            self.violations.len()
        )?;
        for violation in &self.violations {
            write!(f, "\n  VIOLATION {violation}")?;
        }
        Ok(())
    }
}

/// What keeps it from its end counts as a violation.
pub(super) async fn run_migration(
    store: &Store,
    probes: &[ProbeResult],
    images: u32,
) -> MigrationResult {
    let mut refused = None;
    let has_tags = knows_tags(probes);
    let mut environment = set_up(store, images, true, has_tags).await;
    if let Err(error) = &environment {
        refused = Some(format!("no: {}", describe_error(error)));
        environment = set_up(store, images, false, has_tags).await;
    }
    let result = match environment {
        Ok(mut environment) => {
            for program in ["feeder", "consumer"] {
                let accepts = !honours_conditions(probes);
                environment.set_variable(program, ACCEPT_UNCONDITIONAL, accepts.to_string());
            }
            migrate(&environment, images).await
        }
        Err(error) => Err(error),
    };
    let odd_keys = refused.unwrap_or_else(|| "yes".into());
    let result = result.unwrap_or_else(|error| MigrationResult {
        violations: vec![format!("not ended: {error:#}")],
        ..MigrationResult::default()
    });
    let copying = if honours_conditions(probes) {
        result.copying
    } else {
        format!("{}, by {ACCEPT_UNCONDITIONAL}", result.copying)
    };
    MigrationResult {
        odd_keys,
        copying,
        ..result
    }
}

async fn migrate(environment: &RunEnvironment, images: u32) -> Result<MigrationResult> {
    let rates = environment.traffic_rates();
    let application = &environment.application;
    let traffic = Traffic::start(application, environment.seeded.clone(), &rates).await?;
    let mut processes = ProcessGroup::start(environment, CONSUMERS)?;
    wait_for_feeder(environment, &mut processes).await?;
    traffic.allow_writes(environment.allowed_writes(images as usize));
    for arguments in COMMANDS {
        let bucket = &application.source_bucket;
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|argument| {
                if *argument == BUCKET {
                    bucket
                } else {
                    *argument
                }
            })
            .collect();
        run_feeder(environment, &arguments).await?;
    }
    for (n, status) in processes.stop_consumers().await? {
        ensure!(status.success(), "{status}:\n{}", processes.consumer_log(n));
    }
    let copying = copy_method(&processes.whole_consumer_log(0));
    let traffic = traffic.stop().await;
    let removed = removed_sources(environment).await?;
    let checked =
        check_invariants_after_clean(application, &environment.seeded, &traffic.log, &removed);
    let report = checked.await?;
    Ok(MigrationResult {
        odd_keys: String::new(),
        moved: report.moved,
        removed: removed.len(),
        reads: traffic.reads,
        copying,
        violations: [report.violations, traffic.broken_read_details].concat(),
    })
}

/// Stands for the source bucket, whose name is another each time.
const BUCKET: &str = "BUCKET";

/// After the first sweep, one after the other.
const COMMANDS: [&[&str]; 5] = [
    &["verify", "--full"],
    &["rollback", "--all", "--yes"],
    &[],
    &["verify"],
    &["clean", "--older-than", "0s", "--confirm", BUCKET],
];

/// Buckets of their own: a store may keep what an earlier run left.
async fn set_up(
    store: &Store,
    images: u32,
    odd_keys: bool,
    has_tags: bool,
) -> Result<RunEnvironment> {
    let suffix = format!("{:08x}", fastrand::u32(..));
    let plan = EnvironmentOptions {
        images,
        largest_bytes: Some(16 * 1024),
        odd_keys,
        has_tags,
        seed: 1,
        columns: 1,
        has_companions: false,
        cloud: CloudOptions::default(),
    };
    let on_store = |application: Application| Application {
        source_bucket: format!("images-old-{suffix}"),
        destination_bucket: format!("images-new-{suffix}"),
        ..application.with_s3(store.client())
    };
    let mut environment = RunEnvironment::set_up_on(&plan, on_store).await?;
    for program in ["feeder", "consumer"] {
        for (name, value) in store.variables() {
            environment.set_variable(program, name, value);
        }
    }
    Ok(environment)
}

/// Images without an object are among the seeded ones: some fail.
fn has_ended_well(code: Option<i32>) -> bool {
    matches!(code, Some(0 | EXIT_SOME_FAILED))
}

async fn wait_for_feeder(
    environment: &RunEnvironment,
    processes: &mut ProcessGroup<'_>,
) -> Result<()> {
    loop {
        if let Some((n, status)) = processes.exited_consumers()?.first() {
            bail!(
                "a consumer ended ({status}):\n{}",
                processes.consumer_log(*n)
            );
        }
        match processes.feeder_exit_status(0)? {
            None => sleep(POLL_INTERVAL).await,
            Some(status) if has_ended_well(status.code()) => break,
            Some(status) => bail!("the feeder failed ({status}):\n{}", processes.feeder_log(0)),
        }
    }
    while environment.queue_depth().await?.total() > 0 {
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// `verify` ends with 1 where it finds what the application did.
async fn run_feeder(environment: &RunEnvironment, arguments: &[&str]) -> Result<()> {
    print_status(&format!("feeder {}", arguments.join(" ")));
    let (variables, log) = (
        environment.variables("feeder"),
        environment.log_path("command"),
    );
    let mut feeder = ChildProcess::spawn("feeder", &variables, arguments, Some(&log))?;
    let code = feeder.wait_for_exit().await?.code();
    let is_well = has_ended_well(code) || arguments.contains(&"verify") && code == Some(1);
    ensure!(
        is_well,
        "feeder {arguments:?} ended with {code:?}:\n{}",
        feeder.log_tail(30)
    );
    while environment.queue_depth().await?.total() > 0 {
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// The seeded sources that `clean` has removed.
async fn removed_sources(environment: &RunEnvironment) -> Result<BTreeSet<ObjectLocation>> {
    let application = &environment.application;
    let bucket = &application.source_bucket;
    let mut pages = application
        .s3
        .list_objects_v2()
        .bucket(bucket)
        .into_paginator()
        .send();
    let mut left = BTreeSet::new();
    while let Some(page) = pages.try_next().await? {
        left.extend(
            page.contents()
                .iter()
                .filter_map(|object| object.key.clone()),
        );
    }
    let seeded = environment
        .seeded
        .rows
        .iter()
        .filter(|row| !row.sha256.is_empty())
        // No clean touches another: Garage, for one, drops a slash at the beginning of a key.
        .filter(|row| row.path.starts_with(&application.old_prefix));
    let sources = seeded.map(|row| application.location_of(&row.path));
    Ok(sources
        .filter(|at| at.bucket == *bucket && !left.contains(&at.key))
        .collect())
}

/// What the consumer says that it has chosen.
fn copy_method(log: &str) -> String {
    let method = log.lines().find_map(|line| line.split_once("method="));
    let method = method.map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
    method.unwrap_or("unknown").to_owned()
}
