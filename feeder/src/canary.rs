//! A canary: a part of the rows first, to look at what becomes of them.

use bucket_brigade_common::row_id::RowId;

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
            .is_none_or(|percent| hash_to_unit_interval(id.as_str()) < percent / 100.0)
    }
}

/// A row's place between 0 and 1, evenly spread and always the same.
fn hash_to_unit_interval(id: &str) -> f64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in id.bytes() {
        // FNV-1a.
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // Its high bits hardly differ between neighbouring numbers: the finalizer of splitmix64 spreads them.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let place = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(percent: f64) -> Vec<u32> {
        let canary = CanarySelection {
            limit: None,
            percent: Some(percent),
        };
        let is_wanted =
            |number: &u32| canary.includes_row(&RowId::from_database(number.to_string()));
        (0..100_000).filter(is_wanted).collect()
    }

    #[test]
    fn a_sample_is_as_large_as_asked_for_and_holds_the_smaller_ones() {
        let (one, five) = (sample(1.0), sample(5.0));
        assert!((900..1100).contains(&one.len()), "{}", one.len());
        assert!((4700..5300).contains(&five.len()), "{}", five.len());
        assert!(one.iter().all(|number| five.contains(number)));
        assert_eq!(sample(100.0).len(), 100_000);
    }
}
