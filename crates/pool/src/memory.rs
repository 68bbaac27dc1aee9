//! The capacity of a guest's memory: made when the guest begins to leave its host's DRAM, released when it has come back.
//!
//! The guest's record keeps the tag for life; the capacity with that tag comes and goes.
//!
//! ```text
//!            place_memory                              unplace_memory, every granule local
//! absent ───────────────────▶ Live, used by the guest ───────────────────▶ absent
//!
//! place     as adding any capacity, with the guest as its user
//! unplace   journal · Live→Unmaking · a granule not local? put back · user word → 0 · give back granules and tag · free
//!           slot · journal idle
//! ```
//!
//! A host that dies while it places leaves nothing or all of it. One that dies while it unplaces leaves all of it as long
//! as the user word names the guest, and nothing afterwards: that word decides in recovery, as in every release.

use crate::capacities::{Spec, granules};
use crate::control::GuestControl;
use crate::error::{Error, Result};
use crate::format::guest::GuestRecord;
use crate::format::journal::Intent;
use crate::format::placement::Place;
use crate::format::slot_word::{Reference, SlotState};
use crate::format::text::NAME_BYTES;
use crate::ids::{GuestSlot, Tag};
use crate::mapping::exchange;
use crate::membership::{Journal, Membership};
use crate::ownership::Ownership;
use crate::recovery::Actor;
use crate::sync::{Ordering, fence};

/// Where a guest's memory is when the guest is created.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryHome {
    /// In the DRAM of the host that runs it. There is no memory capacity until [`Membership::place_memory`].
    Dram,
    /// In the pool.
    Pool,
}

/// What a new capacity of a guest is to be.
pub(crate) fn guest_spec(what: &str, name: &str, tag: Tag, granules: u32, guest: Reference) -> Spec {
    Spec::for_guest(tag, granules, shortened(format!("{what} of {name}")), guest)
}

/// Labels have 64 bytes; a name that fills them leaves no room for what it is.
fn shortened(mut label: String) -> String {
    while label.len() > NAME_BYTES {
        label.pop();
    }
    label
}

impl Membership {
    /// Makes the capacity of a guest's memory, all zeros; nothing if it is there already. For the guest's owner, or its
    /// creator before it is published.
    ///
    /// # Errors
    /// [`Error::GuestNotOurs`], [`Error::GuestGone`], [`Error::NoRoom`] and what else keeps a capacity from being added;
    /// then nothing is left of it.
    pub fn place_memory(&self, guest: &GuestControl) -> Result<()> {
        let spec = self.memory_spec(guest)?;
        self.make_for_guest(guest, &spec, |_| Ok(()))
    }

    /// Makes a capacity that this guest uses, if it is not there already. `furnish` fills it before anybody finds it.
    pub(crate) fn make_for_guest(
        &self,
        guest: &GuestControl,
        spec: &Spec,
        furnish: impl FnOnce(Reference) -> Result<()>,
    ) -> Result<()> {
        let tag = spec.tag;
        let mut journal = self.journal()?;
        if guest.uses(tag) {
            return Ok(());
        }
        let made = self.make_capacity(spec, |made| journal.write(self.pool(), Intent::AddCapacity(made)));
        let placed = made.and_then(|made| {
            if let Err(error) = furnish(made) {
                Actor::new(self.pool(), self.slot()).settle_capacity(made);
                return Err(error);
            }
            self.commit_capacity(made, tag)?;
            self.keep_for(guest, made, &mut journal)
        });
        journal.write(self.pool(), Intent::Idle);
        placed
    }

    /// What the capacity of the memory of a guest that is this host's is to be.
    pub(crate) fn memory_spec(&self, guest: &GuestControl) -> Result<Spec> {
        let record = guest.record()?;
        let bytes = record.memory_extent();
        let granules = granules(bytes).ok_or(Error::GuestMemory { bytes })?;
        self.guest_capacity_spec(guest, "memory", record.memory(), granules)
    }

    /// What a capacity for a guest that is this host's is to be.
    pub(crate) fn guest_capacity_spec(
        &self,
        guest: &GuestControl,
        what: &str,
        tag: Tag,
        granules: u32,
    ) -> Result<Spec> {
        self.require_unfenced()?;
        let record = guest.record()?;
        self.require_ours(guest, &record)?;
        // Where the guest's state may be attached is where its memory may be.
        let state = self.pool().capacity_by_tag(record.state);
        let state = state.and_then(|state| self.pool().tables().capacity_of(state));
        let access = state.map_or_else(Vec::new, |state| state.access);
        Ok(guest_spec(what, &record.name, tag, granules, guest.reference()).for_hosts(&access))
    }

    /// A guest that was destroyed meanwhile, after a handoff that nobody waited for, has not released the new capacity.
    fn keep_for(&self, guest: &GuestControl, made: Reference, journal: &mut Journal) -> Result<()> {
        fence(Ordering::SeqCst);
        self.require_live(guest).inspect_err(|_| {
            journal.write(self.pool(), Intent::ReleaseCapacity(made));
            if self.pool().tables().capacity_slots().begin_unmaking(made, self.slot()) {
                self.take_from(guest, made);
            }
        })
    }

    /// Nobody has begun to destroy the guest.
    pub(crate) fn require_live(&self, guest: &GuestControl) -> Result<()> {
        let reference = guest.reference();
        let state = self.pool().tables().guest_slots().load(reference.slot.into());
        if state == Ok(SlotState::Live { generation: reference.generation }) {
            return Ok(());
        }
        Err(Error::GuestGone { id: guest.id(), slot: GuestSlot(reference.slot) })
    }

    /// Releases the capacity of a guest's memory; nothing if there is none, or if the guest is protected: then it is the image.
    /// For the guest's owner, or its creator before it is published.
    ///
    /// # Errors
    /// [`Error::MemoryInPool`] with the first granule that is not local, [`Error::GuestNotOurs`], [`Error::GuestGone`],
    /// [`Error::BadPlacement`], [`Error::CapacityBusy`]; then the capacity is as it was.
    pub fn unplace_memory(&self, guest: &GuestControl) -> Result<()> {
        self.require_unfenced()?;
        let record = guest.record()?;
        self.require_ours(guest, &record)?;
        if guest.is_protected() {
            return Ok(());
        }
        self.release_from(guest, record.memory(), || require_all_local(guest, &record))
    }

    /// Releases a capacity that the guest uses, if there is one, and if that is `allowed`: before anything is changed, and once
    /// nobody maps it anew.
    pub(crate) fn release_from(&self, guest: &GuestControl, tag: Tag, allowed: impl Fn() -> Result<()>) -> Result<()> {
        let mut journal = self.journal()?;
        let Some(capacity) = self.pool().tables().with_tag(tag).next() else { return Ok(()) };
        match self.pool().tables().user_of(capacity.slot.into()) {
            Some(user) if user == guest.reference() => {}
            Some(user) => return Err(Error::CapacityInUse { tag, guest: self.pool().guest_name(user) }),
            // Somebody has given a capacity of their own this tag.
            None => return Ok(()),
        }
        allowed()?;
        journal.write(self.pool(), Intent::ReleaseCapacity(capacity));
        let released = self.release_from_noted(guest, capacity, tag, allowed);
        journal.write(self.pool(), Intent::Idle);
        released
    }

    fn release_from_noted(
        &self,
        guest: &GuestControl,
        capacity: Reference,
        tag: Tag,
        allowed: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let tables = self.pool().tables();
        let slots = tables.capacity_slots();
        if !slots.begin_unmaking(capacity, self.slot()) {
            return Err(self.not_released(capacity, tag));
        }
        // From here on nobody maps it; somebody may have begun to use it just before.
        if let Err(needed) = allowed() {
            slots.put_back(capacity, self.slot());
            return Err(needed);
        }
        self.take_from(guest, capacity);
        Ok(())
    }

    /// The capacity is `Unmaking`: from the first write on there is no way back for it.
    fn take_from(&self, guest: &GuestControl, capacity: Reference) {
        let _ = exchange(self.pool().tables().capacity_user(capacity.slot.into()), guest.reference().encode(), 0);
        Actor::new(self.pool(), self.slot()).finish_release(capacity);
    }

    fn not_released(&self, capacity: Reference, tag: Tag) -> Error {
        match self.pool().tables().capacity_slots().load(capacity.slot.into()) {
            Ok(SlotState::Making { host, generation } | SlotState::Unmaking { host, generation })
                if generation == capacity.generation =>
            {
                Error::CapacityBusy { tag, host }
            }
            Ok(_) | Err(_) => Error::NoCapacity { tag },
        }
    }

    /// This host owns the guest, or has created it and not published it yet.
    pub(crate) fn require_ours(&self, guest: &GuestControl, record: &GuestRecord) -> Result<()> {
        let what = || format!("ownership of guest '{}'", record.name);
        let ownership = guest.ownership().load().map_err(|bad| Error::DamagedWord { what: what(), word: bad.0 })?;
        let ours = match ownership {
            Ownership::Owned { host, .. } => host == self.slot(),
            Ownership::Vacant => record.creator == self.identity().id,
            Ownership::Offered { .. } | Ownership::Frozen { .. } | Ownership::Lost { .. } | Ownership::Taken { .. } => {
                false
            }
        };
        if ours { Ok(()) } else { Err(Error::GuestNotOurs { name: record.name.clone(), ownership }) }
    }
}

fn require_all_local(guest: &GuestControl, record: &GuestRecord) -> Result<()> {
    let map = guest.map_state()?.placement();
    for granule in 0..map.granules() {
        match map.get(granule)?.place {
            Place::Local { .. } => {}
            place @ (Place::Mixed { .. } | Place::Pooled) => {
                return Err(Error::MemoryInPool { guest: record.name.clone(), granule, place });
            }
        }
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{CreateOptions, GRANULE, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Pool};

    #[test]
    fn capacity_made_for_a_guest_that_is_destroyed_meanwhile_is_released_again() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let options = CreateOptions { size: Some(32 * GRANULE), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options).expect("a new pool");
        let identity =
            HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
        let host = pool.join(&identity).expect("membership");
        let before = pool.usage();
        let (name, home) = ("g".to_owned(), MemoryHome::Dram);
        let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes: GRANULE, home, vcpus: 1, features: 0 };
        let guest = host.create_guest(&request).expect("a guest");
        let spec = host.memory_spec(&guest).expect("it is ours");
        host.destroy_guest(&guest).expect("destroyed");
        let mut journal = host.journal().expect("its turn");
        let made = host.make_capacity(&spec, |_| {}).expect("made");
        host.commit_capacity(made, spec.tag).expect("committed");
        assert!(matches!(host.keep_for(&guest, made, &mut journal), Err(Error::GuestGone { .. })));
        assert_eq!(pool.usage(), before);
        assert!(pool.check(false).is_clean());
    }
}
