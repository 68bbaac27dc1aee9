//! A host's journal, 4096 bytes: two entries written in turn. The valid one with the higher sequence counts.
//!
//! ```text
//! entry, 64 bytes, at 0 and at 64
//!  0  sequence     u64                 24  objects[4]  u64 each: a reference, 0 = none
//!  8  incarnation  u64                 56  zero        u32
//! 16  operation    u32                 60  crc         u32
//! 20  zero         u32
//! ```
//!
//! An entry is written before the first word that it speaks of is changed. One that is torn was not yet acted upon,
//! so the other, older one still tells the truth. Entries of an earlier incarnation than the host's are over.

use super::slot_word::Reference;
use super::{BadRecord, check_seal, seal};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 64;

/// What a host is about to do, or is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// Nothing.
    Idle,
    /// Make this capacity.
    AddCapacity(Reference),
    /// Take this capacity apart.
    ReleaseCapacity(Reference),
    /// Make this guest and its capacities, as far as they have been chosen.
    CreateGuest {
        /// The guest.
        guest: Reference,
        /// Its memory.
        memory: Option<Reference>,
        /// Its state area.
        state: Option<Reference>,
    },
    /// Take this guest apart, and its capacities.
    DestroyGuest {
        /// The guest.
        guest: Reference,
        /// Its memory.
        memory: Option<Reference>,
        /// Its state area.
        state: Option<Reference>,
    },
}

/// A validated copy of a journal entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Grows by one with every entry of an incarnation.
    pub sequence: u64,
    /// The incarnation of the host that wrote it.
    pub incarnation: u64,
    /// What it is about.
    pub intent: Intent,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    sequence: U64,
    incarnation: U64,
    operation: U32,
    zero: U32,
    objects: [U64; 4],
    reserved: U32,
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() == ENTRY_BYTES);

impl Entry {
    /// Encodes with its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let word = |reference: Option<Reference>| reference.map_or(0, Reference::encode);
        let (operation, objects) = match self.intent {
            Intent::Idle => (0, [0; 4]),
            Intent::AddCapacity(capacity) => (1, [capacity.encode(), 0, 0, 0]),
            Intent::ReleaseCapacity(capacity) => (2, [capacity.encode(), 0, 0, 0]),
            Intent::CreateGuest { guest, memory, state } => (3, [guest.encode(), word(memory), word(state), 0]),
            Intent::DestroyGuest { guest, memory, state } => (4, [guest.encode(), word(memory), word(state), 0]),
        };
        let raw = Raw {
            sequence: self.sequence.into(),
            incarnation: self.incarnation.into(),
            operation: operation.into(),
            zero: 0.into(),
            objects: objects.map(U64::new),
            reserved: 0.into(),
            crc: 0.into(),
        };
        seal(zerocopy::transmute!(raw))
    }

    /// Validates a private copy.
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: Raw = zerocopy::transmute!(*bytes);
        let [first, memory, state, _] = raw.objects.map(|word| Reference::decode(word.get()));
        let first = first.ok_or(BadRecord::Field("objects"));
        let intent = match raw.operation.get() {
            0 => Intent::Idle,
            1 => Intent::AddCapacity(first?),
            2 => Intent::ReleaseCapacity(first?),
            3 => Intent::CreateGuest { guest: first?, memory, state },
            4 => Intent::DestroyGuest { guest: first?, memory, state },
            _ => return Err(BadRecord::Field("operation")),
        };
        Ok(Self { sequence: raw.sequence.get(), incarnation: raw.incarnation.get(), intent })
    }
}
