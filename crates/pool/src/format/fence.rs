//! Words of a host entry that are about one life of the host: how it beats, what tells that a process of it is left, and how
//! far it has been fenced.
//!
//! ```text
//!  32  terms     interval ms 16 · expiry ms 24 · incarnation 24 (its low bits)       0: nothing is said
//!  40  fence     state 4 · fencer 12 · zero 16 · incarnation 32                      1 fencing, 2 fenced
//!  48  presence  1 · zero 7 · incarnation 24 (its low bits) · CRC-32C of device and inode 32
//! ```
//!
//! A word about another incarnation says nothing. So nobody clears any of them.

use super::checksum;
use crate::lease::LeaseTerms;
use crate::ownership::{Epoch, HostSlot};

/// Offset of the terms in the host entry.
pub const TERMS: u64 = 32;
/// Offset of the fence word.
pub const FENCE: u64 = 40;
/// Offset of the presence word.
pub const PRESENCE: u64 = 48;

const LIFE: u64 = (1 << 24) - 1;
const PRESENT: u64 = 1 << 63;

/// The word for the terms of a host's lease in this life.
#[must_use]
pub fn encode_terms(terms: LeaseTerms, life: Epoch) -> u64 {
    u64::from(terms.interval_ms()) << 48 | u64::from(terms.expiry_ms()) << 24 | u64::from(life.0) & LIFE
}

/// The terms, whichever life they are of.
#[must_use]
pub fn decode_any_terms(word: u64) -> Option<LeaseTerms> {
    let interval = u16::try_from(word >> 48).ok()?;
    let expiry = u32::try_from(word >> 24 & LIFE).ok()?;
    LeaseTerms::new(interval, expiry).ok()
}

/// The terms, if they are of this life. What is no terms says nothing.
#[must_use]
pub fn decode_terms(word: u64, life: Epoch) -> Option<LeaseTerms> {
    decode_any_terms(word).filter(|_| word & LIFE == u64::from(life.0) & LIFE)
}

/// The word for a host of which every process holds a lock on the file or device with this number.
#[must_use]
pub fn encode_presence(device: u64, inode: u64, life: Epoch) -> u64 {
    let mut file = [0; 16];
    file[..8].copy_from_slice(&device.to_le_bytes());
    file[8..].copy_from_slice(&inode.to_le_bytes());
    PRESENT | (u64::from(life.0) & LIFE) << 32 | u64::from(checksum(&file))
}

/// How far one life of a host has been fenced, and by whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceWord {
    /// The life.
    pub life: Epoch,
    /// Who fences it, or has.
    pub by: HostSlot,
    /// Whether that has come to its end.
    pub is_done: bool,
}

impl FenceWord {
    /// The on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let state = if self.is_done { 2 } else { 1 };
        state << 60 | (self.by.index() as u64) << 48 | u64::from(self.life.0)
    }

    /// What a word says; `None` for 0 and for what is no such word, which says nothing.
    #[must_use]
    pub fn decode(word: u64) -> Option<Self> {
        let by = u16::try_from(word >> 48 & 0xFFF).ok().and_then(HostSlot::new)?;
        let is_done = match word >> 60 {
            1 => false,
            2 => true,
            _ => return None,
        };
        let life = Epoch(u32::try_from(word & 0xFFFF_FFFF_FFFF).ok()?);
        Some(Self { life, by, is_done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_of_one_life() {
        let terms = LeaseTerms::new(10, 30).expect("good terms");
        let word = encode_terms(terms, Epoch(7));
        assert_eq!(word, 10 << 48 | 30 << 24 | 7);
        assert_eq!(decode_terms(word, Epoch(7)), Some(terms));
        assert_eq!(decode_terms(word, Epoch(8)), None);
        assert_eq!(decode_any_terms(word), Some(terms));
        assert_eq!(decode_terms(0, Epoch(0)), None);
        // An expiry that is too short for its interval is no terms.
        assert_eq!(decode_any_terms(10 << 48 | 29 << 24), None);
    }

    #[test]
    fn a_fence_word_survives_the_round_trip() {
        let by = HostSlot::new(0x123).expect("a slot");
        for is_done in [false, true] {
            let word = FenceWord { life: Epoch(u32::MAX), by, is_done };
            assert_eq!(FenceWord::decode(word.encode()), Some(word));
        }
        assert_eq!(FenceWord { life: Epoch(5), by, is_done: true }.encode(), 0x2123_0000_0000_0005);
        for word in [0, 0x3123_0000_0000_0005, 0x1FFF_0000_0000_0005, 0x1123_0001_0000_0005] {
            assert_eq!(FenceWord::decode(word), None);
        }
    }

    #[test]
    fn a_presence_differs_by_file_and_life() {
        let word = encode_presence(1, 2, Epoch(3));
        assert_ne!(word, encode_presence(1, 3, Epoch(3)));
        assert_ne!(word, encode_presence(1, 2, Epoch(4)));
        assert_eq!(word >> 32, 0x8000_0003);
    }
}
