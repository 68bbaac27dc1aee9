//! A guest's state area: where a freeze writes and a thaw reads.
//!
//! ```text
//! 0        header, 64 bytes: magic "nilstate", guest id 16, vcpus u32, zero, crc u32
//! 64 KiB   config area, 64 KiB
//! 128 KiB  slot 0: machine area 64 KiB, then 32 KiB for each vCPU
//! …        slot 1: the same
//! ```
//!
//! A handoff at epoch *e* writes slot *e* & 1, so the other slot still holds the state with which the guest landed.

use crate::capacity_mapping::CapacityMapping;
use crate::error::{Error, Result};
use crate::format::record_sum;
use crate::format::slot_word::Reference;
use crate::ids::{GuestId, Tag};
use crate::ownership::Epoch;
use crate::pool::Pool;
use crate::sections::{AREA_HEADER, RawArea, SectionWriter};
use crate::sync::{Ordering, fence};
use std::sync::Arc;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"nilstate";
/// Bytes of the config area and of each machine area.
pub const MACHINE_AREA: usize = 64 << 10;
/// Bytes of each vCPU area.
pub const VCPU_AREA: usize = 32 << 10;
const CONFIG_AT: u64 = 64 << 10;
const SLOTS_AT: u64 = 128 << 10;
/// State slots: one is being written while the other still holds the last landing.
const SLOTS: u64 = 2;
const HEADER_BYTES: usize = 64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    guest: [u8; 16],
    vcpus: U32,
    zero: [u8; 32],
    crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// Bytes that a guest with so many vCPUs needs for its state.
pub(crate) fn state_bytes(vcpus: u32) -> u64 {
    SLOTS_AT + SLOTS * slot_bytes(vcpus)
}

fn slot_bytes(vcpus: u32) -> u64 {
    MACHINE_AREA as u64 + u64::from(vcpus) * VCPU_AREA as u64
}

/// A mapped state area. Clones are cheap.
#[derive(Clone, Debug)]
pub struct StateArea {
    mapping: Arc<CapacityMapping>,
    vcpus: u32,
}

impl StateArea {
    /// Writes the header of a new guest's state area, whose capacity is still being made.
    pub(crate) fn format(pool: &Pool, capacity: Reference, guest: GuestId, vcpus: u32) -> Result<()> {
        let mapping = pool.map_reference(capacity, Tag::from_bytes([0; 16]))?;
        mapping.mapping().write(0, &encode_header(guest, vcpus));
        Ok(())
    }

    /// Checks that a mapped capacity is the state area of this guest.
    pub(crate) fn open(mapping: CapacityMapping, guest: GuestId, vcpus: u32) -> Result<Self> {
        let bad = |what| Error::BadStateArea { id: guest, what };
        if (mapping.len() as u64) < state_bytes(vcpus) {
            return Err(bad("its capacity is too small for the guest's vCPUs"));
        }
        if mapping.mapping().read::<HEADER_BYTES>(0) != encode_header(guest, vcpus) {
            return Err(bad("its header is not the one of this guest"));
        }
        Ok(Self { mapping: Arc::new(mapping), vcpus })
    }

    /// How many vCPUs it has room for.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Brings in every page, so that nobody faults on one while a guest stands still.
    ///
    /// # Errors
    /// What the kernel says, most likely that memory is short.
    pub fn populate(&self) -> std::io::Result<()> {
        self.mapping.populate()
    }

    /// The area of what the guest was booted with and never changes.
    #[must_use]
    pub fn config(&self) -> Area {
        self.area(CONFIG_AT, MACHINE_AREA)
    }

    /// The machine's area in a state slot (see [`Epoch::slot`]).
    ///
    /// # Panics
    /// When `slot` is neither 0 nor 1.
    #[must_use]
    pub fn machine(&self, slot: usize) -> Area {
        self.area(self.slot_at(slot), MACHINE_AREA)
    }

    /// A vCPU's area in a state slot (see [`Epoch::slot`]).
    ///
    /// # Panics
    /// When `slot` is neither 0 nor 1, or there is no such vCPU.
    #[must_use]
    pub fn vcpu(&self, slot: usize, index: usize) -> Area {
        assert!(index < self.vcpus as usize, "vCPU {index} of {}", self.vcpus);
        self.area(self.slot_at(slot) + (MACHINE_AREA + index * VCPU_AREA) as u64, VCPU_AREA)
    }

    fn slot_at(&self, slot: usize) -> u64 {
        assert!((slot as u64) < SLOTS, "state slot {slot}");
        SLOTS_AT + slot as u64 * slot_bytes(self.vcpus)
    }

    fn area(&self, offset: u64, length: usize) -> Area {
        // Proves that the area lies in the mapping, once.
        let start = self.mapping.mapping().at(offset, length, 8);
        Area { start, length, mapping: Arc::clone(&self.mapping) }
    }
}

fn encode_header(guest: GuestId, vcpus: u32) -> [u8; HEADER_BYTES] {
    let mut raw =
        RawHeader { magic: MAGIC, guest: guest.to_bytes(), vcpus: vcpus.into(), zero: [0; 32], crc: 0.into() };
    raw.crc = record_sum(raw.as_bytes()).into();
    zerocopy::transmute!(raw)
}

/// One area: a place for sections. It keeps its mapping alive.
#[derive(Clone, Debug)]
pub struct Area {
    start: *mut u8,
    length: usize,
    mapping: Arc<CapacityMapping>,
}

// SAFETY: the pointer leads into a shared mapping that `mapping` keeps alive and that belongs to no thread; who writes
// an area at which time is the protocol's business, and readers validate a copy.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Bytes of the area.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no area is empty")]
    pub fn len(&self) -> usize {
        debug_assert!(self.length <= self.mapping.len());
        self.length
    }

    /// Begins to write sections; what the area held before is gone. One writer at a time: the protocol gives each area
    /// of the slot being written to one thread.
    #[must_use]
    pub fn writer(&self, epoch: Epoch) -> SectionWriter<'_> {
        // SAFETY: `StateArea::area` checked bounds and alignment, `mapping` keeps the bytes mapped for as long as `self`
        // is borrowed, and the protocol's one-writer rule makes them ours.
        unsafe { SectionWriter::new(self.start, self.length, epoch) }
    }

    /// Copies the area's written bytes out, for [`crate::decode`]. Does not allocate when `buf` has room for
    /// [`Area::len`] bytes.
    ///
    /// # Errors
    /// [`Error::AreaUnfinished`] when the area holds nothing that was written to its end.
    pub fn read_into(&self, buf: &mut Vec<u8>) -> Result<()> {
        buf.clear();
        let mut header = [0; AREA_HEADER];
        self.copy_out(&mut header);
        let length = RawArea::claimed_length(&header).ok_or(Error::AreaUnfinished)?;
        if !(AREA_HEADER..=self.length).contains(&length) {
            return Err(Error::AreaUnfinished);
        }
        fence(Ordering::Acquire);
        buf.resize(length, 0);
        self.copy_out(buf);
        Ok(())
    }

    fn copy_out(&self, buf: &mut [u8]) {
        debug_assert!(buf.len() <= self.length);
        // SAFETY: both callers ask for at most `length` bytes, which are mapped for as long as `self` lives. Another
        // process may be writing them: then the copy is torn, and its checksums say so.
        unsafe { std::ptr::copy_nonoverlapping(self.start.cast_const(), buf.as_mut_ptr(), buf.len()) }
    }
}
