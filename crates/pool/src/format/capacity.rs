//! A capacity record, 1024 bytes: what a tagged capacity is and which granules it has.
//!
//! ```text
//!    0  tag         16 bytes                     352  composition  604 bytes
//!   16  generation  u64                          956  crc          u32 of bytes 0..956
//!   24  bytes       u64
//!   32  created     u64                          words that race:
//!   40  class       u8 (1 private, 2 shared)     960  user         reference to a guest, 0 = none
//!   41  host count  u8                           968  asked        generation whose release is asked for
//!   42  parts       u16                          976  maker        reference to a host, 0 = none
//!   44  coherence   u8 (0 hardware, 1 software)  984  answers      of the hosts on the access list
//!   45  kind        u8 (0 plain, 1 leg, 2 striped) 992 demand      that its guest be stopped
//!   46  zero        u16                         1000  demanded at  ns since 1970
//!   48  label       64 bytes                    1008  zero
//!  112  hosts[15]   16 bytes each
//!
//! composition, at 352
//!   plain, leg      0  extents[64] first u32, count u32 (granules)   512  whole: pool 16, tag 16   544  zero
//!   striped         0  granularity u64    8  legs[16] pool 16, tag 16, weight u32                  584  zero
//! ```

use super::header::Coherence;
use super::stripe::{Composition, Leg, MAX_LEGS, Stripe, Whole};
use super::{BadRecord, GRANULE, check_seal, seal};
use crate::ids::{HostId, PoolId, Tag};
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
/// Offset of the word that asks for its release.
pub const ASKED: u64 = 968;
/// Offset of the maker word of a leg.
pub const MAKER: u64 = 976;
/// Offset of the word with the answers of the hosts on its access list.
pub const ANSWERS: u64 = 984;
/// Offset of the word by which it is taken away from its guest.
pub const DEMAND: u64 = 992;
/// Offset of the time at which that was demanded.
pub const DEMANDED_AT: u64 = 1000;
/// Bytes that say what it is composed of.
const COMPOSITION_BYTES: usize = 604;
const PLAIN: u8 = 0;
const LEG: u8 = 1;
const STRIPED: u8 = 2;
/// Most extents of a capacity.
pub const MAX_EXTENTS: usize = 64;
/// Most hosts on an access list.
pub const MAX_ACCESS: usize = 15;

/// Who may see a capacity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Usable bytes: the sum of its extents, or of its legs.
    pub bytes: u64,
    /// Nanoseconds since 1970 at creation, by the creator's clock.
    pub created: u64,
    /// Who may see it.
    pub class: Class,
    /// How the caches of those who see it agree.
    pub coherence: Coherence,
    /// The hosts that may use it; all if empty.
    pub access: Vec<HostId>,
    /// Its granules, in the order of its bytes; none if it is striped.
    pub extents: Vec<Extent>,
    /// What it is composed of.
    pub composition: Composition,
    /// For people.
    pub label: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawExtent {
    first: U32,
    count: U32,
}

/// The composition of what has granules.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawGranules {
    extents: [RawExtent; MAX_EXTENTS],
    whole_pool: [u8; 16],
    whole_tag: [u8; 16],
    rest: [u8; 60],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLeg {
    pool: [u8; 16],
    tag: [u8; 16],
    weight: U32,
}

/// The composition of what has legs.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawStripe {
    granularity: U64,
    legs: [RawLeg; MAX_LEGS],
    rest: [u8; 20],
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
    parts: U16,
    coherence: u8,
    kind: u8,
    zero: U16,
    label: [u8; NAME_BYTES],
    access: [[u8; 16]; MAX_ACCESS],
    composition: [u8; COMPOSITION_BYTES],
    crc: U32,
}

const _: () = {
    assert!(size_of::<RawGranules>() == COMPOSITION_BYTES);
    assert!(std::mem::offset_of!(RawGranules, whole_pool) == 512);
    assert!(size_of::<RawStripe>() == COMPOSITION_BYTES);
    assert!(std::mem::offset_of!(RawStripe, rest) == 584);
};

const _: () = {
    assert!(size_of::<Raw>() == RECORD_BYTES);
    assert!(std::mem::offset_of!(Raw, class) == 40);
    assert!(std::mem::offset_of!(Raw, label) == 48);
    assert!(std::mem::offset_of!(Raw, access) == 112);
    assert!(std::mem::offset_of!(Raw, coherence) == 44);
    assert!(std::mem::offset_of!(Raw, composition) == 352);
    assert!(std::mem::offset_of!(Raw, crc) == 956);
};

impl CapacityRecord {
    /// Encodes with its checksum.
    ///
    /// # Panics
    /// When a list or the label is too long; every way to a record checks it.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let (kind, parts, composition) = self.encode_composition();
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
            parts: u16::try_from(parts).expect("allocator and stripes keep to what fits").into(),
            coherence: self.coherence.encode(),
            kind,
            zero: 0.into(),
            label: text::encode_label("label", &self.label).expect("labels are checked where they come in"),
            access: [[0; 16]; MAX_ACCESS],
            composition,
            crc: 0.into(),
        };
        for (raw, host) in raw.access.iter_mut().zip(&self.access) {
            *raw = host.to_bytes();
        }
        seal(zerocopy::transmute!(raw))
    }

    /// The kind, how many parts it has, and their bytes.
    fn encode_composition(&self) -> (u8, usize, [u8; COMPOSITION_BYTES]) {
        let (kind, whole) = match &self.composition {
            Composition::Plain => (PLAIN, [[0; 16]; 2]),
            Composition::LegOf(whole) => (LEG, [whole.pool.to_bytes(), whole.tag.to_bytes()]),
            Composition::Striped(stripe) => return (STRIPED, stripe.legs.len(), encode_stripe(stripe)),
        };
        let [whole_pool, whole_tag] = whole;
        let extents = [RawExtent { first: 0.into(), count: 0.into() }; MAX_EXTENTS];
        let mut raw = RawGranules { extents, whole_pool, whole_tag, rest: [0; 60] };
        for (raw, extent) in raw.extents.iter_mut().zip(&self.extents) {
            *raw = RawExtent { first: extent.first.into(), count: extent.count.into() };
        }
        (kind, self.extents.len(), zerocopy::transmute!(raw))
    }

    /// Validates a private copy. Whether the extents lie in the pool is [`CapacityRecord::fits`].
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: Raw = zerocopy::transmute!(*bytes);
        let access = raw.access.get(..usize::from(raw.hosts)).ok_or(BadRecord::Field("hosts"))?;
        let (extents, composition) = raw.decode_composition()?;
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
            coherence: Coherence::decode(raw.coherence.into()).ok_or(BadRecord::Field("coherence"))?,
            access: access.iter().map(|host| HostId::from_bytes(*host)).collect(),
            extents,
            composition,
            label: text::decode("label", &raw.label)?,
        })
    }

    /// Whether every extent lies among the pool's data granules.
    #[must_use]
    pub fn fits(&self, first_data: u64, granules: u64) -> bool {
        self.extents.iter().all(|extent| u64::from(extent.first) >= first_data && extent.end() <= granules)
    }
}

impl Raw {
    fn decode_composition(&self) -> Result<(Vec<Extent>, Composition), BadRecord> {
        let (parts, bytes) = (usize::from(self.parts.get()), self.bytes.get());
        if self.kind == STRIPED {
            let stripe = decode_stripe(zerocopy::transmute!(self.composition), parts)?;
            if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
                return Err(BadRecord::Field("bytes"));
            }
            stripe.validate(bytes).map_err(|_| BadRecord::Field("stripe"))?;
            return Ok((Vec::new(), Composition::Striped(stripe)));
        }
        let raw: RawGranules = zerocopy::transmute!(self.composition);
        let composition = match self.kind {
            PLAIN => Composition::Plain,
            LEG => Composition::LegOf(Whole {
                pool: PoolId::from_bytes(raw.whole_pool),
                tag: Tag::from_bytes(raw.whole_tag),
            }),
            _ => return Err(BadRecord::Field("kind")),
        };
        let extents = raw.extents.get(..parts).ok_or(BadRecord::Field("extents"))?;
        let extents: Vec<Extent> =
            extents.iter().map(|raw| Extent { first: raw.first.get(), count: raw.count.get() }).collect();
        if extents.is_empty() || extents.iter().any(|extent| extent.count == 0) {
            return Err(BadRecord::Field("extents"));
        }
        let granules: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
        if granules.checked_mul(GRANULE) != Some(bytes) {
            return Err(BadRecord::Field("bytes"));
        }
        Ok((extents, composition))
    }
}

fn encode_stripe(stripe: &Stripe) -> [u8; COMPOSITION_BYTES] {
    let legs = [RawLeg { pool: [0; 16], tag: [0; 16], weight: 0.into() }; MAX_LEGS];
    let mut raw = RawStripe { granularity: stripe.granularity.into(), legs, rest: [0; 20] };
    for (raw, leg) in raw.legs.iter_mut().zip(&stripe.legs) {
        *raw = RawLeg { pool: leg.pool.to_bytes(), tag: leg.tag.to_bytes(), weight: leg.weight.into() };
    }
    zerocopy::transmute!(raw)
}

fn decode_stripe(raw: RawStripe, legs: usize) -> Result<Stripe, BadRecord> {
    let legs = raw.legs.get(..legs).ok_or(BadRecord::Field("legs"))?;
    let leg = |raw: &RawLeg| Leg {
        pool: PoolId::from_bytes(raw.pool),
        tag: Tag::from_bytes(raw.tag),
        weight: raw.weight.get(),
    };
    Ok(Stripe { granularity: raw.granularity.get(), legs: legs.iter().map(leg).collect() })
}
