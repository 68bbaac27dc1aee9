//! A guest's second record, in another pool, while its home moves there.
//!
//! ```text
//!                create_twin               publish_twin                    destroy_guest of the first
//! one record ───────────────▶ twin Vacant ──────────────▶ both Owned by us ─────────────────────────▶ one record
//!                             the first counts            the twin counts
//! ```
//!
//! Both records carry the same id, name, shape and time of creation. **Which one counts** is never in doubt: a twin that is
//! Vacant does not, and one that has an owner does, because it was published at an epoch later than the other's. So the
//! publication, one compare-and-swap, is the moment in which the guest changes its home. The tags of its capacities are
//! others: a tag names bytes, and for a while there are two of each.

use crate::control::GuestControl;
use crate::error::{Error, Result};
use crate::guests::{Founding, GuestRequest};
use crate::ids::HostId;
use crate::membership::Membership;
use crate::memory::MemoryHome;
use crate::ownership::{Epoch, HostSlot, Ownership};

impl Membership {
    /// Makes a second record in this pool for a guest of another one: its state area, and room for its memory, all of
    /// which is in this host's DRAM as far as this record goes, for the same hosts. Nobody owns it before [`GuestControl::publish_twin`], and
    /// while that is so [`Membership::discard_twin`] takes it away.
    ///
    /// # Errors
    /// [`Error::GuestExists`] when this pool has a guest of that name, be it the same one; [`Error::NoRoom`] and whatever
    /// else keeps a guest from being created. Then nothing is left of it.
    pub fn create_twin(&self, first: &GuestControl) -> Result<GuestControl> {
        self.require_coherent("moving a guest's home")?;
        first.pool().require_coherent("moving a guest's home")?;
        let config = first.config()?;
        let request = GuestRequest {
            name: config.name,
            kind: config.kind,
            memory_bytes: config.memory_bytes,
            home: MemoryHome::Dram,
            vcpus: config.vcpus,
            features: config.features,
        };
        let access = first.access()?;
        let founding = Founding { request: &request, access: &access, id: first.id(), created: config.created };
        let twin = self.make_guest(&founding)?;
        if let Err(error) = self.place_memory(&twin) {
            // Whoever recovers this host takes away what cannot be taken away now.
            let _ = self.discard_twin(&twin);
            return Err(error);
        }
        Ok(twin)
    }

    /// Takes away a twin that nobody has published. Of this and a publication at the same time one wins.
    ///
    /// # Errors
    /// [`Error::GuestNotOurs`] when it has been published; [`Error::GuestGone`].
    pub fn discard_twin(&self, twin: &GuestControl) -> Result<()> {
        self.destroy_guest_while(twin, Ownership::Vacant)
    }
}

impl GuestControl {
    /// The hosts that may attach the guest's memory; all, if there are none.
    fn access(&self) -> Result<Vec<HostId>> {
        let state = self.record()?.state;
        let capacity = self.pool().capacity_by_tag(state).ok_or(Error::NoCapacity { tag: state })?;
        Ok(self.pool().tables().capacity_of(capacity).map_or_else(Vec::new, |record| record.access))
    }

    /// Makes `owner`, who owns the guest by its record in another pool at epoch `earlier`, its owner by this one, at the
    /// epoch after that. Returns that epoch.
    ///
    /// # Errors
    /// [`Error::GuestNotOurs`] when this record has an owner already; [`Error::GuestGone`] when it was destroyed
    /// meanwhile; [`Error::UsedUp`] when there is no later epoch.
    pub fn publish_twin(&self, owner: HostSlot, earlier: Epoch) -> Result<Epoch> {
        let epoch = earlier.next().ok_or_else(|| Error::UsedUp { what: format!("guest {}", self.id()) })?;
        self.publish_at(owner, epoch).map(|_: Ownership| epoch)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{
        CreateOptions, GRANULE, GuestKind, HostIdentity, HostKind, Pool, Section, Sections, StateArea, decode,
    };

    struct Scene {
        _directory: tempfile::TempDir,
        first: Membership,
        second: Membership,
    }

    type Held = (u16, u16, u32, Vec<u8>);

    fn scene() -> Scene {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let identity =
            HostIdentity { id: HostId::random(), name: "h".to_owned(), kind: HostKind::Agent, address: None };
        let join = |name: &str| {
            let options = CreateOptions { size: Some(32 * GRANULE), ..CreateOptions::default() };
            let pool = Pool::create(&directory.path().join(name), &options).expect("a new pool");
            pool.join(&identity).expect("membership")
        };
        let (first, second) = (join("first"), join("second"));
        Scene { _directory: directory, first, second }
    }

    fn request() -> GuestRequest {
        let (name, home) = ("g".to_owned(), MemoryHome::Dram);
        GuestRequest { name, kind: GuestKind::Vm, memory_bytes: 2 * GRANULE, home, vcpus: 2, features: 5 }
    }

    fn guest(membership: &Membership) -> GuestControl {
        let guest = membership.create_guest(&request()).expect("a guest");
        guest.publish(membership.slot()).expect("published");
        guest
    }

    fn write(state: &StateArea, epoch: Epoch, payload: &[u8]) {
        for area in [state.machine(epoch.slot()), state.vcpu(epoch.slot(), 0), state.vcpu(epoch.slot(), 1)] {
            let mut out = area.writer(epoch);
            out.put(7, 3, 1, payload).expect("there is room");
            out.finish();
        }
    }

    fn write_config(state: &StateArea) {
        let area = state.config();
        let mut out = area.writer(Epoch(0));
        out.put(9, 1, 0, b"configuration").expect("there is room");
        out.finish();
    }

    /// What an area holds of an epoch: kind, version, instance and payload of each section.
    fn sections(area: &crate::Area, epoch: Epoch) -> Option<Vec<Held>> {
        let mut copy = Vec::new();
        area.read_into(&mut copy).ok()?;
        let whole = |section: Section<'_>| (section.kind, section.version, section.instance, section.payload.to_vec());
        decode(&copy, epoch).ok().map(|sections: Sections<'_>| sections.iter().map(whole).collect())
    }

    #[test]
    fn a_twin_is_the_same_guest_with_capacities_of_its_own() {
        let scene = scene();
        let first = guest(&scene.first);
        let twin = scene.second.create_twin(&first).expect("a twin");
        let (one, other) = (first.config().expect("a record"), twin.config().expect("a record"));
        assert_eq!(twin.id(), first.id());
        assert_eq!((&one.name, one.created, one.features), (&other.name, other.created, other.features));
        assert_eq!((one.memory_bytes, one.vcpus), (other.memory_bytes, other.vcpus));
        assert_ne!(one.memory, other.memory);
        assert!(twin.is_placed());
        assert_eq!(twin.ownership().load(), Ok(Ownership::Vacant));
        assert_eq!(twin.map_state().expect("its state").placement().away(), 2);
    }

    #[test]
    fn a_twin_is_for_the_same_hosts() {
        let scene = scene();
        let access = [scene.first.identity().id, HostId::random()];
        let first = scene.first.create_guest_for(&request(), &access).expect("a guest");
        first.publish(scene.first.slot()).expect("published");
        let twin = scene.second.create_twin(&first).expect("a twin");
        assert_eq!(twin.access().expect("a list"), access);
        let memory = twin.config().expect("a record").memory;
        assert_eq!(scene.second.pool().find_capacity(memory).expect("its memory").access, access);
    }

    #[test]
    fn a_twin_is_published_at_the_epoch_after_the_firsts() {
        let scene = scene();
        let first = guest(&scene.first);
        let twin = scene.second.create_twin(&first).expect("a twin");
        let epoch = twin.publish_twin(scene.second.slot(), Epoch(7)).expect("published");
        let owned = Ownership::Owned { host: scene.second.slot(), epoch: Epoch(8) };
        assert_eq!((epoch, twin.ownership().load()), (Epoch(8), Ok(owned)));
        twin.publish_twin(scene.second.slot(), Epoch(8)).expect_err("it has an owner");
        scene.second.discard_twin(&twin).expect_err("it counts now");
        scene.first.destroy_guest(&first).expect("the first is not needed any more");
        assert!(scene.first.pool().guests().is_empty());
        for pool in [scene.first.pool(), scene.second.pool()] {
            assert!(pool.check(false).is_clean(), "{:#?}", pool.check(false));
        }
    }

    #[test]
    fn a_twin_that_nobody_has_published_is_taken_away_without_a_trace() {
        let scene = scene();
        let before = scene.second.pool().usage();
        let twin = scene.second.create_twin(&guest(&scene.first)).expect("a twin");
        scene.second.discard_twin(&twin).expect("taken away");
        assert_eq!(scene.second.pool().usage(), before);
        let gone = twin.publish_twin(scene.second.slot(), Epoch(1));
        assert!(matches!(gone, Err(Error::GuestGone { .. })), "{gone:?}");
        assert_eq!(twin.ownership().load(), Ok(Ownership::Vacant));
    }

    #[test]
    fn a_pool_without_room_for_the_memory_keeps_nothing_of_a_twin() {
        let scene = scene();
        let first = guest(&scene.first);
        let pool = scene.second.pool();
        // One granule for the state, none for the memory.
        let hog = crate::CapacityRequest::shared(crate::Tag::random(), pool.usage().free - GRANULE);
        scene.second.add_capacity(&hog).expect("room");
        let before = pool.usage();
        let full = scene.second.create_twin(&first);
        assert!(matches!(full, Err(Error::NoRoom { .. })), "{full:?}");
        assert_eq!(pool.usage(), before);
    }

    #[test]
    fn a_second_guest_of_that_name_is_refused() {
        let scene = scene();
        let first = guest(&scene.first);
        guest(&scene.second);
        assert!(matches!(scene.second.create_twin(&first), Err(Error::GuestExists { .. })));
    }

    #[test]
    fn a_twin_inherits_the_configuration_and_the_state_of_the_last_landing() {
        let scene = scene();
        let first = guest(&scene.first);
        let twin = scene.second.create_twin(&first).expect("a twin");
        let (old, new) = (first.map_state().expect("state"), twin.map_state().expect("state"));
        write_config(&old);
        write(&old, Epoch(4), b"as it landed");
        new.inherit(&old, Epoch(4), Epoch(5)).expect("inherited");
        assert_eq!(sections(&new.config(), Epoch(0)), sections(&old.config(), Epoch(0)));
        let landed = Some(vec![(7, 3, 1, b"as it landed".to_vec())]);
        for area in [new.machine(1), new.vcpu(1, 0), new.vcpu(1, 1)] {
            assert_eq!(sections(&area, Epoch(5)), landed);
        }
    }

    #[test]
    fn what_is_not_whole_is_not_inherited() {
        let scene = scene();
        let first = guest(&scene.first);
        let twin = scene.second.create_twin(&first).expect("a twin");
        let (old, new) = (first.map_state().expect("state"), twin.map_state().expect("state"));
        new.inherit(&old, Epoch(4), Epoch(5)).expect_err("there is no configuration");
        write_config(&old);
        write(&old, Epoch(2), b"of another landing");
        new.inherit(&old, Epoch(4), Epoch(5)).expect("the rest is not needed");
        assert_eq!(sections(&new.vcpu(1, 0), Epoch(5)), None);
    }
}
