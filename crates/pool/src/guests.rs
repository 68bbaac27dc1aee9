//! Creating and destroying guests.
//!
//! ```text
//! create    journal · claim guest slot · memory capacity, if its home is the pool · state capacity · placement map and
//!           header of the state area · racing words zero · record · fence · contest for the name · commit capacities ·
//!           commit guest · journal idle
//! destroy   journal · Live→Unmaking · ownership → Vacant · release capacities · free slot · journal idle
//! ```

use crate::capacities::{granules, require_short};
use crate::control::GuestControl;
use crate::create::now;
use crate::error::{Error, Result};
use crate::format::GRANULE;
use crate::format::guest::{GuestKind, GuestRecord, MAX_VCPUS, RACING_BYTES, Region};
use crate::format::journal::Intent;
use crate::format::placement::Place;
use crate::format::slot_word::{Reference, SlotState};
use crate::format::text::encode_name;
use crate::ids::{GuestId, GuestSlot, HostId, Tag};
use crate::liveness::Liveness;
use crate::mapping::put;
use crate::membership::{Journal, Membership};
use crate::memory::{MemoryHome, guest_spec};
use crate::ownership::{Epoch, HostSlot, Ownership};
use crate::pool::Pool;
use crate::recovery::{Actor, Recovered};
use crate::slots::Contest;
use crate::state::{Shape, StateArea};
use crate::sync::{Ordering, fence};
use crate::tables::Seen;

/// What guest is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestRequest {
    /// Its name for people; unique in the pool.
    pub name: String,
    /// What it is.
    pub kind: GuestKind,
    /// Bytes of its memory: a multiple of [`GRANULE`].
    pub memory_bytes: u64,
    /// Where its memory is at first.
    pub home: MemoryHome,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Bits whose meaning is the VMM's.
    pub features: u64,
}

/// What a record is made of: a new guest's, or that of one that comes from another pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Founding<'a> {
    pub(crate) request: &'a GuestRequest,
    /// The hosts that may attach its memory; all, if there are none.
    pub(crate) access: &'a [HostId],
    pub(crate) id: GuestId,
    /// Nanoseconds since 1970.
    pub(crate) created: u64,
}

/// What has been claimed for a guest so far.
#[derive(Clone, Copy, Debug)]
struct Parts {
    guest: Reference,
    memory: Option<Reference>,
    state: Option<Reference>,
}

impl Parts {
    fn creation(self) -> Intent {
        Intent::CreateGuest { guest: self.guest, memory: self.memory, state: self.state }
    }

    fn capacities(self) -> [Option<Reference>; 2] {
        [self.memory, self.state]
    }
}

impl GuestRequest {
    fn validate(&self) -> Result<u32> {
        encode_name("guest name", &self.name)?;
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::GuestVcpus { vcpus: self.vcpus });
        }
        granules(self.memory_bytes).ok_or(Error::GuestMemory { bytes: self.memory_bytes })
    }
}

impl Membership {
    /// Creates a guest: its memory if it is to be in the pool, its state area, its record. Nobody owns it before [`GuestControl::publish`].
    ///
    /// # Errors
    /// [`Error`] with the reason; then nothing is left of it.
    pub fn create_guest(&self, request: &GuestRequest) -> Result<GuestControl> {
        self.create_guest_for(request, &[])
    }

    /// The same, with capacity of which only the hosts with these UUIDs may attach what is memory; all, if there are none.
    ///
    /// # Errors
    /// [`Error::AccessListTooLong`]; as for [`Membership::create_guest`].
    pub fn create_guest_for(&self, request: &GuestRequest, access: &[HostId]) -> Result<GuestControl> {
        self.make_guest(&Founding { request, access, id: GuestId::random(), created: now() })
    }

    pub(crate) fn make_guest(&self, founding: &Founding<'_>) -> Result<GuestControl> {
        let Founding { request, access, .. } = *founding;
        require_short(access)?;
        let memory_granules = request.validate()?;
        self.require_unfenced()?;
        if let Some(guest) = self.pool().bare_guests().find(|guest| guest.name == request.name) {
            return Err(Error::GuestExists { name: guest.name });
        }
        let mut journal = self.journal()?;
        let tables = self.pool().tables();
        let note = |guest| journal.write(self.pool(), Parts { guest, memory: None, state: None }.creation());
        let guest = tables.guest_slots().claim(self.slot(), 0, note);
        let created = match guest {
            None => Err(Error::GuestTableFull { slots: tables.layout().guests.count }),
            Some(guest) => self.furnish_guest(founding, memory_granules, guest, &mut journal),
        };
        journal.write(self.pool(), Intent::Idle);
        created
    }

    fn furnish_guest(
        &self,
        founding: &Founding<'_>,
        memory_granules: u32,
        guest: Reference,
        journal: &mut Journal,
    ) -> Result<GuestControl> {
        let mut parts = Parts { guest, memory: None, state: None };
        let built = self.build_guest(founding, memory_granules, &mut parts, journal);
        if built.is_err() {
            let actor = Actor::new(self.pool(), self.slot());
            actor.undo_creation(guest, parts.capacities(), &mut Recovered::default());
        }
        built
    }

    fn build_guest(
        &self,
        &Founding { request, access, id, created }: &Founding<'_>,
        memory_granules: u32,
        parts: &mut Parts,
        journal: &mut Journal,
    ) -> Result<GuestControl> {
        let guest = parts.guest;
        let (memory, state) = (Tag::random(), Tag::random());
        if request.home == MemoryHome::Pool {
            let spec = guest_spec("memory", &request.name, memory, memory_granules, guest).for_hosts(access);
            self.make_capacity(&spec, |made| {
                parts.memory = Some(made);
                journal.write(self.pool(), parts.creation());
            })?;
        }
        let shape = Shape { guest: id, vcpus: request.vcpus, granules: memory_granules.into() };
        let state_granules = granules(shape.bytes().next_multiple_of(GRANULE));
        let state_granules = state_granules.ok_or(Error::GuestMemory { bytes: request.memory_bytes })?;
        let spec = guest_spec("state", &request.name, state, state_granules, guest).for_hosts(access);
        let state_made = self.make_capacity(&spec, |made| {
            parts.state = Some(made);
            journal.write(self.pool(), parts.creation());
        })?;
        StateArea::format(self.pool(), state_made, state, shape, self.first_place(request.home))?;
        let record = GuestRecord {
            id: shape.guest,
            generation: guest.generation,
            name: request.name.clone(),
            kind: request.kind,
            memory_bytes: request.memory_bytes,
            vcpus: request.vcpus,
            features: request.features,
            created,
            creator: self.identity().id,
            state,
            placement: vec![Region {
                guest_address: 0,
                bytes: request.memory_bytes,
                capacity: memory,
                capacity_offset: 0,
            }],
        };
        self.write_guest(guest, &record);
        self.win_guest_name(guest, &request.name)?;
        for (made, tag) in [(parts.memory, memory), (parts.state, state)] {
            made.map_or(Ok(()), |made| self.commit_capacity(made, tag))?;
        }
        if !self.pool().tables().guest_slots().commit(guest, self.slot()) {
            return Err(Error::GuestExists { name: request.name.clone() });
        }
        Ok(GuestControl::new(self.pool().clone(), guest, shape.guest))
    }

    /// Where every granule of a new guest is.
    fn first_place(&self, home: MemoryHome) -> Place {
        match home {
            MemoryHome::Dram => Place::Local { host: self.slot(), epoch: Epoch(0) },
            MemoryHome::Pool => Place::Pooled,
        }
    }

    /// The racing page becomes all zeros (vacant, idle), the immutable page the record.
    fn write_guest(&self, guest: Reference, record: &GuestRecord) {
        let tables = self.pool().tables();
        for word in tables.mapping().words(tables.guest_at(guest.slot.into()), RACING_BYTES / 8) {
            put(word, 0, Ordering::Relaxed);
        }
        tables.write_guest(guest.slot.into(), record);
        fence(Ordering::SeqCst);
    }

    fn win_guest_name(&self, guest: Reference, name: &str) -> Result<()> {
        let tables = self.pool().tables();
        let slots = tables.guest_slots();
        let namesakes = (0..slots.count()).filter_map(|slot| {
            let Seen::Used(state, Ok(record)) = tables.guest(slot) else { return None };
            let generation = state.current().filter(|current| *current == record.generation)?;
            (record.name == name).then_some(Reference { slot: u16::try_from(slot).ok()?, generation })
        });
        match slots.contest(guest, namesakes) {
            Contest::Won => Ok(()),
            Contest::Lost(_) => Err(Error::GuestExists { name: name.to_owned() }),
        }
    }

    /// Destroys a guest that this host owns, or that is lost, or that was never published (by its creator, or by anyone
    /// once the creator is gone), and releases its capacities.
    ///
    /// # Errors
    /// [`Error::GuestNotOurs`], [`Error::GuestGone`]; then the guest is as it was.
    pub fn destroy_guest(&self, guest: &GuestControl) -> Result<()> {
        let record = guest.record()?;
        let ownership = self.destroyable(guest, &record)?;
        self.destroy_found(guest, &record, ownership)
    }

    /// The same, but only as long as its ownership word is this one: for who has judged by that word.
    ///
    /// # Errors
    /// As of [`Membership::destroy_guest`]; [`Error::GuestNotOurs`] too when the word is another by now.
    pub fn destroy_guest_while(&self, guest: &GuestControl, word: Ownership) -> Result<()> {
        let record = guest.record()?;
        let ownership = self.destroyable(guest, &record)?;
        if ownership != word {
            return Err(Error::GuestNotOurs { name: record.name, ownership });
        }
        self.destroy_found(guest, &record, word)
    }

    fn destroy_found(&self, guest: &GuestControl, record: &GuestRecord, ownership: Ownership) -> Result<()> {
        self.require_unfenced()?;
        // First, and as an operation of its own: a guest that is not protected is a guest, a protection without one is nothing.
        self.release_protection(guest)?;
        let reference = guest.reference();
        let parts = Parts {
            guest: reference,
            memory: self.pool().capacity_by_tag(record.memory()),
            state: self.pool().capacity_by_tag(record.state),
        };
        let mut journal = self.journal()?;
        let intent = Intent::DestroyGuest { guest: reference, memory: parts.memory, state: parts.state };
        journal.write(self.pool(), intent);
        let destroyed = self.destroy_noted(guest, parts, ownership, record);
        journal.write(self.pool(), Intent::Idle);
        destroyed
    }

    fn destroy_noted(&self, guest: &GuestControl, parts: Parts, found: Ownership, record: &GuestRecord) -> Result<()> {
        let tables = self.pool().tables();
        let slots = tables.guest_slots();
        if !slots.begin_unmaking(parts.guest, self.slot()) {
            return Err(Error::GuestGone { id: guest.id(), slot: guest.slot() });
        }
        let word = guest.ownership();
        if !word.transition(found, Ownership::Vacant) {
            slots.put_back(parts.guest, self.slot());
            let ownership = word.load().unwrap_or(found);
            return Err(Error::GuestNotOurs { name: record.name.clone(), ownership });
        }
        let actor = Actor::new(self.pool(), self.slot());
        actor.finish_destruction(parts.guest, parts.capacities(), &mut Recovered::default());
        Ok(())
    }

    /// The guest's ownership, if it is one in which this host may destroy it.
    fn destroyable(&self, guest: &GuestControl, record: &GuestRecord) -> Result<Ownership> {
        let what = || format!("ownership of guest '{}'", record.name);
        let ownership = guest.ownership().load().map_err(|bad| Error::DamagedWord { what: what(), word: bad.0 })?;
        let allowed = match ownership {
            Ownership::Owned { host, .. } => host == self.slot(),
            Ownership::Lost { .. } => true,
            Ownership::Vacant => record.creator == self.identity().id || !self.pool().host_may_live(record.creator),
            Ownership::Offered { .. } | Ownership::Frozen { .. } | Ownership::Taken { .. } => false,
        };
        if allowed { Ok(ownership) } else { Err(Error::GuestNotOurs { name: record.name.clone(), ownership }) }
    }
}

impl Pool {
    /// Whether a host with this id is here and not dead for sure.
    pub(crate) fn host_may_live(&self, id: HostId) -> bool {
        self.hosts().into_iter().any(|host| host.id == id && host.liveness != Liveness::Dead)
    }
}

impl GuestControl {
    /// Makes `owner` the first owner of a new guest, at epoch 1.
    ///
    /// # Errors
    /// [`Error::GuestNotOurs`] when it has an owner already; [`Error::GuestGone`] when it was destroyed meanwhile.
    pub fn publish(&self, owner: HostSlot) -> Result<Ownership> {
        self.publish_at(owner, Epoch(1))
    }

    /// Makes `owner` the owner of a guest that nobody owns yet, at this epoch.
    pub(crate) fn publish_at(&self, owner: HostSlot, epoch: Epoch) -> Result<Ownership> {
        let owned = Ownership::Owned { host: owner, epoch };
        if !self.ownership().transition(Ownership::Vacant, owned) {
            let ownership = self.ownership().load().unwrap_or(Ownership::Vacant);
            return Err(Error::GuestNotOurs { name: self.record()?.name, ownership });
        }
        let reference = self.reference();
        let state = self.pool().tables().guest_slots().load(reference.slot.into());
        if state == Ok(SlotState::Live { generation: reference.generation }) {
            return Ok(owned);
        }
        self.ownership().transition(owned, Ownership::Vacant);
        Err(Error::GuestGone { id: self.id(), slot: GuestSlot(reference.slot) })
    }
}
