//! The chaos: the real feeder and consumers at work while everything around them fails and they are
//! killed again and again; then everything is checked.

mod arguments;
mod cloud_faults;
mod delete_checker;
mod injector;
mod killer;
mod messages;
mod observer;
mod phases;
mod rate_limit;
mod report;
mod silence;
mod triggers;

pub use arguments::{ChaosArguments, FaultKind, StoreKind};
pub use delete_checker::DeleteChecker;
pub use observer::ChaosObserver;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::application::Application;
use crate::run::{
    EnvironmentOptions, RunEnvironment, RunReport, print_report, print_status, print_violations,
};
use crate::seed::{self, SeededRows};
use crate::traffic::WriteLog;
use injector::ChaosPlan;
use phases::ChaosOutcome;
use report::ChaosReport;

/// Many images are wanted, and all are held in memory twice.
const MAX_PICTURE_BYTES: u32 = 8 * 1024;

/// Runs the chaos; succeeds only if everything that must hold did.
pub async fn main() -> ExitCode {
    let arguments = ChaosArguments::parse();
    let seed = arguments
        .seed
        .unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let command = arguments.repeat_command(seed);
    print_status(&format!("Seed {seed}; to repeat: {command}"));
    let ended = tokio::select! {
        ended = run(&arguments, seed) => ended,
        // What is dropped now cleans up after itself; the watchdogs are for harder ends.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            print_status(&format!("To repeat: {command}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            print_status(&format!("script/chaos: {error:#}\nTo repeat: {command}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &ChaosArguments, seed: u64) -> Result<bool> {
    let plan = EnvironmentOptions {
        odd_keys: true,
        has_tags: true,
        images: arguments.images,
        largest_bytes: Some(MAX_PICTURE_BYTES),
        seed,
        columns: arguments.runs,
        has_companions: arguments.companions,
        cloud: arguments.store.options(),
    };
    let mut environment = RunEnvironment::set_up(&plan).await?;
    let holds = run_and_report(&mut environment, arguments, seed).await;
    if arguments.keep_logs || !matches!(holds, Ok(true)) {
        let kept = keep_logs(environment.cluster.directory())?;
        print_status(&format!("The logs are in {}", kept.display()));
    }
    holds
}

async fn run_and_report(
    environment: &mut RunEnvironment,
    arguments: &ChaosArguments,
    seed: u64,
) -> Result<bool> {
    let script = ChaosPlan {
        kinds: arguments.fault_kinds(),
        images: arguments.images,
        duration: arguments.fault_duration(),
        seed,
    };
    let outcome = phases::run_phases(environment, &script, arguments.consumers).await?;
    if arguments.sabotage {
        overwrite_object(
            &environment.application,
            &environment.seeded,
            &outcome.traffic.log,
        )
        .await?;
    }
    print_status("Checking every row and every object …");
    let (report, violations) = check_outcome(environment, outcome, seed).await?;
    print_violations(&violations);
    let holds = report.has_passed();
    print_report(
        &report.render_table(),
        holds,
        arguments.json.then_some(&report),
    )?;
    Ok(holds)
}

/// All that is wrong, from the checker, the readers, the auditor and the processes.
async fn check_outcome(
    environment: &RunEnvironment,
    outcome: ChaosOutcome,
    seed: u64,
) -> Result<(ChaosReport, Vec<String>)> {
    let verdict = environment.check_runs(&outcome.traffic.log).await?;
    let failures = failures_by_code(&environment.application).await?;
    let figures =
        RunReport::collect(environment, &verdict, &outcome.traffic, outcome.seconds).await?;
    let mut violations = outcome.violations;
    violations.extend(verdict.violations);
    violations.extend(outcome.traffic.broken_read_details);
    if !figures.is_complete() {
        violations.push(figures.describe_completeness());
    }
    let report = ChaosReport {
        figures,
        kills: outcome.kills,
        faults_injected: outcome.faults_injected,
        restarts: outcome.restarts,
        duplicates: outcome.duplicates,
        poison: outcome.poison,
        violations: violations.len() as u64,
        seed,
        failures,
        declined_starts: outcome.declined_starts,
        checked_deletes: outcome.checked_deletes,
    };
    Ok((report, violations))
}

/// Why rows failed, and how many.
async fn failures_by_code(application: &Application) -> Result<String> {
    let pool = application.connect_pool(1).await?;
    let sql = "SELECT coalesce(string_agg(code || ' ' || number, ', ' ORDER BY code), 'none') \
               FROM (SELECT code, count(*) AS number FROM bucket_brigade.failures GROUP BY code) f";
    Ok(sqlx::query_scalar(sql).fetch_one(&pool).await?)
}

/// Does to one image what must never happen.
async fn overwrite_object(
    application: &Application,
    seeded: &SeededRows,
    log: &WriteLog,
) -> Result<()> {
    let mut rows = seeded.rows_of_kind(seed::SeededRowKind::ToMove);
    let row = rows.find(|row| !log.rows.contains_key(&row.id));
    let row = row.context("the application wrote every row")?;
    let at = application.location_of(&row.path);
    application
        .put_object(&at, b"sabotage".to_vec(), &row.properties)
        .await?;
    Ok(())
}

/// Copies the logs of processes and server to where they outlive the run.
fn keep_logs(directory: &Path) -> Result<PathBuf> {
    let kept = tempfile::Builder::new()
        .prefix("bucket-brigade-chaos-")
        .tempdir()?
        .keep();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(name) = path.file_name()
        {
            std::fs::copy(&path, kept.join(name))?;
        }
    }
    Ok(kept)
}
