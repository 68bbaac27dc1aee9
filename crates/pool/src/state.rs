//! A guest's state area: where a freeze writes and a thaw reads, and where it stands which part of the memory is where.
//!
//! ```text
//! 0        header, 64 bytes: magic "nilstate", guest id 16, vcpus u32, zero u32, granules u64, zero, crc u32
//! 4 KiB    pin table, 32 KiB
//! 64 KiB   config area, 64 KiB
//! 128 KiB  slot 0: machine area 64 KiB, then 32 KiB for each vCPU
//! …        slot 1: the same
//! …        placement map, 64 bytes and 8 for each granule of the memory
//! ```
//!
//! A handoff at epoch *e* writes slot *e* & 1, so the other slot still holds the state with which the guest landed.

use crate::capacity_mapping::CapacityMapping;
use crate::error::{Error, Result};
use crate::format::guest::GuestRecord;
use crate::format::placement::Place;
use crate::format::slot_word::Reference;
use crate::format::{GRANULE, seal};
use crate::ids::{GuestId, Tag};
use crate::mapping::copy_out;
use crate::ownership::Epoch;
use crate::persist::Point;
use crate::pins::{self, PinTable};
use crate::placement::{PlacementMap, map_bytes};
use crate::pool::Pool;
use crate::sections::{AREA_HEADER, RawArea, SectionWriter, decode};
use crate::sync::{Ordering, fence};
use std::sync::Arc;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"nilstate";
/// Bytes of the config area and of each machine area.
pub const MACHINE_AREA: usize = 64 << 10;
/// Bytes of each vCPU area.
pub const VCPU_AREA: usize = 32 << 10;
const PINS_AT: u64 = 4 << 10;
const CONFIG_AT: u64 = 64 << 10;
const SLOTS_AT: u64 = 128 << 10;
/// State slots: one is being written while the other still holds the last landing.
const SLOTS: u64 = 2;
const HEADER_BYTES: usize = 64;
const PAGE: u64 = 4 << 10;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    guest: [u8; 16],
    vcpus: U32,
    zero: [u8; 4],
    granules: U64,
    rest: [u8; 20],
    crc: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == HEADER_BYTES);
    assert!(std::mem::offset_of!(RawHeader, vcpus) == 24);
    assert!(std::mem::offset_of!(RawHeader, granules) == 32);
    assert!(std::mem::offset_of!(RawHeader, crc) == 60);
    assert!(PINS_AT + pins::TABLE_BYTES <= CONFIG_AT);
    assert!((MACHINE_AREA as u64).is_multiple_of(PAGE) && (VCPU_AREA as u64).is_multiple_of(PAGE));
};

/// For what guest a state area is: it decides where everything lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    pub(crate) guest: GuestId,
    pub(crate) vcpus: u32,
    /// Granules of the guest's memory.
    pub(crate) granules: u64,
}

impl Shape {
    pub(crate) fn of(record: &GuestRecord) -> Self {
        Self { guest: record.id, vcpus: record.vcpus, granules: record.memory_bytes / GRANULE }
    }

    /// Bytes that the state area takes. It cannot overflow: 2⁶⁴ bytes of memory have a map of 64 TiB.
    pub(crate) fn bytes(self) -> u64 {
        (self.map_at() + map_bytes(self.granules)).next_multiple_of(PAGE)
    }

    fn map_at(self) -> u64 {
        SLOTS_AT + SLOTS * slot_bytes(self.vcpus)
    }

    fn header(self) -> [u8; HEADER_BYTES] {
        let raw = RawHeader {
            magic: MAGIC,
            guest: self.guest.to_bytes(),
            vcpus: self.vcpus.into(),
            zero: [0; 4],
            granules: self.granules.into(),
            rest: [0; 20],
            crc: 0.into(),
        };
        seal(zerocopy::transmute!(raw))
    }
}

pub(crate) fn slot_bytes(vcpus: u32) -> u64 {
    MACHINE_AREA as u64 + u64::from(vcpus) * VCPU_AREA as u64
}

/// A mapped state area. Clones are cheap.
#[derive(Clone, Debug)]
pub struct StateArea {
    mapping: Arc<CapacityMapping>,
    shape: Shape,
    placement: PlacementMap,
}

impl StateArea {
    /// Writes header and placement map of a new guest's state area, whose capacity `tag` is still being made. All of the
    /// guest's memory is in one `place`.
    pub(crate) fn format(pool: &Pool, capacity: Reference, tag: Tag, shape: Shape, place: Place) -> Result<()> {
        let mapping = pool.map_reference(capacity, tag)?;
        PlacementMap::format(mapping.mapping(), shape.map_at(), shape.granules, place);
        mapping.mapping().write(0, &shape.header());
        let map = usize::try_from(map_bytes(shape.granules)).unwrap_or(usize::MAX);
        mapping.mapping().persist(Point::StateArea, shape.map_at(), map);
        mapping.mapping().persist(Point::StateArea, 0, HEADER_BYTES);
        Ok(())
    }

    /// Checks that a mapped capacity is the state area of this guest.
    pub(crate) fn open(mapping: CapacityMapping, shape: Shape) -> Result<Self> {
        let bad = |what| Error::BadStateArea { id: shape.guest, what };
        if (mapping.len() as u64) < shape.bytes() {
            return Err(bad("its capacity is too small for the guest's vCPUs and memory"));
        }
        if mapping.mapping().read::<HEADER_BYTES>(0) != shape.header() {
            return Err(bad("its header is not the one of this guest"));
        }
        let mapping = Arc::new(mapping);
        let placement = PlacementMap::open(Arc::clone(&mapping), shape.map_at(), shape.granules)
            .ok_or_else(|| bad("its placement map is not the one of this guest's memory"))?;
        Ok(Self { mapping, shape, placement })
    }

    /// Which granule of the guest's memory is where.
    #[must_use]
    pub fn placement(&self) -> PlacementMap {
        self.placement.clone()
    }

    /// Which parts of the guest's memory cannot move now.
    #[must_use]
    pub fn pins(&self) -> PinTable {
        PinTable::new(Arc::clone(&self.mapping), PINS_AT, self.shape.granules)
    }

    /// How many vCPUs it has room for.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.shape.vcpus
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
        assert!(index < self.shape.vcpus as usize, "vCPU {index} of {}", self.shape.vcpus);
        self.area(self.slot_at(slot) + (MACHINE_AREA + index * VCPU_AREA) as u64, VCPU_AREA)
    }

    /// Takes over what `earlier`, the state area of the same guest in another pool, says of it: what the guest was booted
    /// with, and the state that it had when it last landed, at epoch `landed`, as if it had done so at `now`. Without that
    /// state, or a part of it, the next target has nothing to load ahead, which costs it time.
    ///
    /// # Errors
    /// [`Error::BadStateArea`] when the configuration is not whole, or one of the two has other parts than the other.
    pub fn inherit(&self, earlier: &Self, landed: Epoch, now: Epoch) -> Result<()> {
        let bad = |what| Error::BadStateArea { id: self.shape.guest, what };
        if self.shape != earlier.shape {
            return Err(bad("it is not the one of the same guest in another pool"));
        }
        if !copy_area(&earlier.config(), &self.config(), (Epoch(0), Epoch(0))) {
            return Err(bad("its configuration is not whole"));
        }
        let (from, to) = (landed.slot(), now.slot());
        copy_area(&earlier.machine(from), &self.machine(to), (landed, now));
        for index in 0..self.shape.vcpus as usize {
            copy_area(&earlier.vcpu(from, index), &self.vcpu(to, index), (landed, now));
        }
        Ok(())
    }

    fn slot_at(&self, slot: usize) -> u64 {
        assert!((slot as u64) < SLOTS, "state slot {slot}");
        SLOTS_AT + slot as u64 * slot_bytes(self.shape.vcpus)
    }

    fn area(&self, offset: u64, length: usize) -> Area {
        Area::within(&self.mapping, offset, length)
    }
}

/// Copies what one area holds of an epoch into another as being of a later one; false, and the other holds nothing, when
/// it is not whole.
pub(crate) fn copy_area(from: &Area, to: &Area, (written, now): (Epoch, Epoch)) -> bool {
    let mut copy = Vec::with_capacity(from.len());
    let mut out = to.writer(now);
    if from.read_into(&mut copy).is_err() {
        return false;
    }
    let Ok(sections) = decode(&copy, written) else { return false };
    let copied = sections
        .iter()
        .try_for_each(|section| out.put(section.kind, section.version, section.instance, section.payload))
        .is_ok();
    if copied {
        out.finish();
    }
    copied
}

/// Whether an area holds what was written in this epoch, to its end.
pub(crate) fn is_whole(area: &Area, written: Epoch) -> bool {
    let mut copy = Vec::with_capacity(area.len());
    area.read_into(&mut copy).is_ok() && decode(&copy, written).is_ok()
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
    /// The area at this place of a mapping.
    pub(crate) fn within(mapping: &Arc<CapacityMapping>, offset: u64, length: usize) -> Self {
        // Proves that the area lies in the mapping, once.
        let start = mapping.mapping().at(offset, length, 8);
        Self { start, length, mapping: Arc::clone(mapping) }
    }

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
        unsafe { copy_out(self.start, buf) }
    }
}
