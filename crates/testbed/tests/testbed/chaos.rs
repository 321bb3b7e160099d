//! Short runs of `chaos` as a program.

use std::path::Path;

use anyhow::{Context, Result};
use bucket_brigade_testbed::process::binary_path;
use serde_json::Value;
use tokio::process::Command;

struct ChaosResult {
    is_success: bool,
    figures: Value,
    /// Its log.
    log: String,
}

impl ChaosResult {
    fn number(&self, name: &str) -> u64 {
        self.figures[name].as_u64().unwrap_or_default()
    }
}

async fn run_chaos(arguments: &[&str]) -> Result<ChaosResult> {
    let mut command = Command::new(binary_path("chaos")?);
    let output = command.args(arguments).arg("--json").kill_on_drop(true);
    let output = output.output().await?;
    let result = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8(output.stdout)?;
    let last = stdout.lines().last().with_context(|| result.clone())?;
    Ok(ChaosResult {
        is_success: output.status.success(),
        figures: serde_json::from_str(last)?,
        log: result,
    })
}

#[tokio::test]
async fn everything_at_once_loses_nothing() -> Result<()> {
    lose_nothing(&[]).await.map(drop)
}

#[tokio::test]
async fn nor_where_only_uploads_are_conditional() -> Result<()> {
    let ran = lose_nothing(&["--store", "unconditional"]).await?;
    // Those of the probes.
    let copies = ran.number("s3_copies");
    assert!(copies < ran.number("moved"), "{}", ran.log);
    Ok(())
}

async fn lose_nothing(arguments: &[&str]) -> Result<ChaosResult> {
    let few = ["--minutes", "0.2", "--images", "250", "--consumers", "2"];
    let ran = run_chaos(&[&few, arguments].concat()).await?;
    assert!(ran.is_success, "{}", ran.log);
    let ended = ["moved", "changed_by_application", "failed", "already_moved"];
    let ended: u64 = ended.iter().map(|name| ran.number(name)).sum();
    assert_eq!((ran.number("violations"), ended), (0, 250), "{}", ran.log);
    for name in ["kills", "faults_injected", "restarts"] {
        assert!(ran.number(name) >= 1, "{name}: {}", ran.log);
    }
    assert!(ran.figures["seed"].is_u64());
    Ok(ran)
}

#[tokio::test]
async fn a_violation_is_found_and_reported() -> Result<()> {
    let run = ["--minutes", "0.1", "--images", "40", "--consumers", "1"];
    let only = ["--fault", "duplicates", "--seed", "7", "--sabotage"];
    let ran = run_chaos(&[&run[..], &only].concat()).await?;
    assert!(!ran.is_success, "{}", ran.log);
    assert!(ran.number("violations") > 0, "{}", ran.log);
    // Only the fault that was asked for.
    assert!(ran.number("duplicates") > 0, "{}", ran.log);
    let others = ["kills", "faults_injected", "restarts", "poison"];
    assert!(others.iter().all(|name| ran.number(name) == 0));
    let again = "To repeat: script/chaos --minutes 0.1 --images 40 --consumers 1 --seed 7 --fault duplicates";
    assert!(ran.log.contains(again), "{}", ran.log);
    let mut lines = ran.log.lines();
    let logs = lines.find_map(|line| line.strip_prefix("The logs are in "));
    let logs = logs.with_context(|| ran.log.clone())?;
    assert!(Path::new(logs).join("consumer-1.log").exists());
    std::fs::remove_dir_all(logs)?;
    Ok(())
}
