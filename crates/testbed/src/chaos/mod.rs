//! The chaos: the real feeder and consumers at work while everything around them fails and they are
//! killed again and again; then everything is checked.

mod acts;
mod arguments;
mod auditor;
mod killer;
mod lookout;
mod messages;
mod pacing;
mod report;
mod show;
mod storm;

pub use arguments::{Arguments, Kind};
pub use auditor::Auditor;
pub use lookout::Lookout;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::application::Application;
use crate::checker::full_sweep;
use crate::run::{Plan, Report, Stage, print, tell, tell_violations};
use crate::seed::{self, Seeded};
use crate::traffic::Log;
use acts::Script;
use report::ChaosReport;
use show::Outcome;

/// Many images are wanted, and all are held in memory twice.
const LARGEST_BYTES: u32 = 8 * 1024;

/// Runs the chaos; succeeds only if everything that must hold did.
pub async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments
        .seed
        .unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let command = arguments.command(seed);
    tell(&format!("Seed {seed}; to repeat: {command}"));
    let ended = tokio::select! {
        ended = run(&arguments, seed) => ended,
        // What is dropped now cleans up after itself; the watchdogs are for harder ends.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            tell(&format!("To repeat: {command}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            tell(&format!("script/chaos: {error:#}\nTo repeat: {command}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments, seed: u64) -> Result<bool> {
    let plan = Plan {
        images: arguments.images,
        largest_bytes: Some(LARGEST_BYTES),
        seed,
    };
    let mut stage = Stage::set_up(&plan).await?;
    let holds = perform(&mut stage, arguments, seed).await;
    if arguments.keep_logs || !matches!(holds, Ok(true)) {
        let kept = keep_logs(stage.cluster.directory())?;
        tell(&format!("The logs are in {}", kept.display()));
    }
    holds
}

async fn perform(stage: &mut Stage, arguments: &Arguments, seed: u64) -> Result<bool> {
    let script = Script {
        kinds: arguments.kinds(),
        images: arguments.images,
        duration: arguments.duration(),
        seed,
    };
    let outcome = show::play(stage, &script, arguments.consumers).await?;
    if arguments.sabotage {
        sabotage(&stage.application, &stage.seeded, &outcome.traffic.log).await?;
    }
    tell("Checking every row and every object …");
    let (report, violations) = judge(stage, outcome, seed).await?;
    tell_violations(&violations);
    let holds = report.holds();
    print(&report.table(), holds, arguments.json.then_some(&report))?;
    Ok(holds)
}

/// All that is wrong, from the checker, the readers, the auditor and the processes.
async fn judge(stage: &Stage, outcome: Outcome, seed: u64) -> Result<(ChaosReport, Vec<String>)> {
    let checker = stage.application.with_s3(stage.cloud.s3_as("checker"));
    let verdict = full_sweep(&checker, &stage.seeded, &outcome.traffic.log).await?;
    let failures = failures_by_code(&stage.application).await?;
    let figures = Report::of(stage, &verdict, &outcome.traffic, outcome.seconds).await?;
    let mut violations = outcome.violations;
    violations.extend(verdict.violations);
    violations.extend(outcome.traffic.broken);
    if !figures.is_complete() {
        violations.push(figures.completeness());
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
        audited_deletes: outcome.audited_deletes,
    };
    Ok((report, violations))
}

/// Why rows failed, and how many.
async fn failures_by_code(application: &Application) -> Result<String> {
    let pool = application.pool(1).await?;
    let sql = "SELECT coalesce(string_agg(code || ' ' || number, ', ' ORDER BY code), 'none') \
               FROM (SELECT code, count(*) AS number FROM bucket_brigade.failures GROUP BY code) f";
    Ok(sqlx::query_scalar(sql).fetch_one(&pool).await?)
}

/// Does to one image what must never happen.
async fn sabotage(application: &Application, seeded: &Seeded, log: &Log) -> Result<()> {
    let mut rows = seeded.of(seed::Kind::ToMove);
    let row = rows.find(|row| !log.rows.contains_key(&row.id));
    let row = row.context("the application wrote every row")?;
    let at = application.locate(&row.path);
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
