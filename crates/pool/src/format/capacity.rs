//! A capacity record, 1024 bytes: what a tagged capacity is and which granules it has.
//!
//! ```text
//!    0  tag         16 bytes                 48  label       64 bytes
//!   16  generation  u64                     112  hosts[15]   16 bytes each
//!   24  bytes       u64                     352  extents[64] first u32, count u32 (granules)
//!   32  created     u64                     864  zero
//!   40  class       u8 (1 private, 2 shared) 956 crc         u32 of bytes 0..956
//!   41  host count  u8                      960  user        u64: reference to a guest, 0 = none; races
//!   42  extents     u16                     968  zero
//!   44  zero        u32
//! ```

use super::{BadRecord, GRANULE, record_sum};
use crate::ids::{HostId, Tag};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::text::{self, NAME_BYTES};

/// Bytes of the immutable part of the record.
pub const RECORD_BYTES: usize = 960;
/// Offset of the user word in the record.
pub const USER: u64 = 960;
/// Most extents of a capacity.
pub const MAX_EXTENTS: usize = 64;
/// Most hosts on an access list.
pub const MAX_ACCESS: usize = 15;

/// Who may see a capacity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// One host at a time.
    Private,
    /// Every host on the access list (all hosts when the list is empty). It must have been given a tag.
    Shared,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Shared => "shared",
        })
    }
}

/// A text that is no class.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no class of capacity; write private or shared")]
pub struct BadClass(String);

impl FromStr for Class {
    type Err = BadClass;

    fn from_str(text: &str) -> Result<Self, BadClass> {
        match text {
            "private" => Ok(Self::Private),
            "shared" => Ok(Self::Shared),
            _ => Err(BadClass(text.to_owned())),
        }
    }
}

/// Contiguous granules, counted from the start of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// First granule.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Extent {
    /// The granule after the last.
    #[must_use]
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    /// Bytes of the extent.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * GRANULE
    }

    /// Its granules as indices into the owner map.
    #[must_use]
    pub fn granules(self) -> std::ops::Range<usize> {
        let first = self.first as usize;
        first..first + self.count as usize
    }
}

/// A validated copy of a capacity record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CapacityRecord {
    /// Its name.
    pub tag: Tag,
    /// Generation of the slot that this record belongs to.
    pub generation: u64,
    /// Usable bytes: the sum of its extents.
    pub bytes: u64,
    /// Nanoseconds since 1970 at creation, by the creator's clock.
    pub created: u64,
    /// Who may see it.
    pub class: Class,
    /// The hosts that may use it; all if empty.
    pub access: Vec<HostId>,
    /// Its granules, in the order of its bytes.
    pub extents: Vec<Extent>,
    /// For people.
    pub label: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawExtent {
    first: U32,
    count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    tag: [u8; 16],
    generation: U64,
    bytes: U64,
    created: U64,
    class: u8,
    hosts: u8,
    extent_count: U16,
    zero: U32,
    label: [u8; NAME_BYTES],
    access: [[u8; 16]; MAX_ACCESS],
    extents: [RawExtent; MAX_EXTENTS],
    rest: [u8; 92],
    crc: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == RECORD_BYTES);
    assert!(std::mem::offset_of!(Raw, class) == 40);
    assert!(std::mem::offset_of!(Raw, label) == 48);
    assert!(std::mem::offset_of!(Raw, access) == 112);
    assert!(std::mem::offset_of!(Raw, extents) == 352);
    assert!(std::mem::offset_of!(Raw, crc) == 956);
};

impl CapacityRecord {
    /// Encodes with its checksum.
    ///
    /// # Panics
    /// When a list or the label is too long; every way to a record checks it.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut raw = Raw {
            tag: self.tag.to_bytes(),
            generation: self.generation.into(),
            bytes: self.bytes.into(),
            created: self.created.into(),
            class: match self.class {
                Class::Private => 1,
                Class::Shared => 2,
            },
            hosts: u8::try_from(self.access.len()).expect("access lists are checked where they come in"),
            extent_count: u16::try_from(self.extents.len()).expect("the allocator keeps to 64 extents").into(),
            zero: 0.into(),
            label: text::encode_label("label", &self.label).expect("labels are checked where they come in"),
            access: [[0; 16]; MAX_ACCESS],
            extents: [RawExtent { first: 0.into(), count: 0.into() }; MAX_EXTENTS],
            rest: [0; 92],
            crc: 0.into(),
        };
        for (raw, host) in raw.access.iter_mut().zip(&self.access) {
            *raw = host.to_bytes();
        }
        for (raw, extent) in raw.extents.iter_mut().zip(&self.extents) {
            *raw = RawExtent { first: extent.first.into(), count: extent.count.into() };
        }
        raw.crc = record_sum(raw.as_bytes()).into();
        zerocopy::transmute!(raw)
    }

    /// Validates a private copy. Whether the extents lie in the pool is [`CapacityRecord::fits`].
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, BadRecord> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        if record_sum(bytes) != raw.crc.get() {
            return Err(BadRecord::Checksum);
        }
        let access = raw.access.get(..usize::from(raw.hosts)).ok_or(BadRecord::Field("hosts"))?;
        let extents = raw.extents.get(..usize::from(raw.extent_count.get())).ok_or(BadRecord::Field("extents"))?;
        let extents: Vec<Extent> =
            extents.iter().map(|raw| Extent { first: raw.first.get(), count: raw.count.get() }).collect();
        if extents.is_empty() || extents.iter().any(|extent| extent.count == 0) {
            return Err(BadRecord::Field("extents"));
        }
        let granules: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
        if granules.checked_mul(GRANULE) != Some(raw.bytes.get()) {
            return Err(BadRecord::Field("bytes"));
        }
        Ok(Self {
            tag: Tag::from_bytes(raw.tag),
            generation: raw.generation.get(),
            bytes: raw.bytes.get(),
            created: raw.created.get(),
            class: match raw.class {
                1 => Class::Private,
                2 => Class::Shared,
                _ => return Err(BadRecord::Field("class")),
            },
            access: access.iter().map(|host| HostId::from_bytes(*host)).collect(),
            extents,
            label: text::decode("label", &raw.label)?,
        })
    }

    /// Whether every extent lies among the pool's data granules.
    #[must_use]
    pub fn fits(&self, first_data: u64, granules: u64) -> bool {
        self.extents.iter().all(|extent| u64::from(extent.first) >= first_data && extent.end() <= granules)
    }
}
