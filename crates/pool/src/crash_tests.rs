//! Every operation, stopped before every single write, then recovered; and recovery itself, stopped in the same way.

use crate::fault::armed::crash_after;
use crate::format::GRANULE;
use crate::format::guest::GuestKind;
use crate::format::host::HostKind;
use crate::recovery::Actor;
use crate::{
    AbsentPools, Access, CapacityRequest, Coherence, CreateOptions, Epoch, GuestControl, GuestRequest, HostId,
    HostIdentity, HostSlot, Membership, MemoryHome, Ownership, Place as GranulePlace, Placed, PlacementMap, Pool,
    Severity, Tag, Usage,
};
use std::path::PathBuf;
use std::time::Duration;

/// More writes than any operation makes.
const ENOUGH: usize = 20_000;

pub(crate) struct Place {
    _directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn place() -> Place {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    Place { _directory: directory, path }
}

pub(crate) fn identity(name: &str) -> HostIdentity {
    HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None }
}

pub(crate) fn shared(tag: Tag, granules: u64) -> CapacityRequest {
    CapacityRequest { label: "crash".to_owned(), ..CapacityRequest::shared(tag, granules * GRANULE) }
}

pub(crate) fn guest(name: &str, home: MemoryHome) -> GuestRequest {
    let name = name.to_owned();
    GuestRequest { name, kind: GuestKind::Vm, memory_bytes: 2 * GRANULE, home, vcpus: 1, features: 0 }
}

/// A pool with a host, a capacity of its own, and guests that it owns; what the operations work on.
pub(crate) struct Scene {
    pub(crate) pool: Pool,
    pub(crate) host: Membership,
    pub(crate) tag: Tag,
}

impl Scene {
    /// Guest "old" is in the pool; "bare" in DRAM; "kept" in DRAM, with its memory capacity; "half" on its way.
    pub(crate) fn build(place: &Place) -> Self {
        Self::build_with(place, Coherence::Hardware)
    }

    /// The same in a pool of hosts whose caches agree in this way.
    pub(crate) fn build_with(place: &Place, coherence: Coherence) -> Self {
        let _ = std::fs::remove_file(&place.path);
        let options = CreateOptions { size: Some(32 * GRANULE), coherence, ..CreateOptions::default() };
        let pool = Pool::create(&place.path, &options).expect("a new pool");
        let host = pool.join(&identity("a")).expect("membership");
        let tag = Tag::random();
        host.add_capacity(&shared(tag, 2)).expect("capacity");
        let scene = Self { pool, host, tag };
        scene.add("old", MemoryHome::Pool);
        scene.add("bare", MemoryHome::Dram);
        scene.add("kept", MemoryHome::Dram);
        scene.host.place_memory(&scene.guest("kept")).expect("placed");
        scene.add("half", MemoryHome::Pool);
        let (host, epoch) = (scene.host.slot(), Epoch(1));
        scene.map("half").put(1, Placed::cold(GranulePlace::Mixed { host, epoch }));
        scene
    }

    fn add(&self, name: &str, home: MemoryHome) {
        let owned = self.host.create_guest(&guest(name, home)).expect("a guest");
        owned.publish(self.host.slot()).expect("published");
    }

    pub(crate) fn guest(&self, name: &str) -> GuestControl {
        let info = self.pool.find_guest(name).expect("the guest");
        self.pool.guest(info.slot, info.id).expect("the guest")
    }

    pub(crate) fn map(&self, name: &str) -> PlacementMap {
        self.guest(name).map_state().expect("its state").placement()
    }

    pub(crate) fn destroy(&self) {
        self.host.destroy_guest(&self.guest("old")).expect("destroyed");
    }

    pub(crate) fn destroy_half(&self) {
        self.host.destroy_guest(&self.guest("half")).expect("destroyed");
    }

    /// Takes the memory of a guest away that is lost.
    pub(crate) fn take(&self) {
        let guest = self.guest("old");
        if let Ok(word @ Ownership::Owned { host, epoch }) = guest.ownership().load() {
            assert!(guest.ownership().transition(word, Ownership::Lost { host, epoch }));
        }
        let tag = guest.config().expect("its record").memory;
        let taken = self.host.force_release(tag, &[], AbsentPools::Refuse, Duration::ZERO).expect("taken");
        assert_eq!(taken.guest.as_deref(), Some("old"));
    }

    pub(crate) fn place(&self) {
        self.host.place_memory(&self.guest("bare")).expect("placed");
    }

    pub(crate) fn unplace(&self) {
        self.host.unplace_memory(&self.guest("kept")).expect("released");
    }
}

/// What a pool holds, without what differs from run to run. The usage counts slots that are half made, too.
pub(crate) fn contents(pool: &Pool) -> (Usage, Vec<u64>, Vec<String>) {
    let mut capacities: Vec<u64> = pool.capacities().iter().map(|capacity| capacity.bytes).collect();
    capacities.sort_unstable();
    let mut guests: Vec<String> = pool.bare_guests().map(|guest| guest.name).collect();
    guests.sort();
    (pool.usage(), capacities, guests)
}

fn assert_sound(pool: &Pool, when: &str) {
    let report = pool.check(false);
    let wrong: Vec<_> = report.findings.iter().filter(|finding| finding.severity != Severity::Note).collect();
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
    let left: Vec<_> = report.findings.iter().filter(|finding| finding.what.contains("left behind")).collect();
    assert!(left.is_empty(), "{when}: {left:#?}");
}

/// Stops `operation` before each of its writes, recovers, and demands the state before it or the state after it.
fn crash_everywhere(operation: impl Fn(&Scene)) {
    let place = place();
    let scene = Scene::build(&place);
    let before = contents(&scene.pool);
    operation(&scene);
    let after = contents(&scene.pool);
    assert_ne!(before, after, "the operation does something");
    drop(scene);
    let mut outcomes = [0; 2];
    for writes in 0..ENOUGH {
        let scene = Scene::build(&place);
        if crash_after(writes, || operation(&scene)).is_some() {
            assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
            return;
        }
        recover_stopping_everywhere(&scene, writes);
        let found = contents(&scene.pool);
        let when = format!("stopped before write {writes}");
        assert_sound(&scene.pool, &when);
        assert!(found == before || found == after, "{when}: {found:?} is neither {before:?} nor {after:?}");
        outcomes[usize::from(found == after)] += 1;
    }
    panic!("the operation makes more than {ENOUGH} writes");
}

/// Recovery that dies before its first write, is begun anew and dies before its second, and so on to its end.
fn recover_stopping_everywhere(scene: &Scene, writes: usize) {
    let recover = || Actor::new(&scene.pool, scene.host.slot()).recover();
    for recovery_writes in 0..ENOUGH {
        if crash_after(recovery_writes, recover).is_some() {
            let again = recover();
            assert!(again.is_nothing(), "after write {writes}, recovery found more to do: {again:?}");
            return;
        }
    }
    panic!("recovery makes more than {ENOUGH} writes");
}

#[test]
fn a_crash_anywhere_in_adding_capacity_leaves_all_of_it_or_nothing() {
    crash_everywhere(|scene| {
        scene.host.add_capacity(&shared(Tag::random(), 3)).expect("capacity");
    });
}

#[test]
fn a_crash_anywhere_in_releasing_capacity_leaves_all_of_it_or_nothing() {
    crash_everywhere(|scene| scene.host.release_capacity(scene.tag).expect("released"));
}

#[test]
fn a_crash_anywhere_in_creating_a_guest_leaves_all_of_it_or_nothing() {
    crash_everywhere(|scene| {
        scene.host.create_guest(&guest("new", MemoryHome::Pool)).expect("a guest");
    });
}

#[test]
fn a_crash_anywhere_in_creating_a_guest_in_dram_leaves_all_of_it_or_nothing() {
    crash_everywhere(|scene| {
        scene.host.create_guest(&guest("new", MemoryHome::Dram)).expect("a guest");
    });
}

#[test]
fn a_crash_anywhere_in_making_a_twin_leaves_it_without_room_for_memory_at_most() {
    let (here, there) = (place(), place());
    let options = CreateOptions { size: Some(32 * GRANULE), ..CreateOptions::default() };
    let elsewhere = Pool::create(&there.path, &options).expect("a new pool").join(&identity("e")).expect("membership");
    let first = elsewhere.create_guest(&guest("comer", MemoryHome::Dram)).expect("a guest");
    for writes in 0..ENOUGH {
        let scene = Scene::build(&here);
        let before = contents(&scene.pool);
        if crash_after(writes, || scene.host.create_twin(&first).expect("a twin")).is_some() {
            return;
        }
        recover_stopping_everywhere(&scene, writes);
        let when = format!("stopped before write {writes}");
        assert_sound(&scene.pool, &when);
        // Its agent takes away a record that nobody has published.
        if let Some(left) = scene.pool.find_guest("comer") {
            let left = scene.pool.guest(left.slot, left.id).expect("the twin");
            scene.host.discard_twin(&left).expect("taken away");
        }
        assert_eq!(contents(&scene.pool), before, "{when}");
    }
    panic!("making a twin makes more than {ENOUGH} writes");
}

#[test]
fn a_crash_anywhere_in_destroying_a_guest_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::destroy);
}

#[test]
fn a_crash_anywhere_in_destroying_a_guest_on_its_way_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::destroy_half);
}

#[test]
fn a_crash_anywhere_in_taking_memory_away_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::take);
}

#[test]
fn a_crash_anywhere_in_placing_memory_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::place);
}

#[test]
fn a_crash_anywhere_in_unplacing_memory_leaves_all_of_it_or_nothing() {
    crash_everywhere(Scene::unplace);
}

#[test]
fn a_crash_anywhere_in_a_change_of_placement_never_leaves_the_count_too_low() {
    let place = place();
    let scene = Scene::build(&place);
    let map = scene.map("old");
    let local = Placed::cold(GranulePlace::Local { host: scene.host.slot(), epoch: Epoch(1) });
    let pooled = Placed::cold(GranulePlace::Pooled);
    for placed in [local, pooled] {
        for writes in 0.. {
            let finished = crash_after(writes, || map.put(0, placed)).is_some();
            assert!(map.away() >= map.summary().away(), "{placed:?}, stopped before write {writes}");
            map.recount();
            assert_eq!(map.away(), map.summary().away());
            if finished {
                break;
            }
        }
        assert_eq!(map.get(0), Ok(placed));
    }
    assert_eq!(map.away(), 0);
}

#[test]
fn check_mends_what_any_crash_leaves_behind() {
    let place = place();
    let operations: [fn(&Scene); 9] = [
        |scene| drop(scene.host.add_capacity(&shared(Tag::random(), 3))),
        |scene| drop(scene.host.release_capacity(scene.tag)),
        |scene| drop(scene.host.create_guest(&guest("new", MemoryHome::Pool))),
        |scene| drop(scene.host.create_guest(&guest("new", MemoryHome::Dram))),
        Scene::destroy,
        Scene::destroy_half,
        Scene::take,
        Scene::place,
        Scene::unplace,
    ];
    for operation in operations {
        for writes in (0..ENOUGH).step_by(7) {
            let scene = Scene::build(&place);
            if crash_after(writes, || operation(&scene)).is_some() {
                break;
            }
            kill(&scene);
            let report = scene.pool.check(true);
            assert!(report.is_clean(), "stopped before write {writes}: {report:#?}");
            assert_sound(&scene.pool, "after the repair");
        }
    }
}

/// Makes the host's entry that of a process that is gone, as if this process had been killed and its id given away.
fn kill(scene: &Scene) {
    let (tables, slot) = (scene.pool.tables(), scene.host.slot());
    let crate::tables::Seen::Used(_, Ok(mut record)) = tables.host(slot) else { panic!("the host is there") };
    record.started += 1;
    tables.write_host(slot, &record);
    let dead = crate::liveness::ProcessIdentity { kernel: record.kernel, started: record.started, pid: record.pid };
    tables.host_claim(slot).store(dead.claim_word(), crate::sync::Ordering::Release);
}

#[test]
fn a_host_that_returns_retakes_its_slot_and_settles_its_work() {
    let place = place();
    let mut retaken = 0;
    for writes in (0..ENOUGH).step_by(5) {
        let scene = Scene::build(&place);
        let ended = crash_after(writes, || scene.host.create_guest(&guest("new", MemoryHome::Pool))).is_some();
        kill(&scene);
        let returned = scene.pool.join(scene.host.identity()).expect("the host is taken back");
        assert_eq!((returned.slot(), returned.epoch()), (scene.host.slot(), Epoch(2)));
        assert!(scene.host.is_fenced());
        assert_sound(&scene.pool, "after its return");
        returned.beat();
        retaken += 1;
        if ended {
            break;
        }
    }
    assert!(retaken > 20);
}

#[test]
fn a_crash_anywhere_in_joining_leaves_the_slot_to_the_next() {
    let place = place();
    let scene = Scene::build(&place);
    let newcomer = identity("b");
    for writes in 0..ENOUGH {
        let joined = crash_after(writes, || scene.pool.join(&newcomer));
        let slot = HostSlot::new(1).expect("a slot");
        let Some(joined) = joined else {
            // The process that was joining is this one; make its claim that of a dead one.
            let claim = scene.pool.tables().host_claim(slot);
            if claim.load(crate::sync::Ordering::Acquire) != 0 {
                let dead = crate::liveness::ProcessIdentity {
                    started: scene.pool.inner.here.started + 1,
                    ..scene.pool.inner.here
                };
                claim.store(dead.claim_word(), crate::sync::Ordering::Release);
            }
            assert_sound(&scene.pool, "a host died while joining");
            continue;
        };
        assert_eq!(joined.expect("membership").slot(), slot);
        return;
    }
    panic!("joining makes more than {ENOUGH} writes");
}

#[test]
fn a_crash_anywhere_in_formatting_leaves_no_pool_or_a_sound_one() {
    let place = place();
    let options = CreateOptions { size: Some(4 * GRANULE), force: true, ..CreateOptions::default() };
    Pool::create(&place.path, &options).expect("a new pool");
    for writes in 0..ENOUGH {
        let finished = crash_after(writes, || Pool::create(&place.path, &options)).is_some();
        if let Ok(pool) = Pool::open(&place.path, Access::ReadWrite) {
            assert!(pool.check(true).is_clean(), "stopped before write {writes}");
        }
        if finished {
            return;
        }
    }
    panic!("formatting makes more than {ENOUGH} writes");
}
