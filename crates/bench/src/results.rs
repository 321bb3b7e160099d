//! Rows of figures, each beside its target: as a table for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::MachineInfo;
use crate::stats::SampleSpread;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetBound {
    AtMost(f64),
    AtLeast(f64),
}

impl TargetBound {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl fmt::Display for TargetBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "≤{}", format_short(*bound)),
            Self::AtLeast(bound) => write!(f, "≥{}", format_short(*bound)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredFigure {
    pub of: String,
    /// In [`ResultRow::unit`].
    pub value: SampleSpread,
}

impl MeasuredFigure {
    fn new(of: &str, runs: &[f64]) -> Result<Self> {
        let value = SampleSpread::from_values(runs).with_context(|| format!("no run of {of}"))?;
        let of = of.to_owned();
        Ok(Self { of, value })
    }
}

/// One row: ours, theirs, and what is compared with the target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// It does not change.
    pub name: String,
    pub what: String,
    pub unit: String,
    pub ours: Option<MeasuredFigure>,
    pub against: Option<MeasuredFigure>,
    /// What the target is about: our figure, or its ratio to the other.
    pub compared: Option<SampleSpread>,
    pub is_ratio: bool,
    pub target: Option<TargetBound>,
    /// Whether its median is; none without a target, or where something was missing.
    pub met: Option<bool>,
    pub note: String,
}

/// Name, what it is, and unit.
pub type RowLabel<'a> = (&'a str, &'a str, &'a str);

impl From<RowLabel<'_>> for ResultRow {
    fn from((name, what, unit): RowLabel<'_>) -> Self {
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            ..Self::default()
        }
    }
}

/// Cost at one size of the table, of the consumer by image and of the feeder by row, their start included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrowthPoint {
    pub rows: u64,
    pub consumer_cpu_us: f64,
    /// Images that figure is of.
    pub images: u64,
    pub consumer_rss_mib: f64,
    pub feeder_cpu_us: f64,
    pub feeder_rss_mib: f64,
    pub page_ms: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchResults {
    /// Where; the last measurement's.
    pub machine: MachineInfo,
    pub rows: Vec<ResultRow>,
    #[serde(default)]
    pub growth: Vec<GrowthPoint>,
    /// Further figures without a target, by name.
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
}

impl BenchResults {
    pub fn new(machine: MachineInfo) -> Self {
        Self {
            machine,
            rows: Vec::new(),
            growth: Vec::new(),
            figures: BTreeMap::new(),
        }
    }

    /// A row whose target is about our figure itself.
    pub fn add(
        &mut self,
        label: RowLabel<'_>,
        runs: &[f64],
        target: TargetBound,
    ) -> Result<&mut ResultRow> {
        let ours = MeasuredFigure::new("ours", runs)?;
        Ok(self.push(ResultRow {
            compared: Some(ours.value),
            ours: Some(ours),
            target: Some(target),
            ..label.into()
        }))
    }

    /// A row whose target is about the ratio of ours to another's, pair by pair.
    pub fn add_ratio(
        &mut self,
        label: RowLabel<'_>,
        ours: &[f64],
        (of, theirs): (&str, &[f64]),
        target: Option<TargetBound>,
    ) -> Result<&mut ResultRow> {
        Ok(self.push(ResultRow {
            compared: SampleSpread::from_ratios(ours, theirs),
            is_ratio: true,
            ours: Some(MeasuredFigure::new("ours", ours)?),
            against: Some(MeasuredFigure::new(of, theirs)?),
            target,
            ..label.into()
        }))
    }

    pub fn add_missing(&mut self, name: &str, what: &str, target: TargetBound, why: &str) {
        self.push(ResultRow {
            is_ratio: true,
            target: Some(target),
            note: why.to_owned(),
            ..(name, what, "").into()
        });
    }

    fn push(&mut self, mut row: ResultRow) -> &mut ResultRow {
        let compared = row.target.zip(row.compared);
        row.met = compared.map(|(target, compared)| target.is_met_by(compared.median));
        self.rows.push(row);
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

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

    /// Of the rows that have a target.
    pub fn render_table(&self) -> String {
        let rows = self.rows.iter().filter(|row| row.target.is_some());
        let lines = rows.map(render_line);
        "|what|ours|against|ratio|target|\n|---|---|---|---|---|\n".to_owned()
            + &lines.collect::<String>()
            + &render_growth(&self.growth)
    }
}

fn render_growth(growth: &[GrowthPoint]) -> String {
    if growth.is_empty() {
        return String::new();
    }
    let line = |point: &GrowthPoint| {
        let figures = [
            point.consumer_cpu_us,
            point.consumer_rss_mib,
            point.feeder_cpu_us,
            point.feeder_rss_mib,
            point.page_ms,
        ];
        format!("|{}|{}|\n", point.rows, figures.map(format_short).join("|"))
    };
    let lines = growth.iter().map(line);
    "\n|rows in the table|consumer, µs per image|MiB|feeder, µs per row|MiB|page of 1,000, ms|\n\
     |---|---|---|---|---|---|\n"
        .to_owned()
        + &lines.collect::<String>()
}

fn render_line(row: &ResultRow) -> String {
    let figure = |figure: &MeasuredFigure| format!("{} {}", figure.value, row.unit);
    let ours = row.ours.as_ref().map_or("–".into(), figure);
    let against = row.against.as_ref();
    let against = against.map_or("–".into(), |of| format!("{} ({})", figure(of), of.of));
    let ratio = row.compared.filter(|_| row.is_ratio);
    let ratio = ratio.map_or("–".into(), |ratio| ratio.to_string());
    let verdict = match row.met {
        Some(true) => "",
        Some(false) => " **missed**",
        None => " not measured",
    };
    let note = match &*row.note {
        "" => String::new(),
        note => format!(" ({note})"),
    };
    let target = row
        .target
        .map_or("–".into(), |target| format!("{target}{verdict}"));
    format!("|{}{note}|{ours}|{against}|{ratio}|{target}|\n", row.what)
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

    fn results(rows: &[(&str, f64)]) -> BenchResults {
        let mut results = BenchResults::new(MachineInfo::detect("17"));
        let target = Some(TargetBound::AtMost(1.5));
        for (name, ours) in rows {
            let label = (*name, "CPU", "µs");
            let row = results.add_ratio(label, &[*ours], ("floor", &[100.0]), target);
            row.unwrap();
        }
        results
    }

    #[test]
    fn a_target_is_met_or_not() {
        let mut results = results(&[("cpu", 150.0), ("more", 151.0)]);
        let (label, target) = (("rate", "rate", "/s"), TargetBound::AtLeast(4.0));
        results.add(label, &[3.0, 5.0, 4.0], target).unwrap();
        let missing = ("peer", "CPU", TargetBound::AtMost(0.25));
        results.add_missing(missing.0, missing.1, missing.2, "s5cmd is not installed");
        let met = results.rows.iter().map(|row| row.met);
        let met: Vec<_> = met.collect();
        assert_eq!(met, [Some(true), Some(false), Some(true), None]);
        assert_eq!(
            render_line(&results.rows[3]),
            "|CPU (s5cmd is not installed)|–|–|–|≤0.25 not measured|\n"
        );
    }

    #[test]
    fn a_line_holds_both_figures_and_the_verdict() {
        assert_eq!(
            render_line(&results(&[("cpu", 125.0)]).rows[0]),
            "|CPU|125 µs|100 µs (floor)|1.25|≤1.5|\n"
        );
    }

    #[test]
    fn newer_rows_replace_older_ones_of_the_same_name() {
        let mut merged = results(&[("cpu", 100.0), ("other", 100.0)]);
        merged.merge(results(&[("cpu", 200.0), ("new", 1.0)]));
        let rows = merged.rows.iter().map(|row| (&*row.name, row.met));
        let expected = [
            ("cpu", Some(false)),
            ("other", Some(true)),
            ("new", Some(true)),
        ];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn three_digits() {
        let shown = [5120.4, 64.0, 1.5, 0.257, 0.05, 0.0042].map(format_short);
        assert_eq!(shown, ["5120", "64", "1.5", "0.257", "0.05", "0.0042"]);
    }
}
