//! A sample of rows by a hash of their ids: the same rows each time, and a larger share holds the smaller one.

/// Whether a row is among `percent` of a hundred; another `seed` makes another sample.
pub fn includes_id(id: &str, seed: u64, percent: f64) -> bool {
    hash_to_unit_interval(id, seed) < percent / 100.0
}

/// Between 0 and 1, evenly spread.
fn hash_to_unit_interval(id: &str, seed: u64) -> f64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in id.bytes() {
        // FNV-1a.
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // Its high bits hardly differ between neighbouring numbers: the finalizer of splitmix64 spreads them.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let fraction = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seed: u64, percent: f64) -> Vec<u32> {
        let is_wanted = |number: &u32| includes_id(&number.to_string(), seed, percent);
        (0..100_000).filter(is_wanted).collect()
    }

    #[test]
    fn a_sample_is_as_large_as_asked_for_and_holds_the_smaller_ones() {
        for seed in [0, 1, u64::MAX] {
            let (one, five) = (sample(seed, 1.0), sample(seed, 5.0));
            assert!((900..1100).contains(&one.len()), "{}", one.len());
            assert!((4700..5300).contains(&five.len()), "{}", five.len());
            assert!(one.iter().all(|number| five.contains(number)));
            assert_eq!(sample(seed, 100.0).len(), 100_000);
        }
    }

    #[test]
    fn another_seed_makes_another_sample() {
        let (one, other) = (sample(1, 1.0), sample(2, 1.0));
        let shared = one.iter().filter(|number| other.contains(number)).count();
        assert!(shared < 50, "{shared}");
    }
}
