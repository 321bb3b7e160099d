//! A canary: a part of the rows first, to look at what becomes of them.

use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::sample;

/// Which part is fed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CanarySelection {
    /// So many rows at most.
    pub limit: Option<u64>,
    /// So many of a hundred, the same ones each time; a larger share holds the smaller one.
    pub percent: Option<f64>,
}

impl CanarySelection {
    /// Whether a row is in the sample.
    pub fn includes_row(&self, id: &RowId) -> bool {
        self.percent
            .is_none_or(|percent| sample::includes_id(id.as_str(), 0, percent))
    }
}
