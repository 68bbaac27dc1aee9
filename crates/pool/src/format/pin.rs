//! A pin: a part of a guest's memory that cannot move now, with who holds it and why.
//!
//! ```text
//! entry, 256 bytes                          word
//!   0  word     u64                         63   60 59      48 47                    0
//!   8  use      u64   as in the word        | state | host     | use                 |    host 0xFFF = none
//!  16  offset   u64   in guest memory
//!  24  bytes    u64   not 0                 Free(u) ─take─▶ Taking(h, u+1) ─▶ Held(h, u+1) ─release─▶ Free(u+1)
//!  32  owner    32 bytes, ends with 0                                          Held(h, u) ─rehost─▶ Held(h', u)
//!  64  reason   64 bytes, ends with 0
//! 128  zero
//! 252  crc      u32   of bytes 8 … 251
//! ```
//!
//! While an entry is held its bytes never change but for the host in its word. Uses grow by one and never repeat, so
//! (entry, use) names one pin forever.

use super::text::{self, BadText};
use super::{BadRecord, check_seal, seal};
use crate::ownership::HostSlot;
use std::fmt;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries of a guest's pin table.
pub const PINS: usize = 128;
/// Bytes of an entry.
pub const ENTRY_BYTES: u64 = 256;
/// Where in the entry its record begins; the word is before it.
pub const RECORD: u64 = 8;
/// Bytes of the record.
pub const RECORD_BYTES: usize = 248;
/// Uses have 48 bits; an entry that has reached this one is used up.
pub const LAST_USE: u64 = (1 << 48) - 1;

const OWNER_BYTES: usize = 32;
const REASON_BYTES: usize = 64;
const NO_HOST: u64 = 0xFFF;

/// A pin's name: its entry in the guest's pin table, and which use of the entry it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PinId {
    pub(crate) entry: u16,
    pub(crate) uses: u64,
}

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}.{}", self.entry, self.uses)
    }
}

/// The decoded word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinWord {
    /// Unused; `uses` was its last use (0: never used).
    Free {
        /// The last use.
        uses: u64,
    },
    /// The entry is being written; nothing is pinned yet.
    Taking {
        /// By whom.
        host: HostSlot,
        /// The use that begins.
        uses: u64,
    },
    /// The memory is pinned.
    Held {
        /// Where.
        host: HostSlot,
        /// The present use.
        uses: u64,
    },
}

impl PinWord {
    /// Encodes into the on-pool word.
    #[must_use]
    pub fn encode(self) -> u64 {
        let word = |state: u64, host: u64, uses: u64| {
            debug_assert!(uses <= LAST_USE);
            state << 60 | host << 48 | uses
        };
        match self {
            // An entry that was never used is all zeros, as a fresh capacity is.
            Self::Free { uses: 0 } => 0,
            Self::Free { uses } => word(0, NO_HOST, uses),
            Self::Taking { host, uses } => word(1, host.index() as u64, uses),
            Self::Held { host, uses } => word(2, host.index() as u64, uses),
        }
    }

    /// Decodes a word read from the pool; `None` for any value that [`PinWord::encode`] does not produce.
    #[must_use]
    pub fn decode(word: u64) -> Option<Self> {
        let host = u16::try_from(word >> 48 & NO_HOST).ok().and_then(HostSlot::new);
        let uses = word & LAST_USE;
        match (word >> 60, host, uses) {
            (0, _, 0) if word == 0 => Some(Self::Free { uses }),
            (_, _, 0) => None,
            (0, None, _) => Some(Self::Free { uses }),
            (1, Some(host), _) => Some(Self::Taking { host, uses }),
            (2, Some(host), _) => Some(Self::Held { host, uses }),
            _ => None,
        }
    }
}

/// A validated copy of an entry's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinRecord {
    /// Which use of the entry it belongs to.
    pub uses: u64,
    /// Where it begins in the guest's memory.
    pub offset: u64,
    /// Its length; not 0.
    pub bytes: u64,
    /// Who holds it.
    pub owner: String,
    /// Why.
    pub reason: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    uses: U64,
    offset: U64,
    bytes: U64,
    owner: [u8; OWNER_BYTES],
    reason: [u8; REASON_BYTES],
    rest: [u8; 124],
    crc: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == RECORD_BYTES);
    assert!(RECORD + RECORD_BYTES as u64 == ENTRY_BYTES);
    assert!(std::mem::offset_of!(Raw, owner) == 24);
    assert!(std::mem::offset_of!(Raw, reason) == 56);
    assert!(std::mem::offset_of!(Raw, crc) == 244);
};

impl PinRecord {
    /// Encodes with its checksum.
    ///
    /// # Errors
    /// [`BadText`] when the owner is empty or longer than 31 bytes, or the reason longer than 63.
    pub fn encode(&self) -> Result<[u8; RECORD_BYTES], BadText> {
        let mut raw = Raw::new_zeroed();
        raw.uses = self.uses.into();
        raw.offset = self.offset.into();
        raw.bytes = self.bytes.into();
        raw.owner = text::encode_ended("pin owner", &self.owner, "it is longer than 31 bytes")?;
        raw.reason = text::encode_ended("pin reason", &self.reason, "it is longer than 63 bytes")?;
        if self.owner.is_empty() {
            return Err(BadText { what: "pin owner", text: String::new(), why: "it is empty" });
        }
        Ok(seal(zerocopy::transmute!(raw)))
    }

    /// Validates a private copy. Whether its range lies in the guest's memory is for the table to say.
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: Raw = zerocopy::transmute!(*bytes);
        let record = Self {
            uses: raw.uses.get(),
            offset: raw.offset.get(),
            bytes: raw.bytes.get(),
            owner: text::decode_ended("owner", &raw.owner)?,
            reason: text::decode_ended("reason", &raw.reason)?,
        };
        if record.owner.is_empty() {
            return Err(BadRecord::Field("owner"));
        }
        if record.bytes == 0 || record.offset.checked_add(record.bytes).is_none() {
            return Err(BadRecord::Field("range"));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PinRecord {
        let (owner, reason) = ("virtio-blk0".to_owned(), "io_uring fixed buffer".to_owned());
        PinRecord { uses: 3, offset: 4096, bytes: 8192, owner, reason }
    }

    #[test]
    fn every_word_survives_the_round_trip() {
        let host = HostSlot::new(4094).expect("a slot");
        let words = [
            PinWord::Free { uses: 0 },
            PinWord::Free { uses: LAST_USE },
            PinWord::Taking { host, uses: 1 },
            PinWord::Held { host, uses: LAST_USE },
        ];
        for word in words {
            assert_eq!(PinWord::decode(word.encode()), Some(word));
        }
        for word in [1, u64::MAX, 0x0FFF_0000_0000_0000, 0x2FFF_0000_0000_0001, 0x3000_0000_0000_0001] {
            assert_eq!(PinWord::decode(word), None, "{word:#018x}");
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        assert_eq!(PinRecord::decode(&record().encode().expect("short texts")), Ok(record()));
    }

    #[test]
    fn a_record_with_any_other_byte_is_damaged() {
        let sound = record().encode().expect("short texts");
        for at in 0..RECORD_BYTES {
            let mut bytes = sound;
            bytes[at] ^= 0x10;
            assert_eq!(PinRecord::decode(&bytes), Err(BadRecord::Checksum), "byte {at}");
        }
    }

    #[test]
    fn texts_that_do_not_fit_are_refused_with_the_rule_they_break() {
        for (owner, reason) in [("", ""), (&*"x".repeat(32), ""), ("x", &*"y".repeat(64)), ("a\nb", "")] {
            let (owner, reason) = (owner.to_owned(), reason.to_owned());
            assert!(PinRecord { owner, reason, ..record() }.encode().is_err());
        }
        let (owner, reason) = ("x".repeat(31), "y".repeat(63));
        let longest = PinRecord { owner, reason, ..record() };
        assert_eq!(PinRecord::decode(&longest.encode().expect("they fit")), Ok(longest));
    }

    #[test]
    fn an_impossible_range_is_damage() {
        for (offset, bytes) in [(0, 0), (u64::MAX, 1), (1, u64::MAX)] {
            let bytes = PinRecord { offset, bytes, ..record() }.encode().expect("short texts");
            assert_eq!(PinRecord::decode(&bytes), Err(BadRecord::Field("range")));
        }
    }
}
