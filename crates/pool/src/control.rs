//! A handle on one guest: its racing words in place, its configuration as a validated copy, its memory mapped.

use crate::arm::ArmWord;
use crate::bell::{Bell, Side};
use crate::capacity_mapping::CapacityMapping;
use crate::error::{Error, Result};
use crate::format::guest::{ARM, BELL_SOURCE, BELL_TARGET, GuestKind, GuestRecord, Region, TIMELINE};
use crate::format::header::Coherence;
use crate::format::slot_word::Reference;
use crate::ids::{GuestId, GuestSlot, HostId, Tag};
use crate::persist::{self, Point};
use crate::pool::Pool;
use crate::state::{Shape, StateArea};
use crate::tables::Seen;
use crate::timeline::Timeline;
use crate::voices::GuestOwnership;
use std::sync::Arc;

#[cfg(not(loom))]
const _: () = {
    use crate::ownership::OwnershipWord;
    assert!(size_of::<OwnershipWord>() == 8 && align_of::<OwnershipWord>() == 8);
    assert!(size_of::<ArmWord>() == 8 && align_of::<ArmWord>() == 8);
    assert!(size_of::<Bell>() == 4 && align_of::<Bell>() == 4);
    assert!(size_of::<Timeline>() == 128 && align_of::<Timeline>() == 8);
};

/// A handle on one guest's record. Clones are cheap.
#[derive(Clone, Debug)]
pub struct GuestControl {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    guest: Reference,
    id: GuestId,
}

/// What a guest is; it never changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestConfig {
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: GuestKind,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// The tag of its memory capacity, which exists while a part of the memory is in the pool.
    pub memory: Tag,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Bits whose meaning is the VMM's.
    pub features: u64,
    /// Nanoseconds since 1970 at creation.
    pub created: u64,
    /// The host that created it.
    pub creator: HostId,
}

impl GuestControl {
    pub(crate) fn new(pool: Pool, guest: Reference, id: GuestId) -> Self {
        Self { inner: Arc::new(Inner { pool, guest, id }) }
    }

    /// The guest's name for life.
    #[must_use]
    pub fn id(&self) -> GuestId {
        self.inner.id
    }

    /// Its slot in the guest table.
    #[must_use]
    pub fn slot(&self) -> GuestSlot {
        GuestSlot(self.inner.guest.slot)
    }

    /// Its pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    pub(crate) fn reference(&self) -> Reference {
        self.inner.guest
    }

    /// A validated copy of the record, if the slot still holds this guest.
    pub(crate) fn record(&self) -> Result<GuestRecord> {
        let (id, slot) = (self.id(), self.slot());
        match self.pool().tables().guest(slot.index()) {
            Seen::Used(state, Ok(record))
                if state.current() == Some(self.inner.guest.generation) && record.id == id =>
            {
                Ok(record)
            }
            Seen::Used(state, Err(source)) if state.current() == Some(self.inner.guest.generation) => {
                Err(Error::Damaged { what: format!("guest record {slot}"), source })
            }
            Seen::BadWord(word) => Err(Error::DamagedWord { what: format!("guest slot {slot}"), word }),
            Seen::Used(..) | Seen::Free => Err(Error::GuestGone { id, slot }),
        }
    }

    /// What the guest is.
    ///
    /// # Errors
    /// [`Error::GuestGone`], [`Error::Damaged`].
    pub fn config(&self) -> Result<GuestConfig> {
        let record = self.record()?;
        let memory = record.memory();
        let GuestRecord { name, kind, memory_bytes, vcpus, features, created, creator, .. } = record;
        Ok(GuestConfig { name, kind, memory_bytes, memory, vcpus, features, created, creator })
    }

    /// Where its memory lies when it is in the pool, in ascending order of guest addresses.
    ///
    /// # Errors
    /// [`Error::GuestGone`], [`Error::Damaged`].
    pub fn placement(&self) -> Result<Vec<Region>> {
        Ok(self.record()?.placement)
    }

    /// Whether the capacity of its memory exists, so that memory can lie in the pool.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.record().is_ok_and(|record| self.uses(record.memory()))
    }

    /// Whether there is a capacity with this tag, and the guest uses it.
    pub(crate) fn uses(&self, tag: Tag) -> bool {
        let capacity = self.pool().capacity_by_tag(tag);
        capacity.is_some_and(|capacity| self.pool().tables().user_of(capacity.slot.into()) == Some(self.inner.guest))
    }

    fn racing<T>(&self, field: u64) -> *const T {
        let tables = self.pool().tables();
        let at = tables.guest_at(self.slot().index()) + field;
        tables.mapping().at(at, size_of::<T>(), align_of::<T>()).cast_const().cast()
    }

    /// Who owns it.
    #[must_use]
    pub fn ownership(&self) -> GuestOwnership<'_> {
        GuestOwnership::new(self.pool(), self.slot().index(), self.reference().generation)
    }

    /// How far the target of a handoff has come.
    #[must_use]
    pub fn arm(&self) -> &ArmWord {
        // SAFETY: `racing` gives a place inside the tables' mapping, aligned for the type; the mapping lives as long as
        // the pool, which `self` holds; the type is nothing but atomics of the size asserted above, for which every bit
        // pattern is valid, and all processes access these bytes atomically (docs/pool-format.md, "Guest record").
        unsafe { &*self.racing(ARM) }
    }

    /// The doorbell of one side.
    #[must_use]
    pub fn bell(&self, side: Side) -> &Bell {
        let field = match side {
            Side::Source => BELL_SOURCE,
            Side::Target => BELL_TARGET,
        };
        // SAFETY: as in `arm`.
        unsafe { &*self.racing(field) }
    }

    /// The time stamps of the last handoff.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        // SAFETY: as in `arm`.
        unsafe { &*self.racing(TIMELINE) }
    }

    /// Maps the guest's whole memory: the regions of its placement, one behind the other, whatever lies between them in
    /// the guest's address space.
    ///
    /// # Errors
    /// [`Error::NoCapacity`] while the guest's memory is not placed in the pool ([`GuestControl::is_placed`]);
    /// [`Error::NotOnAccessList`] in the name of a host that may not have it;
    /// [`Error::Damaged`], [`Error::NoMmap`].
    pub fn map_memory(&self) -> Result<CapacityMapping> {
        let mut pieces = Vec::new();
        for region in self.placement()? {
            pieces.extend(self.pool().pieces(region.capacity, region.capacity_offset, region.bytes)?);
        }
        self.pool().map_pieces(&pieces)
    }

    /// Has what this host's caches hold of the guest's memory written to the pool, where that outlives hosts; else there is
    /// nothing to do. For a host that the guest has left: without this its last stores stay in the caches here until they are
    /// needed elsewhere, and die with this host if it loses power. It takes a while, and changes nothing.
    ///
    /// # Errors
    /// As for [`GuestControl::map_memory`]: there may be no such capacity any more.
    pub fn write_back_memory(&self) -> Result<()> {
        if persist::is_needed() {
            let memory = self.map_memory()?;
            persist::persist(Point::Memory, memory.as_ptr(), memory.len());
        }
        Ok(())
    }

    /// Where the hosts' caches do not agree: returns once what this host has stored in the guest's memory is in the pool, for who
    /// has the guest next. For its source, before it publishes the freeze. Else there is nothing to do.
    ///
    /// # Errors
    /// As for [`GuestControl::map_memory`].
    pub fn hand_memory_over(&self) -> Result<()> {
        self.drop_memory_from_caches()
    }

    /// Where the hosts' caches do not agree: returns once this host's hold nothing of the guest's memory from before. For its
    /// target, once it has seen the freeze. Else there is nothing to do.
    ///
    /// # Errors
    /// As for [`GuestControl::map_memory`].
    pub fn take_memory_over(&self) -> Result<()> {
        self.drop_memory_from_caches()
    }

    /// What is mapped anew is dropped from the caches, at whatever other addresses it came there; what was stored is written back
    /// by that.
    fn drop_memory_from_caches(&self) -> Result<()> {
        match self.pool().coherence() {
            Coherence::Hardware => Ok(()),
            Coherence::Software => self.map_memory().map(drop),
        }
    }

    /// Maps the guest's state area. Every host may look into it, whatever the access list.
    ///
    /// # Errors
    /// [`Error::NoCapacity`], [`Error::BadStateArea`], [`Error::NoMmap`].
    pub fn map_state(&self) -> Result<StateArea> {
        let record = self.record()?;
        self.pool().require_write()?;
        self.pool().state_of(&record)
    }
}

impl Pool {
    /// The state area of the guest with this record; also of a pool that is open for reading only.
    pub(crate) fn state_of(&self, record: &GuestRecord) -> Result<StateArea> {
        let capacity = self.capacity_by_tag(record.state).ok_or(Error::NoCapacity { tag: record.state })?;
        let mapping = self.map_reference(capacity, record.state)?;
        StateArea::open(mapping, Shape::of(record))
    }
}
