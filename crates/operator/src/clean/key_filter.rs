//! Keys of objects that stay, remembered in memory of a fixed size, however many they are.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

/// At most 128 MiB. A hundred million keys set a third of the bits: then one key in a hundred seems to be among them,
/// for another filter another one.
const BITS: u64 = 1 << 30;

const BITS_PER_KEY: u64 = 4;

/// A Bloom filter: it contains what was inserted, and by chance a few keys more. Takes no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct KeyFilter {
    words: Vec<u64>,
    hashes: RandomState,
}

impl KeyFilter {
    pub(super) fn insert(&mut self, key: &str) {
        if self.words.is_empty() {
            // Zeroed by the system: pages that no key needs stay untouched.
            self.words = vec![0; word_index(BITS)];
        }
        for bit in bits_of(self.hashes.hash_one(key)) {
            self.words[word_index(bit)] |= 1 << (bit % 64);
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        let is_set = |bit: u64| {
            let word = self.words.get(word_index(bit));
            word.is_some_and(|word| word & (1 << (bit % 64)) != 0)
        };
        bits_of(self.hashes.hash_one(key)).all(is_set)
    }
}

fn word_index(bit: u64) -> usize {
    usize::try_from(bit / 64).unwrap_or(usize::MAX)
}

/// Double hashing: as good as several hash functions, from the halves of one.
fn bits_of(hash: u64) -> impl Iterator<Item = u64> {
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
        let others = (500_000..600_000).filter(|number| filter.contains(&key(*number)));
        assert!(others.count() < 5);
    }
}
