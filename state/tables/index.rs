//! Finds a group by the hash of its key.
//!
//! Holds group numbers only: the key is compared in the slab, and a rehash reads it from there. Past 128 Ki groups the index
//! splits into 64 parts that grow one by one, so that growing never holds two copies of the whole.

use hashbrown::HashTable;

const SPLIT_LEN: usize = 1 << 17;
const PARTS: usize = 64;
/// The table uses the lowest and the highest bits of the hash; these lie between.
const PART_SHIFT: u32 = 48;

pub(crate) struct Index {
    parts: Vec<HashTable<u32>>,
    len: usize,
}

/// Hash of a word key. One multiplication, folded, so that all bits depend on all.
#[inline]
pub(crate) fn hash_word(word: u64) -> u64 {
    let product = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
pub(crate) fn hash_bytes(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

impl Index {
    pub fn new() -> Self {
        Index { parts: vec![HashTable::new()], len: 0 }
    }

    #[inline]
    fn part(&self, hash: u64) -> usize {
        (hash >> PART_SHIFT) as usize & (self.parts.len() - 1)
    }

    #[inline]
    pub fn find(&self, hash: u64, is_key: impl Fn(u32) -> bool) -> Option<u32> {
        self.parts[self.part(hash)].find(hash, |&group| is_key(group)).copied()
    }

    /// Adds a group that is not there. `hash_of` is the hash of any group added before.
    pub fn insert(&mut self, hash: u64, group: u32, hash_of: impl Fn(u32) -> u64) {
        if self.len == SPLIT_LEN && self.parts.len() == 1 {
            self.split(&hash_of);
        }
        let part = self.part(hash);
        self.parts[part].insert_unique(hash, group, |&other| hash_of(other));
        self.len += 1;
    }

    fn split(&mut self, hash_of: &impl Fn(u32) -> u64) {
        let whole = std::mem::replace(&mut self.parts, (0..PARTS).map(|_| HashTable::new()).collect());
        for &group in whole.iter().flat_map(HashTable::iter) {
            let hash = hash_of(group);
            let part = self.part(hash);
            self.parts[part].insert_unique(hash, group, |&other| hash_of(other));
        }
    }

    pub fn bytes(&self) -> usize {
        let tables: usize = self.parts.iter().map(HashTable::allocation_size).sum();
        tables + self.parts.capacity() * size_of::<HashTable<u32>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_before_and_after_the_split() {
        let mut index = Index::new();
        let count = SPLIT_LEN as u32 + 1000;
        for group in 0..count {
            index.insert(hash_word(u64::from(group)), group, |other| hash_word(u64::from(other)));
        }
        assert_eq!(index.parts.len(), PARTS);
        for group in 0..count {
            assert_eq!(index.find(hash_word(u64::from(group)), |other| other == group), Some(group));
        }
        assert_eq!(index.find(hash_word(u64::MAX), |other| u64::from(other) == u64::MAX), None);
        let fullest = index.parts.iter().map(HashTable::len).max();
        assert!(fullest < Some(count as usize / PARTS * 2), "hash spreads badly: {fullest:?}");
    }
}
