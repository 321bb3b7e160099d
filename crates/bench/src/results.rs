//! Rows of figures, each beside its target: as a table for people and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats::Spread;

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", short(bound)),
            Self::AtLeast(bound) => format!("≥ {}", short(bound)),
        }
    }
}

/// One figure of one party.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Whose.
    pub of: String,
    /// In [`Row::unit`].
    pub value: Spread,
}

impl Figure {
    /// A figure of at least one run.
    ///
    /// # Errors
    /// There was none.
    pub fn new(of: &str, runs: &[f64]) -> Result<Self> {
        let value = Spread::of(runs).with_context(|| format!("no run of {of}"))?;
        Ok(Self {
            of: of.to_owned(),
            value,
        })
    }
}

/// One row: ours, theirs, and what is compared with the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// A name that does not change.
    pub name: String,
    /// What is measured.
    pub what: String,
    /// The unit of the figures.
    pub unit: String,
    /// Our figure.
    pub ours: Option<Figure>,
    /// What it is measured against.
    pub against: Option<Figure>,
    /// What the target is about: our figure, or its ratio to the other.
    pub compared: Option<Spread>,
    /// Whether `compared` is a ratio.
    pub is_ratio: bool,
    /// What it has to be; none for what is only told.
    pub target: Option<Target>,
    /// Whether its median is; none without a target, or where something was missing.
    pub met: Option<bool>,
    /// What else there is to say.
    pub note: String,
}

impl Row {
    /// A row whose target is about our figure itself.
    ///
    /// # Errors
    /// There was no run.
    pub fn plain(name: &str, what: &str, unit: &str, runs: &[f64], target: Target) -> Result<Self> {
        let ours = Figure::new("ours", runs)?;
        Ok(
            Self::judged(name, what, unit, Some(target), Some(ours.value), false)
                .with(Some(ours), None),
        )
    }

    /// A row whose target is about the ratio of ours to another's, pair by pair.
    ///
    /// # Errors
    /// There was no run.
    pub fn ratio(
        (name, what, unit): (&str, &str, &str),
        ours: &[f64],
        (of, theirs): (&str, &[f64]),
        target: Option<Target>,
    ) -> Result<Self> {
        let compared = Spread::of_ratios(ours, theirs);
        let figures = (Figure::new("ours", ours)?, Figure::new(of, theirs)?);
        Ok(Self::judged(name, what, unit, target, compared, true)
            .with(Some(figures.0), Some(figures.1)))
    }

    /// A row that could not be measured, and why.
    pub fn missing(name: &str, what: &str, target: Target, why: &str) -> Self {
        Self::judged(name, what, "", Some(target), None, true).noting(why)
    }

    fn judged(
        name: &str,
        what: &str,
        unit: &str,
        target: Option<Target>,
        compared: Option<Spread>,
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

    fn with(mut self, ours: Option<Figure>, against: Option<Figure>) -> Self {
        (self.ours, self.against) = (ours, against);
        self
    }

    /// Adds what else there is to say.
    #[must_use]
    pub fn noting(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }
}

/// Cost at one size of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Growth {
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

/// Everything measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Where; the last measurement's.
    pub machine: Machine,
    /// The rows, in the order of the measurements.
    pub rows: Vec<Row>,
    /// Cost by size of the table.
    #[serde(default)]
    pub growth: Vec<Growth>,
    /// Further figures without a target, by name.
    #[serde(default)]
    pub told: BTreeMap<String, f64>,
}

impl Results {
    /// Reads results.
    ///
    /// # Errors
    /// The file is missing or holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Writes results.
    ///
    /// # Errors
    /// The file cannot be written.
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
        self.told.extend(newer.told);
    }

    /// A table in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| what | ours | against | compared | target | met |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            text += &line(row);
        }
        text
    }
}

fn line(row: &Row) -> String {
    let figure = |figure: &Option<Figure>, with_name: bool| match figure {
        Some(figure) if with_name => {
            format!("{} {} ({})", spread(figure.value), row.unit, figure.of)
        }
        Some(figure) => format!("{} {}", spread(figure.value), row.unit),
        None => "–".into(),
    };
    let compared = row.compared.map_or("–".into(), |compared| {
        let times = if row.is_ratio { " ×" } else { "" };
        format!("{}{times}", spread(compared))
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
    let target = row.target.map_or("–".into(), Target::text);
    let (ours, against) = (figure(&row.ours, false), figure(&row.against, true));
    format!(
        "| {}{note} | {ours} | {against} | {compared} | {target} | {met} |\n",
        row.what
    )
}

/// A median with its extremes, where there are any.
fn spread(spread: Spread) -> String {
    if spread.runs == 1 {
        return short(spread.median);
    }
    let (median, min, max) = (short(spread.median), short(spread.min), short(spread.max));
    format!("{median} [{min}–{max}]")
}

/// Three digits that matter.
pub fn short(value: f64) -> String {
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

    fn row(name: &str, ours: f64) -> Row {
        let target = Some(Target::AtMost(1.5));
        Row::ratio((name, "CPU", "µs"), &[ours], ("floor", &[100.0]), target).unwrap()
    }

    #[test]
    fn a_target_is_met_or_not() {
        assert_eq!(row("cpu", 150.0).met, Some(true));
        assert_eq!(row("cpu", 151.0).met, Some(false));
        let rate = Row::plain("rate", "rate", "/s", &[3.0, 5.0, 4.0], Target::AtLeast(4.0));
        assert_eq!(rate.unwrap().met, Some(true));
    }

    #[test]
    fn what_is_missing_is_neither() {
        let row = Row::missing(
            "peer",
            "CPU",
            Target::AtMost(0.25),
            "s5cmd is not installed",
        );
        assert_eq!(row.met, None);
        assert_eq!(
            line(&row),
            "| CPU (s5cmd is not installed) | – | – | – | ≤ 0.25 | not measured |\n"
        );
    }

    #[test]
    fn a_line_tells_both_figures_and_the_verdict() {
        assert_eq!(
            line(&row("cpu", 125.0)),
            "| CPU | 125 µs | 100 µs (floor) | 1.25 × | ≤ 1.5 | yes |\n"
        );
    }

    #[test]
    fn newer_rows_replace_older_ones_of_the_same_name() {
        let results = |ours| Results {
            machine: Machine::ask("17"),
            rows: vec![row("cpu", ours), row("other", ours)],
            growth: Vec::new(),
            told: BTreeMap::new(),
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
        let shown = [5120.4, 64.0, 1.5, 0.257, 0.05, 0.0042].map(short);
        assert_eq!(shown, ["5120", "64", "1.5", "0.257", "0.05", "0.0042"]);
    }
}
