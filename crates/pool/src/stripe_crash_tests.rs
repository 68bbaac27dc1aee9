//! Adding and releasing striped capacity, stopped before every single write in any of its pools; then recovery in each
//! pool and the reaping of orphans, which are stopped in the same way.

use crate::crash_tests::shared;
use crate::fault::armed::crash_after;
use crate::format::GRANULE;
use crate::format::host::HostKind;
use crate::liveness::ProcessIdentity;
use crate::recovery::Actor;
use crate::sync::Ordering;
use crate::tables::Seen;
use crate::{
    AbsentPools, CreateOptions, GuestKind, GuestRequest, HostId, HostIdentity, LegRequest, Membership, MemoryHome,
    Pool, Severity, StripeRequest, Tag, Usage, reap_orphan_legs,
};

/// More writes than any operation makes.
const ENOUGH: usize = 20_000;

/// A home pool and another one, a striped capacity over both, and a guest that has its memory striped over both.
pub(crate) struct Scene {
    _directory: tempfile::TempDir,
    pub(crate) home: Membership,
    pub(crate) other: Membership,
    tag: Tag,
}

pub(crate) fn member(pool: &Pool, name: &str) -> Membership {
    let identity = HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None };
    pool.join(&identity).expect("membership")
}

impl Scene {
    pub(crate) fn build() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let [home, other] = ["home", "other"].map(|name| {
            let options = CreateOptions { size: Some(16 * GRANULE), ..CreateOptions::default() };
            member(&Pool::create(&directory.path().join(name), &options).expect("a new pool"), "a")
        });
        let scene = Self { _directory: directory, home, other, tag: Tag::random() };
        scene.add(scene.tag);
        let (name, kind) = ("old".to_owned(), GuestKind::Vm);
        let guest =
            GuestRequest { name, kind, memory_bytes: 2 * GRANULE, home: MemoryHome::Dram, vcpus: 1, features: 0 };
        let guest = scene.home.create_guest(&guest).expect("a guest");
        guest.publish(scene.home.slot()).expect("published");
        scene.home.place_memory_striped(&guest, &scene.stripe(), &[&scene.other]).expect("placed");
        scene
    }

    fn stripe(&self) -> StripeRequest {
        let leg = |member: &Membership| LegRequest { pool: member.pool().id(), weight: 1 };
        StripeRequest { granularity: GRANULE, legs: vec![leg(&self.home), leg(&self.other)] }
    }

    pub(crate) fn add(&self, tag: Tag) {
        self.home.add_striped_capacity(&shared(tag, 3), &self.stripe(), &[&self.other]).expect("a striped capacity");
    }

    pub(crate) fn release(&self) {
        self.home.release_capacity_with(self.tag, &[&self.other], AbsentPools::Refuse).expect("released");
    }

    pub(crate) fn destroy(&self) {
        let info = self.home.pool().find_guest("old").expect("the guest");
        let guest = self.home.pool().guest(info.slot, info.id).expect("the guest");
        self.home.destroy_guest(&guest).expect("destroyed");
    }

    pub(crate) fn pools(&self) -> [&Pool; 2] {
        [self.home.pool(), self.other.pool()]
    }

    /// What both pools hold, apart from the hosts.
    pub(crate) fn contents(&self) -> [(Usage, Vec<u64>); 2] {
        self.pools().map(|pool| {
            let mut capacities: Vec<u64> = pool.capacities().iter().map(|capacity| capacity.bytes).collect();
            capacities.sort_unstable();
            (Usage { hosts: 0, ..pool.usage() }, capacities)
        })
    }

    /// Makes the host that of a process that is gone, in both pools.
    pub(crate) fn kill(&self) {
        for member in [&self.home, &self.other] {
            let (tables, slot) = (member.pool().tables(), member.slot());
            let Seen::Used(_, Ok(mut record)) = tables.host(slot) else { panic!("the host is there") };
            record.started += 1;
            tables.write_host(slot, &record);
            let dead = ProcessIdentity { kernel: record.kernel, started: record.started, pid: record.pid };
            tables.host_claim(slot).store(dead.claim_word(), Ordering::Release);
        }
    }

    /// What another host does about the dead one.
    pub(crate) fn settle(&self, peers: &[&Membership; 2]) {
        for (pool, slot) in self.pools().into_iter().zip([self.home.slot(), self.other.slot()]) {
            Actor::new(pool, slot).recover();
        }
        reap_orphan_legs(peers).expect("looked");
    }

    /// Settles with a stop before the first write, then before the second, and so on to the end.
    fn settle_stopping_everywhere(&self) {
        let peers = self.pools().map(|pool| member(pool, "peer"));
        let peers = peers.each_ref();
        for writes in 0..ENOUGH {
            if crash_after(writes, || self.settle(&peers)).is_some() {
                assert_eq!(reap_orphan_legs(&peers).expect("looked"), [], "all orphans were found");
                return;
            }
            // The peer that was stopped died; the next one settles its work, too.
            for peer in peers {
                Actor::new(peer.pool(), peer.slot()).recover();
            }
        }
        panic!("settling makes more than {ENOUGH} writes");
    }

    pub(crate) fn assert_sound(&self, when: &str) {
        for pool in self.pools() {
            let report = pool.check(false);
            let wrong = report.findings.iter().filter(|finding| finding.severity != Severity::Note);
            let wrong: Vec<_> = wrong.filter(|finding| !finding.what.contains("host")).collect();
            assert!(wrong.is_empty(), "{when}: {wrong:#?}");
        }
    }
}

/// Stops `operation` before each of its writes, settles, and demands the state before it or the state after it.
fn crash_everywhere(operation: impl Fn(&Scene)) {
    let scene = Scene::build();
    let before = scene.contents();
    operation(&scene);
    reap_orphan_legs(&[&scene.home, &scene.other]).expect("looked");
    let after = scene.contents();
    assert_ne!(before, after, "the operation does something");
    let mut outcomes = [0; 2];
    for writes in 0..ENOUGH {
        let scene = Scene::build();
        if crash_after(writes, || operation(&scene)).is_some() {
            assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
            return;
        }
        scene.kill();
        scene.settle_stopping_everywhere();
        let (found, when) = (scene.contents(), format!("stopped before write {writes}"));
        scene.assert_sound(&when);
        assert!(found == before || found == after, "{when}: {found:?} is neither {before:?} nor {after:?}");
        outcomes[usize::from(found == after)] += 1;
    }
    panic!("the operation makes more than {ENOUGH} writes");
}

#[test]
fn a_crash_anywhere_in_adding_a_striped_capacity_leaves_all_of_it_or_nothing() {
    crash_everywhere(|scene| scene.add(Tag::random()));
}

#[test]
fn a_crash_anywhere_in_releasing_a_striped_capacity_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::release);
}

#[test]
fn a_crash_anywhere_in_destroying_a_guest_with_striped_memory_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::destroy);
}

#[test]
fn legs_whose_whole_is_being_made_are_not_reaped() {
    let mut spared = 0;
    for writes in 0..ENOUGH {
        let scene = Scene::build();
        let ended = crash_after(writes, || scene.add(Tag::random())).is_some();
        // The maker is stopped, but alive: it might go on.
        let legs = scene.other.pool().capacities().len();
        assert_eq!(reap_orphan_legs(&[&scene.home, &scene.other]).expect("looked"), [], "before write {writes}");
        assert_eq!(scene.other.pool().capacities().len(), legs);
        spared += usize::from(legs == 3 && scene.home.pool().capacities().len() < 7);
        if ended {
            assert!(spared > 5, "{spared}");
            return;
        }
    }
    panic!("adding makes more than {ENOUGH} writes");
}
