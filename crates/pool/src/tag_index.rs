//! The tag index: from a tag to its capacity without a search through the table.
//!
//! Buckets of eight words; each word is 0 or a [`Reference`] to a capacity. A tag has two buckets, and its reference
//! lies in either. A lookup reads both, so a removed word leaves no trace and needs none. The index is a hint that is
//! checked: a reference whose capacity is over is an empty place, and the capacity's record says what its tag is.

use crate::format::slot_word::Reference;
use crate::ids::Tag;
use crate::mapping::exchange;
use crate::slots::Slots;
use crate::sync::{AtomicU64, Ordering};

/// Words of a bucket: one cache line.
pub const BUCKET: usize = 8;

/// The index, with what is needed to judge its words.
#[derive(Clone, Copy, Debug)]
pub struct TagIndex<'a> {
    /// The words of all buckets; a power of two.
    pub words: &'a [AtomicU64],
    /// The capacity table's slot words.
    pub capacities: Slots<'a>,
}

impl<'a> TagIndex<'a> {
    /// The two buckets of a tag.
    #[must_use]
    pub fn buckets(&self, tag: Tag) -> [usize; 2] {
        let buckets = self.words.len() / BUCKET;
        let hash = mix(tag);
        let index = |bits: u64| usize::try_from(bits & 0xFFFF_FFFF).unwrap_or(0) & (buckets - 1);
        let (first, second) = (index(hash), index(hash >> 32));
        if first == second { [first, (first + 1) & (buckets - 1)] } else { [first, second] }
    }

    fn bucket(&self, bucket: usize) -> &'a [AtomicU64] {
        &self.words[bucket * BUCKET..][..BUCKET]
    }

    /// Whether a word may be overwritten.
    fn is_empty(&self, word: u64) -> bool {
        word == 0 || Reference::decode(word).is_some_and(|reference| self.capacities.is_over(reference))
    }

    /// Enters a reference; false when both buckets are full. The capacity's record must have been written.
    #[must_use]
    pub fn insert(&self, tag: Tag, reference: Reference) -> bool {
        loop {
            let room = |bucket: &usize| {
                self.bucket(*bucket).iter().filter(|word| self.is_empty(word.load(Ordering::Acquire))).count()
            };
            let [first, second] = self.buckets(tag);
            let roomiest = if room(&second) > room(&first) { second } else { first };
            if room(&roomiest) == 0 {
                return false;
            }
            for word in self.bucket(roomiest) {
                let value = word.load(Ordering::Acquire);
                if self.is_empty(value) && exchange(word, value, reference.encode()).is_ok() {
                    return true;
                }
            }
        }
    }

    /// Removes a reference wherever it is entered.
    pub fn remove(&self, tag: Tag, reference: Reference) {
        for word in self.buckets(tag).into_iter().flat_map(|bucket| self.bucket(bucket)) {
            if word.load(Ordering::Acquire) == reference.encode() {
                let _ = exchange(word, reference.encode(), 0);
            }
        }
    }

    /// The references in a tag's buckets to capacities that are not over; some may have other tags.
    pub fn candidates(&self, tag: Tag) -> impl Iterator<Item = Reference> + use<'a> {
        let index = *self;
        index
            .buckets(tag)
            .into_iter()
            .flat_map(move |bucket| index.bucket(bucket))
            .filter_map(|word| Reference::decode(word.load(Ordering::Acquire)))
            .filter(move |reference| index.capacities.is_current(*reference))
    }
}

/// Spreads a tag over 64 bits: its two halves (little-endian), folded, then the finalizer of SplitMix64.
fn mix(tag: Tag) -> u64 {
    let number = u128::from_le_bytes(tag.to_bytes());
    let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
    let mut hash = half(number) ^ half(number >> 64).rotate_left(32);
    hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ hash >> 31
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_the_two_buckets_that_the_specification_gives_it() {
        let words: Vec<AtomicU64> = (0..64 * BUCKET).map(|_| AtomicU64::new(0)).collect();
        let index = TagIndex { words: &words, capacities: Slots::dense(&[]) };
        let tag = Tag::from_bytes(std::array::from_fn(|byte| 0x40 | u8::try_from(byte).expect("small")));
        assert_eq!(index.buckets(tag), [32, 34]);
    }
}
