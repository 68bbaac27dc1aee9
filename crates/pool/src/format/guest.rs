//! A guest record, 8192 bytes: one page of words that hosts race on, one page that never changes.
//!
//! ```text
//! racing page                            immutable page
//!    0  ownership   u64                     0  id           16 bytes
//!   64  arm         u64                    16  generation   u64
//!  128  bell source u32                    24  memory       u64 (bytes)
//!  192  bell target u32                    32  features     u64
//!  256  timeline    16 × u64               40  created      u64
//!  384  zero                               48  creator      16 bytes (host)
//!                                          64  name         64 bytes
//!                                         128  state        16 bytes (tag of its state capacity)
//!                                         144  kind u32 (1 vm) · 148 vcpus u32 · 152 regions u32 · 156 zero u32
//!                                         160  regions[64]  address u64, bytes u64, tag 16, offset u64
//!                                        2720  zero
//!                                        4092  crc          u32
//! ```

use super::text::{self, NAME_BYTES};
use super::{BadRecord, GRANULE, check_seal, seal};
use crate::ids::{GuestId, HostId, Tag};
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the ownership word in the guest record.
pub const OWNERSHIP: u64 = 0;
/// Offset of the arm word.
pub const ARM: u64 = 64;
/// Offset of the source's doorbell.
pub const BELL_SOURCE: u64 = 128;
/// Offset of the target's doorbell.
pub const BELL_TARGET: u64 = 192;
/// Offset of the timeline.
pub const TIMELINE: u64 = 256;
/// Bytes of the racing page that are in use.
pub const RACING_BYTES: usize = 384;
/// Offset of the immutable page.
pub const RECORD: u64 = 4096;
/// Bytes of the immutable page.
pub const RECORD_BYTES: usize = 4096;
/// Most regions of a placement.
pub const MAX_REGIONS: usize = 64;
/// Most vCPUs of a guest.
pub const MAX_VCPUS: u32 = 1024;

/// What kind of workload a guest is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GuestKind {
    /// A virtual machine under nil's own VMM.
    Vm,
}

/// Where a part of the guest's memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Its length.
    pub bytes: u64,
    /// The capacity that holds it.
    pub capacity: Tag,
    /// Where in the capacity it begins.
    pub capacity_offset: u64,
}

/// A validated copy of a guest's immutable page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestRecord {
    /// The guest's name for life.
    pub id: GuestId,
    /// Generation of the slot that this record belongs to.
    pub generation: u64,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: GuestKind,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Bits whose meaning is the VMM's.
    pub features: u64,
    /// Nanoseconds since 1970 at creation, by the creator's clock.
    pub created: u64,
    /// Who created it.
    pub creator: HostId,
    /// The capacity that holds its state area.
    pub state: Tag,
    /// Where its memory lies, in ascending order of guest addresses.
    pub placement: Vec<Region>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRegion {
    guest_address: U64,
    bytes: U64,
    capacity: [u8; 16],
    capacity_offset: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    id: [u8; 16],
    generation: U64,
    memory_bytes: U64,
    features: U64,
    created: U64,
    creator: [u8; 16],
    name: [u8; NAME_BYTES],
    state: [u8; 16],
    kind: U32,
    vcpus: U32,
    region_count: U32,
    zero: U32,
    regions: [RawRegion; MAX_REGIONS],
    rest: [u8; 1372],
    crc: U32,
}

const _: () = {
    assert!(size_of::<Raw>() == RECORD_BYTES);
    assert!(std::mem::offset_of!(Raw, name) == 64);
    assert!(std::mem::offset_of!(Raw, kind) == 144);
    assert!(std::mem::offset_of!(Raw, regions) == 160);
    assert!(std::mem::offset_of!(Raw, crc) == 4092);
};

impl GuestRecord {
    /// Encodes with its checksum.
    ///
    /// # Panics
    /// When the name or the placement is too long; every way to a record checks it.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut raw = Raw::new_zeroed();
        raw.id = self.id.to_bytes();
        raw.generation = self.generation.into();
        raw.memory_bytes = self.memory_bytes.into();
        raw.features = self.features.into();
        raw.created = self.created.into();
        raw.creator = self.creator.to_bytes();
        raw.name = text::encode_name("guest name", &self.name).expect("names are checked where they come in");
        raw.state = self.state.to_bytes();
        raw.kind = match self.kind {
            GuestKind::Vm => 1,
        }
        .into();
        raw.vcpus = self.vcpus.into();
        raw.region_count =
            u32::try_from(self.placement.len()).expect("placements are checked where they come in").into();
        for (raw, region) in raw.regions.iter_mut().zip(&self.placement) {
            *raw = RawRegion {
                guest_address: region.guest_address.into(),
                bytes: region.bytes.into(),
                capacity: region.capacity.to_bytes(),
                capacity_offset: region.capacity_offset.into(),
            };
        }
        seal(zerocopy::transmute!(raw))
    }

    /// The capacity that holds its memory, or whatever part of it is in the pool.
    ///
    /// # Panics
    /// Never for a decoded record: it has a region.
    #[must_use]
    pub fn memory(&self) -> Tag {
        self.placement.first().expect("a guest has memory").capacity
    }

    /// Bytes that its memory capacity has: up to the end of the last region that lies in it.
    #[must_use]
    pub fn memory_extent(&self) -> u64 {
        self.placement.iter().map(|region| region.capacity_offset.saturating_add(region.bytes)).max().unwrap_or(0)
    }

    /// Validates a private copy. Whether its capacities exist is for the pool to say.
    ///
    /// # Errors
    /// [`BadRecord`] with what is wrong.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, BadRecord> {
        check_seal(bytes)?;
        let raw: Raw = zerocopy::transmute!(*bytes);
        let name = text::decode("name", &raw.name)?;
        text::encode_name("guest name", &name).map_err(|_| BadRecord::Field("name"))?;
        let record = Self {
            id: GuestId::from_bytes(raw.id),
            generation: raw.generation.get(),
            name,
            kind: match raw.kind.get() {
                1 => GuestKind::Vm,
                _ => return Err(BadRecord::Field("kind")),
            },
            memory_bytes: raw.memory_bytes.get(),
            vcpus: raw.vcpus.get(),
            features: raw.features.get(),
            created: raw.created.get(),
            creator: HostId::from_bytes(raw.creator),
            state: Tag::from_bytes(raw.state),
            placement: raw.placement()?,
        };
        if !(1..=MAX_VCPUS).contains(&record.vcpus) {
            return Err(BadRecord::Field("vcpus"));
        }
        record.check_placement()?;
        Ok(record)
    }

    /// Regions ascend without overlap, are whole granules of one capacity, nothing overflows, and together they are the
    /// guest's memory.
    fn check_placement(&self) -> Result<(), BadRecord> {
        let bad = BadRecord::Field("placement");
        let (mut next, mut sum) = (0u64, 0u64);
        for region in &self.placement {
            if region.guest_address < next || region.bytes == 0 || region.capacity != self.memory() {
                return Err(bad);
            }
            if !region.bytes.is_multiple_of(GRANULE) || !region.capacity_offset.is_multiple_of(GRANULE) {
                return Err(bad);
            }
            region.capacity_offset.checked_add(region.bytes).ok_or(bad)?;
            next = region.guest_address.checked_add(region.bytes).ok_or(bad)?;
            sum = sum.checked_add(region.bytes).ok_or(bad)?;
        }
        if sum != self.memory_bytes || sum == 0 { Err(bad) } else { Ok(()) }
    }
}

impl Raw {
    fn placement(&self) -> Result<Vec<Region>, BadRecord> {
        let count = usize::try_from(self.region_count.get()).unwrap_or(usize::MAX);
        let regions = self.regions.get(..count).ok_or(BadRecord::Field("regions"))?;
        Ok(regions
            .iter()
            .map(|raw| Region {
                guest_address: raw.guest_address.get(),
                bytes: raw.bytes.get(),
                capacity: Tag::from_bytes(raw.capacity),
                capacity_offset: raw.capacity_offset.get(),
            })
            .collect())
    }
}
