//! Medians and the like of a handful of runs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::results::format_short;

/// The runs of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleSpread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl SampleSpread {
    /// Of at least one value.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: percentile(&sorted, 50.0)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            runs: sorted.len(),
        })
    }

    /// Of the ratios of two figures that were taken in turn: a machine that slows down between two pairs
    /// does not show.
    pub fn from_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        Self::from_values(&ratios)
    }
}

/// The median with the extremes, where there are any.
impl fmt::Display for SampleSpread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, min, max] = [self.median, self.min, self.max].map(format_short);
        match self.runs {
            1 => f.write_str(&median),
            _ => write!(f, "{median} [{min}–{max}]"),
        }
    }
}

/// The `percent`th percentile of sorted values, between neighbours where it falls between them.
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = to_f64(last as u64) * percent / 100.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = (position.floor() as usize).min(last);
    let above = (below + 1).min(last);
    let share = position - position.floor();
    Some(sorted[below] + (sorted[above] - sorted[below]) * share)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and microseconds stay far below 2^53"
)]
pub fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let spread = SampleSpread::from_values(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((spread.to_string().as_str(), spread.runs), ("3 [1–5]", 3));
        let spread = SampleSpread::from_values(&[1.0, 2.0]).unwrap();
        assert_eq!((spread.to_string().as_str(), spread.runs), ("1.5 [1–2]", 2));
        assert_eq!(SampleSpread::from_values(&[]), None);
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The machine became twice as slow: the ratio did not change.
        let ratios = SampleSpread::from_ratios(&[2.0, 4.0], &[1.0, 2.0]);
        assert_eq!(ratios, SampleSpread::from_values(&[2.0, 2.0]));
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let sorted: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 99.0), Some(99.0));
        assert_eq!(percentile(&[1.0, 2.0], 75.0), Some(1.75));
    }
}
