//! Adding and releasing tagged capacity.
//!
//! ```text
//! add       journal · claim slot · claim granules · record · tag index · fence · contest · commit · journal idle
//! release   journal · Live→Unmaking · in use? put back · legs · give back granules and tag · free slot · journal idle
//! ```
//!
//! A striped capacity is added and released in the same way, but has legs in place of granules ([`crate::stripe`]).
//!
//! Whoever wants a capacity back that a guest uses can ask for it: a word beside the record that holds the capacity's
//! own generation. It asks for nothing else than this use of the slot, so nobody has to take it back when the capacity
//! ends.

use crate::bytes::Bytes;
use crate::create::now;
use crate::error::{Error, Result};
use crate::format::GRANULE;
use crate::format::capacity::{CapacityRecord, Class, Extent, MAX_ACCESS};
use crate::format::header::Coherence;
use crate::format::journal::Intent;
use crate::format::slot_word::{Reference, SlotState};
use crate::format::stripe::Composition;
use crate::format::text::encode_label;
use crate::ids::{CapacitySlot, HostId, Tag};
use crate::listing::CapacityInfo;
use crate::mapping::{Access, Mapping, exchange, put};
use crate::membership::Membership;
use crate::owner_map::NoRoom;
use crate::persist::Point;
use crate::recovery::Actor;
use crate::slots::Contest;
use crate::stripe::{AbsentPools, LegAtHand};
use crate::sync::{Ordering, fence};

/// What capacity is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CapacityRequest {
    /// Its name; may be left out (a random one is taken) only where it is private.
    pub tag: Option<Tag>,
    /// Who may see it.
    pub class: Class,
    /// How the caches of those who see it agree. Guests need hardware.
    pub coherence: Coherence,
    /// Its size: a multiple of [`GRANULE`].
    pub bytes: u64,
    /// The hosts that may use it; all if empty.
    pub access: Vec<HostId>,
    /// For people.
    pub label: String,
}

/// What is done about hosts that have accepted a capacity and not let go of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holders {
    /// Nothing is released before they do.
    Respected,
    /// They lose it.
    Overridden,
}

/// A capacity about to be made, validated.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) tag: Tag,
    pub(crate) class: Class,
    pub(crate) coherence: Coherence,
    pub(crate) granules: u32,
    pub(crate) access: Vec<HostId>,
    pub(crate) label: String,
    /// The guest that it is for.
    pub(crate) user: Option<Reference>,
    /// What it is composed of; only a plain one and a leg claim granules.
    pub(crate) composition: Composition,
}

impl Spec {
    /// A capacity that a guest uses.
    pub(crate) fn for_guest(tag: Tag, granules: u32, label: String, guest: Reference) -> Self {
        let (class, coherence) = (Class::Shared, Coherence::Hardware);
        let (access, user, composition) = (Vec::new(), Some(guest), Composition::Plain);
        Self { tag, class, coherence, granules, access, label, user, composition }
    }

    /// The same with an access list.
    pub(crate) fn for_hosts(self, access: &[HostId]) -> Self {
        Self { access: access.to_vec(), ..self }
    }
}

impl CapacityRequest {
    /// What guests' memory can lie in: for all hosts, with caches that agree in hardware, and without a label.
    #[must_use]
    pub fn shared(tag: Tag, bytes: u64) -> Self {
        let (class, coherence) = (Class::Shared, Coherence::Hardware);
        Self { tag: Some(tag), class, coherence, bytes, access: Vec::new(), label: String::new() }
    }

    /// The same for one host at a time, under a tag that is made up for it.
    #[must_use]
    pub fn private(bytes: u64) -> Self {
        let (class, coherence) = (Class::Private, Coherence::Hardware);
        Self { tag: None, class, coherence, bytes, access: Vec::new(), label: String::new() }
    }

    pub(crate) fn validate(&self) -> Result<Spec> {
        encode_label("capacity label", &self.label)?;
        require_short(&self.access)?;
        let tag = match (self.tag, self.class) {
            (Some(tag), _) => tag,
            (None, Class::Private) => Tag::random(),
            (None, Class::Shared) => return Err(Error::TagNeeded),
        };
        let granules = granules(self.bytes).ok_or(Error::CapacitySize { bytes: self.bytes })?;
        let (access, label) = (self.access.clone(), self.label.clone());
        let (class, coherence, composition) = (self.class, self.coherence, Composition::Plain);
        Ok(Spec { tag, class, coherence, granules, access, label, user: None, composition })
    }
}

/// Refuses an access list that has no room in a record.
pub(crate) fn require_short(access: &[HostId]) -> Result<()> {
    if access.len() > MAX_ACCESS { Err(Error::AccessListTooLong { hosts: access.len() }) } else { Ok(()) }
}

/// Refuses what memory of a guest cannot lie in.
pub(crate) fn require_for_guests(record: &CapacityRecord) -> Result<()> {
    match (record.class, record.coherence) {
        (Class::Shared, Coherence::Hardware) => Ok(()),
        (class, coherence) => Err(Error::NotForGuests { tag: record.tag, class, coherence }),
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
        let made = self.add(&spec)?;
        self.pool().capacity(CapacitySlot(made.slot)).ok_or(Error::NoCapacity { tag: spec.tag })
    }

    /// Makes a capacity and commits it, as an operation of its own.
    pub(crate) fn add(&self, spec: &Spec) -> Result<Reference> {
        self.require_unfenced()?;
        let mut journal = self.journal()?;
        let made = self.make_capacity(spec, |made| journal.write(self.pool(), Intent::AddCapacity(made)));
        let committed = made.and_then(|made| self.commit_capacity(made, spec.tag).map(|()| made));
        journal.write(self.pool(), Intent::Idle);
        committed
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
        let (extents, maker) = match &spec.composition {
            Composition::Plain => (self.claim_granules(spec.granules, made)?, None),
            Composition::LegOf(_) => (self.claim_granules(spec.granules, made)?, Some(self.as_maker())),
            Composition::Striped(_) => (Vec::new(), None),
        };
        let record = CapacityRecord {
            tag: spec.tag,
            generation: made.generation,
            bytes: u64::from(spec.granules) * GRANULE,
            created: now(),
            class: spec.class,
            coherence: spec.coherence,
            access: spec.access.clone(),
            extents,
            composition: spec.composition.clone(),
            label: spec.label.clone(),
        };
        tables.write_capacity(made.slot.into(), &record);
        put(tables.capacity_user(made.slot.into()), spec.user.map_or(0, Reference::encode), Ordering::Release);
        put(tables.capacity_asked(made.slot.into()), 0, Ordering::Release);
        put(tables.capacity_maker(made.slot.into()), maker.map_or(0, Reference::encode), Ordering::Release);
        put(tables.capacity_answers(made.slot.into()), 0, Ordering::Release);
        put(tables.capacity_demand(made.slot.into()), 0, Ordering::Release);
        tables.persist_capacity(made.slot.into());
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

    fn claim_granules(&self, granules: u32, made: Reference) -> Result<Vec<Extent>> {
        let owners = self.pool().tables().owners();
        let hint = self.granule_hint.load(Ordering::Relaxed);
        let claimed = owners.claim(made, granules, hint).map_err(|none| no_room(granules, none))?;
        if let Some(last) = claimed.extents.last() {
            self.granule_hint.store(usize::try_from(last.end()).unwrap_or(0), Ordering::Relaxed);
        }
        let backing = &self.pool().inner.backing;
        // What a dead process left behind, and all that nobody punches holes into, may hold old contents.
        let dirty = if backing.punches() { &claimed.reclaimed } else { &claimed.extents };
        for extent in dirty {
            let (offset, bytes) = (u64::from(extent.first) * GRANULE, extent.bytes());
            if !backing.punch(offset, bytes) {
                let length = usize::try_from(bytes).map_err(|_| backing.failed("map", rustix::io::Errno::NOMEM));
                let mapping = length.and_then(|length| Mapping::map(backing, offset, length, Access::ReadWrite));
                zero(&mapping.inspect_err(|_| owners.release(made, &claimed.extents))?);
            }
        }
        Ok(claimed.extents)
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

    /// Releases a capacity that needs no other pool: see [`Membership::release_capacity_with`].
    ///
    /// # Errors
    /// [`Error::CapacityInUse`] with the guest, [`Error::CapacityAccepted`] with the hosts, [`Error::NoCapacity`],
    /// [`Error::CapacityBusy`], [`Error::LegInUse`], [`Error::LegNotAtHand`].
    pub fn release_capacity(&self, tag: Tag) -> Result<()> {
        self.release_capacity_with(tag, &[], AbsentPools::Refuse)
    }

    /// Makes a capacity that nobody uses `Unmaking`, releases `legs` in their pools, and takes the capacity apart.
    pub(crate) fn release(
        &self,
        capacity: Reference,
        tag: Tag,
        legs: &[LegAtHand<'_>],
        holders: Holders,
    ) -> Result<()> {
        self.refuse_in_use(capacity, tag, holders)?;
        self.release_if(capacity, tag, legs, || self.refuse_in_use(capacity, tag, holders))
    }

    /// Makes a capacity `Unmaking`; then, if that is `allowed`, takes it apart, else puts it back.
    pub(crate) fn release_if(
        &self,
        capacity: Reference,
        tag: Tag,
        legs: &[LegAtHand<'_>],
        allowed: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut journal = self.journal()?;
        journal.write(self.pool(), Intent::ReleaseCapacity(capacity));
        let released = self.release_noted(capacity, tag, legs, allowed);
        journal.write(self.pool(), Intent::Idle);
        released
    }

    fn release_noted(
        &self,
        capacity: Reference,
        tag: Tag,
        legs: &[LegAtHand<'_>],
        allowed: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
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
        if let Err(refused) = allowed() {
            slots.put_back(capacity, self.slot());
            return Err(refused);
        }
        legs.iter().for_each(LegAtHand::release);
        Actor::new(self.pool(), self.slot()).finish_release(capacity);
        Ok(())
    }

    /// Asks whoever uses a capacity to release it. It stays theirs until they do.
    ///
    /// # Errors
    /// [`Error::NoCapacity`], [`Error::Fenced`].
    pub fn ask_release(&self, tag: Tag) -> Result<()> {
        self.set_asked(tag, |capacity| capacity.generation)
    }

    /// Takes back that a capacity be released.
    ///
    /// # Errors
    /// [`Error::NoCapacity`], [`Error::Fenced`].
    pub fn withdraw_release(&self, tag: Tag) -> Result<()> {
        self.set_asked(tag, |_| 0)
    }

    fn set_asked(&self, tag: Tag, value: impl Fn(Reference) -> u64) -> Result<()> {
        self.require_unfenced()?;
        let _turn = self.exclusive()?;
        let capacity = self.pool().capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let word = self.pool().tables().capacity_asked(capacity.slot.into());
        let before = word.load(Ordering::Acquire);
        // A later use of the slot has another generation. If somebody else has changed the word, they spoke last.
        let _ = exchange(word, before, value(capacity));
        Ok(())
    }

    fn refuse_in_use(&self, capacity: Reference, tag: Tag, holders: Holders) -> Result<()> {
        if let Some(guest) = self.pool().tables().user_of(capacity.slot.into()) {
            return Err(Error::CapacityInUse { tag, guest: self.pool().guest_name(guest) });
        }
        let record = self.pool().tables().capacity_of(capacity).filter(|_| holders == Holders::Respected);
        let hosts = record.map_or_else(Vec::new, |record| self.pool().holders(capacity, &record));
        if hosts.is_empty() {
            return Ok(());
        }
        let hosts: Vec<String> = hosts.into_iter().map(|host| host.name).collect();
        Err(Error::CapacityAccepted { tag, hosts: hosts.join(", ") })
    }
}

fn zero(mapping: &Mapping) {
    #[cfg(all(test, not(loom)))]
    if crate::medium::zero(mapping.start(), mapping.length()) {
        return mapping.persist(Point::Zeros, 0, mapping.length());
    }
    // SAFETY: the mapping covers granules that this host has just claimed in the owner map; nobody else uses them.
    unsafe { std::ptr::write_bytes(mapping.start(), 0, mapping.length()) }
    mapping.persist(Point::Zeros, 0, mapping.length());
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
