//! What a page under test holds.
//!
//! ```text
//! word 0   the page's own guest-physical address     another page here: misplaced
//! word 1   generation                                an older one than was written last: stale
//! word 2   checksum over words 0, 1 and 3..512       not the sum of what stands here: torn
//! word 3…  payload, a function of (address, generation, index)
//! ```
//!
//! Every word of a page is therefore known in advance, and a single differing bit shows with its address.

/// Bytes per page.
pub const PAGE_BYTES: u64 = 4096;
/// Words per page.
pub const PAGE_WORDS: usize = 512;
/// Index of the word that holds the page's address.
pub const ADDRESS_WORD: usize = 0;
/// Index of the word that holds the generation.
pub const GENERATION_WORD: usize = 1;
/// Index of the word that holds the checksum.
pub const CHECKSUM_WORD: usize = 2;
/// Index of the first payload word.
pub const PAYLOAD: usize = 3;

/// An odd constant with well spread bits (2⁶⁴ / golden ratio).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The pattern of one page: from it follows every word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    address: u64,
    generation: u64,
    seed: u64,
}

impl Pattern {
    /// The pattern of the page at `address` in `generation`.
    #[must_use]
    pub const fn new(address: u64, generation: u64) -> Self {
        let mixed = (address ^ generation.rotate_left(40)).wrapping_mul(STEP);
        Self { address, generation, seed: mixed ^ (mixed >> 29) }
    }

    /// The payload word at `index`. Never zero for all of a page, and linear in the index, so that a slice of it costs
    /// one addition per word.
    #[must_use]
    #[inline]
    pub const fn payload(&self, index: usize) -> u64 {
        self.seed.wrapping_add((index as u64).wrapping_mul(STEP))
    }

    /// Any word of the page.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        match index {
            ADDRESS_WORD => self.address,
            GENERATION_WORD => self.generation,
            CHECKSUM_WORD => self.checksum(),
            _ => self.payload(index),
        }
    }

    /// The checksum of a page that holds this pattern: what [`Checksum`] gives when it is fed every word.
    ///
    /// The words are an arithmetic series, so their sum has a closed form and a guest need not add them up to write it.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        let count = (PAGE_WORDS - PAYLOAD) as u64;
        let indices = (PAYLOAD..PAGE_WORDS).map(|index| index as u64).sum::<u64>();
        let payload = self.seed.wrapping_mul(count).wrapping_add(indices.wrapping_mul(STEP));
        let mut checksum = Checksum::start(self.address, self.generation);
        checksum.add(payload);
        checksum.finish()
    }
}

/// The running checksum of a page as it is read.
#[derive(Clone, Copy, Debug)]
pub struct Checksum(u64);

impl Checksum {
    /// Begins with the header words.
    #[must_use]
    pub const fn start(address: u64, generation: u64) -> Self {
        Self(address.wrapping_add(generation.wrapping_mul(STEP)))
    }

    /// Adds one payload word, or the wrapping sum of several.
    #[inline]
    pub const fn add(&mut self, word: u64) {
        self.0 = self.0.wrapping_add(word);
    }

    /// The checksum.
    #[must_use]
    pub const fn finish(self) -> u64 {
        self.0 ^ STEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_in_closed_form_is_the_sum_of_the_words() {
        for (address, generation) in [(0x40_0000, 1), (0x1_0000_0000, 77), (0xFFFF_F000, u64::MAX)] {
            let pattern = Pattern::new(address, generation);
            let mut sum = Checksum::start(address, generation);
            for index in PAYLOAD..PAGE_WORDS {
                sum.add(pattern.word(index));
            }
            assert_eq!(sum.finish(), pattern.checksum());
        }
    }

    #[test]
    fn pages_and_generations_differ_in_every_payload_word() {
        let pattern = Pattern::new(0x40_0000, 5);
        for other in [Pattern::new(0x40_1000, 5), Pattern::new(0x40_0000, 6), Pattern::new(0x60_0000, 5)] {
            assert!((PAYLOAD..PAGE_WORDS).all(|index| pattern.word(index) != other.word(index)));
        }
    }

    #[test]
    fn a_page_of_zeros_is_no_page() {
        let mut zeros = Checksum::start(0, 0);
        zeros.add(0);
        assert_ne!(zeros.finish(), 0);
    }
}
