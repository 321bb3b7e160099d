//! The end of a life: everybody goes home, and every row and every object is looked at.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::scene::Scene;
use super::transcript::Transcript;
use crate::checker::{CheckReport, check_invariants_after_clean};
use crate::run::{RunReport, print_status, print_violations};

/// What `--json` prints: the demo's figures, and what an operator did.
#[derive(Debug, Serialize)]
pub(super) struct LifeReport {
    #[serde(flatten)]
    figures: RunReport,
    rolled_back: usize,
    sources_removed: usize,
    checks: u64,
    violations: usize,
    #[serde(skip)]
    holds: bool,
}

impl LifeReport {
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// The figures for people.
    pub(super) fn table(&self) -> String {
        let mut table = self.figures.render_table();
        let lines = [
            (
                self.rolled_back as u64,
                "rows that went back, and moved again",
            ),
            (self.sources_removed as u64, "sources removed"),
            (self.checks, "things checked on the way"),
            (
                self.violations as u64,
                "violations found by the checker at the end",
            ),
        ];
        table.push('\n');
        for (number, what) in lines {
            let _ = writeln!(table, "{number:>9}  {what}");
        }
        table
    }
}

/// Ends everything, checks everything; the figures, and the transcript.
pub(super) async fn close(mut scene: Scene) -> Result<(LifeReport, Transcript)> {
    scene.chapter("The end", "The consumers are asked to end, as ECS does.");
    scene.see(&["status"], 0).await?;
    for mut consumer in std::mem::take(&mut scene.consumers) {
        consumer.terminate()?;
        let code = consumer.wait_for_exit().await?.code();
        scene.holds(code == Some(0), "a consumer ends with exit code 0")?;
    }
    let seconds = scene.began.elapsed().as_secs_f64();
    print_status("· Checking every row and every object");
    let traffic = scene.traffic.stop().await;
    let application = &scene.stage.application;
    let checker = application.with_s3(scene.stage.cloud.s3_client_for("checker"));
    let removed = scene
        .removed
        .iter()
        .map(|path| application.location_of(path));
    let removed: BTreeSet<_> = removed.collect();
    let sweep = check_invariants_after_clean(&checker, &scene.seeded, &traffic.log, &removed);
    let verdict: CheckReport = sweep.await?;
    let violations = [&verdict.violations[..], &traffic.broken_read_details].concat();
    print_violations(&violations);
    let figures = RunReport::collect(&scene.stage, &verdict, &traffic, seconds).await?;
    let report = LifeReport {
        holds: figures.has_passed(&verdict) && traffic.write_errors == 0,
        figures,
        rolled_back: scene.rolled_back,
        sources_removed: scene.removed.len(),
        checks: scene.transcript.checks,
        violations: violations.len(),
    };
    Ok((report, scene.transcript))
}
