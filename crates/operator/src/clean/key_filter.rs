//! Keys of objects that stay, remembered in memory of a fixed size, however many they are.

use std::hash::{DefaultHasher, Hash, Hasher};

/// At most 128 MiB. A hundred million keys set a third of the bits: then one key in a hundred seems to be among them.
const BITS: u64 = 1 << 30;

const BITS_PER_KEY: u64 = 4;

/// A Bloom filter: it contains what was inserted, and by chance a few keys more. Takes no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct KeyFilter(Vec<u64>);

impl KeyFilter {
    pub(super) fn insert(&mut self, key: &str) {
        if self.0.is_empty() {
            // Zeroed by the system: pages that no key needs stay untouched.
            self.0 = vec![0; word_index(BITS)];
        }
        for bit in bits_of(key) {
            self.0[word_index(bit)] |= 1 << (bit % 64);
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        let is_set = |bit: u64| {
            let word = self.0.get(word_index(bit));
            word.is_some_and(|word| word & (1 << (bit % 64)) != 0)
        };
        bits_of(key).all(is_set)
    }
}

fn word_index(bit: u64) -> usize {
    usize::try_from(bit / 64).unwrap_or(usize::MAX)
}

/// Double hashing: as good as several hash functions, from the halves of one.
fn bits_of(key: &str) -> impl Iterator<Item = u64> {
    let hash = hash_of(key);
    let (first, step) = (hash & 0xffff_ffff, (hash >> 32) | 1);
    (0..BITS_PER_KEY).map(move |number| (first + number * step) % BITS)
}

pub(super) fn hash_of(text: impl AsRef<str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.as_ref().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_stays_and_hardly_anything_else() {
        let mut filter = KeyFilter::default();
        assert!(!filter.contains("i/a b"));
        let key = |number: u32| format!("i/{number}.png");
        (0..500_000).for_each(|number| filter.insert(&key(number)));
        assert!((0..500_000).all(|number| filter.contains(&key(number))));
        assert!((500_000..600_000).all(|number| !filter.contains(&key(number))));
    }
}
