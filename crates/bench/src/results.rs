//! Rows of figures, each beside its target: as a table for people and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::MachineInfo;
use crate::stats::SampleSpread;

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetBound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl TargetBound {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    fn render_bound(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", format_short(bound)),
            Self::AtLeast(bound) => format!("≥ {}", format_short(bound)),
        }
    }
}

/// One figure of one party.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredFigure {
    pub of: String,
    /// In [`Row::unit`].
    pub value: SampleSpread,
}

impl MeasuredFigure {
    /// A figure of at least one run.
    pub fn new(of: &str, runs: &[f64]) -> Result<Self> {
        let value = SampleSpread::from_values(runs).with_context(|| format!("no run of {of}"))?;
        Ok(Self {
            of: of.to_owned(),
            value,
        })
    }
}

/// One row: ours, theirs, and what is compared with the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// A name that does not change.
    pub name: String,
    pub what: String,
    /// The unit of the figures.
    pub unit: String,
    pub ours: Option<MeasuredFigure>,
    /// What it is measured against.
    pub against: Option<MeasuredFigure>,
    /// What the target is about: our figure, or its ratio to the other.
    pub compared: Option<SampleSpread>,
    /// Whether `compared` is a ratio.
    pub is_ratio: bool,
    /// What it has to be; none for what has no target.
    pub target: Option<TargetBound>,
    /// Whether its median is; none without a target, or where something was missing.
    pub met: Option<bool>,
    /// What else there is to say.
    pub note: String,
}

impl ResultRow {
    /// A row whose target is about our figure itself.
    pub fn from_runs(
        name: &str,
        what: &str,
        unit: &str,
        runs: &[f64],
        target: TargetBound,
    ) -> Result<Self> {
        let ours = MeasuredFigure::new("ours", runs)?;
        Ok(
            Self::with_target_check(name, what, unit, Some(target), Some(ours.value), false)
                .with_figures(Some(ours), None),
        )
    }

    /// A row whose target is about the ratio of ours to another's, pair by pair.
    pub fn from_ratio(
        (name, what, unit): (&str, &str, &str),
        ours: &[f64],
        (of, theirs): (&str, &[f64]),
        target: Option<TargetBound>,
    ) -> Result<Self> {
        let compared = SampleSpread::from_ratios(ours, theirs);
        let figures = (
            MeasuredFigure::new("ours", ours)?,
            MeasuredFigure::new(of, theirs)?,
        );
        Ok(
            Self::with_target_check(name, what, unit, target, compared, true)
                .with_figures(Some(figures.0), Some(figures.1)),
        )
    }

    /// A row that could not be measured, and why.
    pub fn not_measured(name: &str, what: &str, target: TargetBound, why: &str) -> Self {
        Self::with_target_check(name, what, "", Some(target), None, true).with_note(why)
    }

    fn with_target_check(
        name: &str,
        what: &str,
        unit: &str,
        target: Option<TargetBound>,
        compared: Option<SampleSpread>,
        is_ratio: bool,
    ) -> Self {
        let met = target
            .zip(compared)
            .map(|(target, compared)| target.is_met_by(compared.median));
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            ours: None,
            against: None,
            compared,
            is_ratio,
            target,
            met,
            note: String::new(),
        }
    }

    fn with_figures(
        mut self,
        ours: Option<MeasuredFigure>,
        against: Option<MeasuredFigure>,
    ) -> Self {
        (self.ours, self.against) = (ours, against);
        self
    }

    /// Adds what else there is to say.
    #[must_use]
    pub fn with_note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }
}

/// Cost at one size of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrowthPoint {
    /// Rows in the table.
    pub rows: u64,
    /// The consumer's CPU per image, in microseconds, its start included.
    pub consumer_cpu_us: f64,
    /// Images that figure is of.
    pub images: u64,
    /// The consumer's peak RSS, in MiB.
    pub consumer_rss_mib: f64,
    /// The feeder's CPU per row, in microseconds, its start included.
    pub feeder_cpu_us: f64,
    /// The feeder's peak RSS, in MiB.
    pub feeder_rss_mib: f64,
    /// A keyset page near the table's end, in milliseconds.
    pub page_ms: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchResults {
    /// Where; the last measurement's.
    pub machine: MachineInfo,
    /// The rows, in the order of the measurements.
    pub rows: Vec<ResultRow>,
    /// Cost by size of the table.
    #[serde(default)]
    pub growth: Vec<GrowthPoint>,
    /// Further figures without a target, by name.
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
}

impl BenchResults {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// Takes newer results in: rows of the same name are replaced, others added.
    pub fn merge(&mut self, newer: Self) {
        self.machine = newer.machine;
        for row in newer.rows {
            match self.rows.iter_mut().find(|old| old.name == row.name) {
                Some(old) => *old = row,
                None => self.rows.push(row),
            }
        }
        if !newer.growth.is_empty() {
            self.growth = newer.growth;
        }
        self.figures.extend(newer.figures);
    }

    /// A table in Markdown.
    pub fn render_table(&self) -> String {
        let mut text = String::from(
            "| what | ours | against | compared | target | met |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            text += &render_line(row);
        }
        text
    }
}

fn render_line(row: &ResultRow) -> String {
    let figure = |figure: &Option<MeasuredFigure>, with_name: bool| match figure {
        Some(figure) if with_name => {
            format!(
                "{} {} ({})",
                render_spread(figure.value),
                row.unit,
                figure.of
            )
        }
        Some(figure) => format!("{} {}", render_spread(figure.value), row.unit),
        None => "–".into(),
    };
    let compared = row.compared.map_or("–".into(), |compared| {
        let times = if row.is_ratio { " ×" } else { "" };
        format!("{}{times}", render_spread(compared))
    });
    let met = match (row.met, row.target) {
        (Some(true), _) => "yes",
        (Some(false), _) => "**no**",
        (None, Some(_)) => "not measured",
        (None, None) => "–",
    };
    let note = if row.note.is_empty() {
        String::new()
    } else {
        format!(" ({})", row.note)
    };
    let target = row.target.map_or("–".into(), TargetBound::render_bound);
    let (ours, against) = (figure(&row.ours, false), figure(&row.against, true));
    format!(
        "| {}{note} | {ours} | {against} | {compared} | {target} | {met} |\n",
        row.what
    )
}

/// A median with its extremes, where there are any.
fn render_spread(spread: SampleSpread) -> String {
    if spread.runs == 1 {
        return format_short(spread.median);
    }
    let (median, min, max) = (
        format_short(spread.median),
        format_short(spread.min),
        format_short(spread.max),
    );
    format!("{median} [{min}–{max}]")
}

/// Three digits that matter.
pub fn format_short(value: f64) -> String {
    let places = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.places$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ours: f64) -> ResultRow {
        let target = Some(TargetBound::AtMost(1.5));
        ResultRow::from_ratio((name, "CPU", "µs"), &[ours], ("floor", &[100.0]), target).unwrap()
    }

    #[test]
    fn a_target_is_met_or_not() {
        assert_eq!(row("cpu", 150.0).met, Some(true));
        assert_eq!(row("cpu", 151.0).met, Some(false));
        let rate = ResultRow::from_runs(
            "rate",
            "rate",
            "/s",
            &[3.0, 5.0, 4.0],
            TargetBound::AtLeast(4.0),
        );
        assert_eq!(rate.unwrap().met, Some(true));
    }

    #[test]
    fn what_is_missing_is_neither() {
        let row = ResultRow::not_measured(
            "peer",
            "CPU",
            TargetBound::AtMost(0.25),
            "s5cmd is not installed",
        );
        assert_eq!(row.met, None);
        assert_eq!(
            render_line(&row),
            "| CPU (s5cmd is not installed) | – | – | – | ≤ 0.25 | not measured |\n"
        );
    }

    #[test]
    fn a_line_holds_both_figures_and_the_verdict() {
        assert_eq!(
            render_line(&row("cpu", 125.0)),
            "| CPU | 125 µs | 100 µs (floor) | 1.25 × | ≤ 1.5 | yes |\n"
        );
    }

    #[test]
    fn newer_rows_replace_older_ones_of_the_same_name() {
        let results = |ours| BenchResults {
            machine: MachineInfo::detect("17"),
            rows: vec![row("cpu", ours), row("other", ours)],
            growth: Vec::new(),
            figures: BTreeMap::new(),
        };
        let mut merged = results(100.0);
        let mut newer = results(200.0);
        newer.rows.remove(1);
        newer.rows.push(row("new", 1.0));
        merged.merge(newer);
        let names: Vec<&str> = merged.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["cpu", "other", "new"]);
        assert_eq!(merged.rows[0].met, Some(false));
        assert_eq!(merged.rows[1].met, Some(true));
    }

    #[test]
    fn three_digits() {
        let shown = [5120.4, 64.0, 1.5, 0.257, 0.05, 0.0042].map(format_short);
        assert_eq!(shown, ["5120", "64", "1.5", "0.257", "0.05", "0.0042"]);
    }
}
