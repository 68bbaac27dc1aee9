//! Adding and releasing tagged capacity.
//!
//! ```text
//! add       journal · claim slot · claim granules · record · tag index · fence · contest · commit · journal idle
//! release   journal · Live→Unmaking · in use? put back · give back granules and tag · free slot · journal idle
//! ```

use crate::bytes::Bytes;
use crate::create::now;
use crate::error::{Error, Result};
use crate::format::GRANULE;
use crate::format::capacity::{CapacityRecord, Class, MAX_ACCESS};
use crate::format::journal::Intent;
use crate::format::slot_word::{Reference, SlotState};
use crate::format::text::encode_label;
use crate::ids::{CapacitySlot, HostId, Tag};
use crate::listing::CapacityInfo;
use crate::mapping::{Access, Mapping, put};
use crate::membership::Membership;
use crate::owner_map::{Claimed, NoRoom};
use crate::recovery::Actor;
use crate::slots::Contest;
use crate::sync::{Ordering, fence};

/// What capacity is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CapacityRequest {
    /// Its name; may be left out (a random one is taken) only where it is private.
    pub tag: Option<Tag>,
    /// Who may see it.
    pub class: Class,
    /// Its size: a multiple of [`GRANULE`].
    pub bytes: u64,
    /// The hosts that may use it; all if empty.
    pub access: Vec<HostId>,
    /// For people.
    pub label: String,
}

/// A capacity about to be made, validated.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) tag: Tag,
    pub(crate) class: Class,
    pub(crate) granules: u32,
    pub(crate) access: Vec<HostId>,
    pub(crate) label: String,
    /// The guest that it is for.
    pub(crate) user: Option<Reference>,
}

impl CapacityRequest {
    fn validate(&self) -> Result<Spec> {
        encode_label("capacity label", &self.label)?;
        if self.access.len() > MAX_ACCESS {
            return Err(Error::AccessListTooLong { hosts: self.access.len() });
        }
        let tag = match (self.tag, self.class) {
            (Some(tag), _) => tag,
            (None, Class::Private) => Tag::random(),
            (None, Class::Shared) => return Err(Error::TagNeeded),
        };
        let granules = granules(self.bytes).ok_or(Error::CapacitySize { bytes: self.bytes })?;
        let (class, access, label) = (self.class, self.access.clone(), self.label.clone());
        Ok(Spec { tag, class, granules, access, label, user: None })
    }
}

/// A size in granules, if it is a positive multiple that any pool could have.
pub(crate) fn granules(bytes: u64) -> Option<u32> {
    if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
        return None;
    }
    u32::try_from(bytes / GRANULE).ok()
}

impl Membership {
    /// Adds a capacity. Its bytes read as zeros.
    ///
    /// # Errors
    /// [`Error`] with the reason; then nothing is left of it.
    pub fn add_capacity(&self, request: &CapacityRequest) -> Result<CapacityInfo> {
        let spec = request.validate()?;
        self.require_unfenced()?;
        let mut journal = self.journal();
        let made = self.make_capacity(&spec, |made| journal.write(self.pool(), Intent::AddCapacity(made)));
        let committed = made.and_then(|made| self.commit_capacity(made, spec.tag).map(|()| made));
        journal.write(self.pool(), Intent::Idle);
        let made = committed?;
        self.pool().capacity(CapacitySlot(made.slot)).ok_or(Error::NoCapacity { tag: spec.tag })
    }

    /// Makes a capacity up to its commit. `note` is told which slot is about to be claimed.
    pub(crate) fn make_capacity(&self, spec: &Spec, note: impl FnMut(Reference)) -> Result<Reference> {
        let tables = self.pool().tables();
        if let Some(rival) = tables.with_tag(spec.tag).next() {
            return Err(self.tag_taken(spec.tag, rival));
        }
        let start = self.slot_hint.load(Ordering::Relaxed);
        let made = tables
            .capacity_slots()
            .claim(self.slot(), start, note)
            .ok_or(Error::CapacityTableFull { slots: tables.layout().capacities.count })?;
        self.slot_hint.store(usize::from(made.slot) + 1, Ordering::Relaxed);
        let furnished = self.furnish_capacity(spec, made);
        if furnished.is_err() {
            tables.capacity_slots().abort(made, self.slot());
        }
        furnished.map(|()| made)
    }

    /// The slot is claimed: granules, record, tag. On failure all but the slot is given back.
    fn furnish_capacity(&self, spec: &Spec, made: Reference) -> Result<()> {
        let (tables, actor) = (self.pool().tables(), Actor::new(self.pool(), self.slot()));
        let claimed = self.claim_granules(spec.granules, made)?;
        let record = CapacityRecord {
            tag: spec.tag,
            generation: made.generation,
            bytes: u64::from(spec.granules) * GRANULE,
            created: now(),
            class: spec.class,
            access: spec.access.clone(),
            extents: claimed.extents,
            label: spec.label.clone(),
        };
        tables.write_capacity(made.slot.into(), &record);
        put(tables.capacity_user(made.slot.into()), spec.user.map_or(0, Reference::encode), Ordering::Release);
        if !tables.tags().insert(spec.tag, made) {
            actor.dismantle_recorded(made, &record);
            return Err(Error::TagIndexFull { tag: spec.tag });
        }
        fence(Ordering::SeqCst);
        if tables.capacity_slots().contest(made, tables.with_tag(spec.tag)) != Contest::Won {
            actor.dismantle_recorded(made, &record);
            return Err(Error::TagExists { tag: spec.tag });
        }
        Ok(())
    }

    fn claim_granules(&self, granules: u32, made: Reference) -> Result<Claimed> {
        let owners = self.pool().tables().owners();
        let hint = self.granule_hint.load(Ordering::Relaxed);
        let claimed = owners.claim(made, granules, hint).map_err(|none| no_room(granules, none))?;
        if let Some(last) = claimed.extents.last() {
            self.granule_hint.store(usize::try_from(last.end()).unwrap_or(0), Ordering::Relaxed);
        }
        let backing = &self.pool().inner.backing;
        // What a dead process left behind, and all of a device, may hold old contents.
        let dirty = if backing.is_device() { &claimed.extents } else { &claimed.reclaimed };
        for extent in dirty {
            let (offset, bytes) = (u64::from(extent.first) * GRANULE, extent.bytes());
            if !backing.punch(offset, bytes) {
                let length = usize::try_from(bytes).map_err(|_| backing.failed("map", rustix::io::Errno::NOMEM));
                let mapping = length.and_then(|length| Mapping::map(backing, offset, length, Access::ReadWrite));
                zero(&mapping.inspect_err(|_| owners.release(made, &claimed.extents))?);
            }
        }
        Ok(claimed)
    }

    /// `Making` → `Live`. A rival for the tag may have aborted it meanwhile; then it is taken apart.
    pub(crate) fn commit_capacity(&self, made: Reference, tag: Tag) -> Result<()> {
        let tables = self.pool().tables();
        if tables.capacity_slots().commit(made, self.slot()) {
            return Ok(());
        }
        self.dismantle_aborted(made, tag);
        Err(Error::TagExists { tag })
    }

    /// The slot is no longer ours, so neither is its record; the owner map and the index still know.
    fn dismantle_aborted(&self, made: Reference, tag: Tag) {
        let tables = self.pool().tables();
        tables.tags().remove(tag, made);
        Actor::new(self.pool(), self.slot()).give_back(made, &tables.owners().owned(made));
    }

    fn tag_taken(&self, tag: Tag, rival: Reference) -> Error {
        match self.pool().tables().capacity_slots().load(rival.slot.into()) {
            Ok(SlotState::Unmaking { host, .. }) => Error::CapacityBusy { tag, host },
            _ => Error::TagExists { tag },
        }
    }

    /// Releases a capacity.
    ///
    /// # Errors
    /// [`Error::CapacityInUse`] with the guest, [`Error::NoCapacity`], [`Error::CapacityBusy`].
    pub fn release_capacity(&self, tag: Tag) -> Result<()> {
        self.require_unfenced()?;
        let tables = self.pool().tables();
        let mut journal = self.journal();
        let capacity = tables.with_tag(tag).next().ok_or(Error::NoCapacity { tag })?;
        self.refuse_in_use(capacity, tag)?;
        journal.write(self.pool(), Intent::ReleaseCapacity(capacity));
        let released = self.release_noted(capacity, tag);
        journal.write(self.pool(), Intent::Idle);
        released
    }

    fn release_noted(&self, capacity: Reference, tag: Tag) -> Result<()> {
        let slots = self.pool().tables().capacity_slots();
        if !slots.begin_unmaking(capacity, self.slot()) {
            return match slots.load(capacity.slot.into()) {
                Ok(state) if state.current() == Some(capacity.generation) => match state.changed_by() {
                    Some(host) => Err(Error::CapacityBusy { tag, host }),
                    None => Err(Error::NoCapacity { tag }),
                },
                Ok(_) | Err(_) => Err(Error::NoCapacity { tag }),
            };
        }
        // From here on nobody new can come to use it; somebody may have come just before.
        if let Err(in_use) = self.refuse_in_use(capacity, tag) {
            slots.put_back(capacity, self.slot());
            return Err(in_use);
        }
        Actor::new(self.pool(), self.slot()).finish_release(capacity);
        Ok(())
    }

    fn refuse_in_use(&self, capacity: Reference, tag: Tag) -> Result<()> {
        match self.pool().tables().user_of(capacity.slot.into()) {
            Some(guest) => Err(Error::CapacityInUse { tag, guest: self.pool().guest_name(guest) }),
            None => Ok(()),
        }
    }
}

fn zero(mapping: &Mapping) {
    // SAFETY: the mapping covers granules that this host has just claimed in the owner map; nobody else uses them.
    unsafe { std::ptr::write_bytes(mapping.start(), 0, mapping.length()) }
}

fn no_room(granules: u32, none: NoRoom) -> Error {
    let bytes = |granules: u64| Bytes(granules * GRANULE);
    let wanted = bytes(granules.into());
    if none.free >= u64::from(granules) {
        Error::Fragmented { wanted, free: bytes(none.free), largest: bytes(none.largest) }
    } else {
        Error::NoRoom { wanted, free: bytes(none.free) }
    }
}
