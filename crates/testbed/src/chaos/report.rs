//! The figures at the end.

use std::fmt::Write as _;

use serde::Serialize;

use crate::run::RunReport;

/// What `--json` prints: the demo's figures, and what was done to them.
#[derive(Debug, Serialize)]
pub(super) struct ChaosReport {
    #[serde(flatten)]
    pub(super) figures: RunReport,
    pub(super) kills: u64,
    pub(super) faults_injected: u64,
    pub(super) restarts: u64,
    pub(super) duplicates: u64,
    pub(super) poison: u64,
    pub(super) violations: u64,
    pub(super) seed: u64,
    /// For people: why rows failed.
    #[serde(skip)]
    pub(super) failures: String,
    #[serde(skip)]
    pub(super) declined_starts: u64,
    #[serde(skip)]
    pub(super) checked_deletes: u64,
}

impl ChaosReport {
    pub(super) fn has_passed(&self) -> bool {
        self.violations == 0 && self.figures.is_complete()
    }

    /// The figures for people.
    pub(super) fn render_table(&self) -> String {
        let mut table = self.figures.render_table();
        let lines = [
            (self.kills, "processes killed without warning"),
            (
                self.declined_starts,
                "started processes that ended again because what they need was away",
            ),
            (
                self.faults_injected,
                "requests struck by a fault, and database connections cut at a commit",
            ),
            (self.restarts, "restarts of Postgres"),
            (self.duplicates, "further copies of messages"),
            (self.poison, "poison messages"),
            (
                self.checked_deletes,
                "deletes of messages checked against their rows before they took effect",
            ),
            (self.violations, "violations"),
        ];
        table.push('\n');
        for (number, what) in lines {
            let _ = writeln!(table, "{number:>9}  {what}");
        }
        let _ = writeln!(table, "{:>9}  failures: {}", "", self.failures);
        let _ = writeln!(table, "{:>9}  seed: {}", "", self.seed);
        table
    }
}
