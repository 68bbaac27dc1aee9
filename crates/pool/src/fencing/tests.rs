//! Fencing a host, as its peers and its own processes see it.

use super::*;
use crate::{CreateOptions, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, MemoryHome};
use tempfile::TempDir;

struct Scene {
    _folder: TempDir,
    pool: Pool,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("pool");
        let options = CreateOptions { size: Some(16 << 20), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a pool");
        Self { _folder: folder, pool }
    }

    fn join(&self, name: &str) -> Membership {
        self.rejoin(name, HostId::random())
    }

    fn rejoin(&self, name: &str, id: HostId) -> Membership {
        let identity = HostIdentity { id, name: name.to_owned(), kind: HostKind::Agent, address: None };
        self.pool.join(&identity).expect("it joins")
    }

    /// Makes the host's entry that of a process that is gone, as if it had been killed and its id given away.
    fn die(&self, host: &Membership) {
        let (tables, slot) = (self.pool.tables(), host.slot());
        let Seen::Used(_, Ok(mut record)) = tables.host(slot) else { panic!("the host is there") };
        record.started += 1;
        tables.write_host(slot, &record);
        let dead = crate::liveness::ProcessIdentity { kernel: record.kernel, started: record.started, pid: record.pid };
        tables.host_claim(slot).store(dead.claim_word(), Ordering::Release);
    }
}

fn fence_of(scene: &Scene, host: &Membership) -> Fence {
    scene.pool.life(host.slot()).expect("a life").fence
}

#[test]
fn a_process_holds_until_its_host_is_declared_dead() {
    let scene = Scene::new();
    let (victim, peer) = (scene.join("victim"), scene.join("peer"));
    let worker = victim.tether().expect("a tie");
    let before = scene.pool.life(victim.slot()).expect("a life").lease;
    assert!(worker.beat());
    assert_eq!(scene.pool.life(victim.slot()).expect("a life").lease, before + 1);
    peer.declare_dead(victim.slot(), victim.epoch()).expect("nobody was first");
    assert!(!worker.holds() && !worker.beat() && victim.is_fenced());
    assert_eq!(scene.pool.life(victim.slot()).expect("a life").lease, before + 1, "the dead do not beat");
    assert!(matches!(victim.tether(), Err(Error::Fenced)));
}

#[test]
fn one_of_two_peers_is_the_fencer_and_its_end_is_seen_by_all() {
    let scene = Scene::new();
    let (victim, a, b) = (scene.join("victim"), scene.join("a"), scene.join("b"));
    let (slot, life) = (victim.slot(), victim.epoch());
    assert_eq!(fence_of(&scene, &victim), Fence::Standing);
    a.declare_dead(slot, life).expect("a is first");
    assert!(matches!(b.declare_dead(slot, life), Err(Error::HostNotDead { .. })));
    assert_eq!(fence_of(&scene, &victim), Fence::Declared);
    a.begin_fencing(slot, life, None).expect("it was declared dead");
    assert!(matches!(b.begin_fencing(slot, life, None), Err(Error::HostNotDead { .. })));
    assert!(matches!(b.finish_fencing(slot, life), Err(Error::HostNotDead { .. })));
    assert_eq!(fence_of(&scene, &victim), Fence::Fencing);
    a.finish_fencing(slot, life).expect("it is the fencer");
    let seen = scene.pool.life(slot).expect("a life");
    assert_eq!((seen.epoch, seen.fence, seen.fencer), (life, Fence::Fenced, Some(a.slot())));
}

#[test]
fn whoever_dies_while_it_fences_is_replaced() {
    let scene = Scene::new();
    let (victim, a, b) = (scene.join("victim"), scene.join("a"), scene.join("b"));
    let (slot, life) = (victim.slot(), victim.epoch());
    a.declare_dead(slot, life).expect("a is first");
    a.begin_fencing(slot, life, None).expect("it begins");
    assert!(b.begin_fencing(slot, life, Some(victim.slot())).is_err(), "that is not who fences it");
    b.begin_fencing(slot, life, Some(a.slot())).expect("b knows that a is dead");
    assert!(a.finish_fencing(slot, life).is_err(), "a has been replaced");
    b.finish_fencing(slot, life).expect("it is the fencer");
    assert_eq!(fence_of(&scene, &victim), Fence::Fenced);
}

#[test]
fn whoever_dies_before_it_says_that_it_fences_is_replaced() {
    let scene = Scene::new();
    let (victim, a, b) = (scene.join("victim"), scene.join("a"), scene.join("b"));
    let (slot, life) = (victim.slot(), victim.epoch());
    a.declare_dead(slot, life).expect("a is first");
    b.begin_fencing(slot, life, None).expect("anybody may go on");
    assert!(a.begin_fencing(slot, life, None).is_err());
    b.finish_fencing(slot, life).expect("it is the fencer");
}

#[test]
fn a_returning_agent_keeps_its_workers_and_a_fenced_one_does_not() {
    let scene = Scene::new();
    let (id, peer) = (HostId::random(), scene.join("peer"));
    let first = scene.rejoin("victim", id);
    let worker = first.tether().expect("a tie");
    let life = first.epoch();
    scene.die(&first);
    let second = scene.rejoin("victim", id);
    assert_ne!(second.epoch(), life);
    assert!(worker.beat(), "its agent has only returned");
    assert!(peer.declare_dead(second.slot(), life).is_err(), "that was an earlier life");
    let late = second.tether().expect("a tie");
    peer.declare_dead(second.slot(), second.epoch()).expect("it is first");
    peer.begin_fencing(second.slot(), second.epoch(), None).expect("it begins");
    peer.finish_fencing(second.slot(), second.epoch()).expect("it ends");
    scene.die(&second);
    let third = scene.rejoin("victim", id);
    assert_eq!(fence_of(&scene, &third), Fence::Standing, "a new life");
    assert!(!worker.holds() && !late.holds(), "whoever slept through the fencing finds out");
    assert!(third.tether().expect("a tie").beat());
}

#[test]
fn a_slot_that_another_host_has_is_nobody_elses() {
    let scene = Scene::new();
    let victim = scene.join("victim");
    let (worker, slot) = (victim.tether().expect("a tie"), victim.slot());
    victim.leave().expect("it leaves");
    assert!(!worker.holds());
    let other = scene.join("other");
    assert_eq!(other.slot(), slot);
    let lease = scene.pool.life(slot).expect("a life").lease;
    assert!(!worker.beat());
    assert_eq!(scene.pool.life(slot).expect("a life").lease, lease, "nobody beats for another host");
}

#[test]
fn terms_are_of_one_life_and_do_not_get_shorter_under_a_guest() {
    let scene = Scene::new();
    let id = HostId::random();
    let (slow, quick) = (LeaseTerms::new(100, 5000), LeaseTerms::new(10, 50));
    let (slow, quick) = (slow.expect("good terms"), quick.expect("good terms"));
    let first = scene.rejoin("a", id);
    assert_eq!(scene.pool.life(first.slot()).expect("a life").terms, None, "it has not said");
    assert_eq!(first.announce_lease(slow).expect("it says"), slow);
    assert_eq!(first.tether().expect("a tie").terms(), slow);
    let request = GuestRequest {
        name: "g".to_owned(),
        kind: GuestKind::Vm,
        memory_bytes: 2 << 20,
        home: MemoryHome::Dram,
        vcpus: 1,
        features: 0,
    };
    let guest = first.create_guest(&request).expect("a guest");
    guest.publish(first.slot()).expect("it is ours");
    scene.die(&first);
    let second = scene.rejoin("a", id);
    assert_eq!(scene.pool.life(second.slot()).expect("a life").terms, None, "another life");
    let held = second.announce_lease(quick).expect("it says");
    assert_eq!((held.interval_ms(), held.expiry_ms()), (10, 5000));
    second.destroy_guest(&guest).expect("it goes");
    assert_eq!(second.announce_lease(quick).expect("it says"), quick);
}

#[test]
fn a_process_that_lives_is_not_dead_for_sure() {
    let scene = Scene::new();
    let (victim, peer) = (scene.join("victim"), scene.join("peer"));
    assert!(!peer.pool().is_dead_for_sure(victim.slot()), "it says nothing of its processes");
    victim.announce_presence().expect("it says that it is there");
    assert!(!peer.pool().is_dead_for_sure(victim.slot()), "its process lives");
}

#[test]
fn a_host_of_which_nobody_is_left_is_dead_for_sure() {
    let scene = Scene::new();
    let peer = scene.join("peer");
    // Its own file description, as a process of its own has.
    let opened = || Pool::open(scene.pool.path(), crate::Access::ReadWrite).expect("it opens");
    let (agents, workers) = (opened(), opened());
    let identity =
        HostIdentity { id: HostId::random(), name: "victim".to_owned(), kind: HostKind::Agent, address: None };
    let victim = agents.join(&identity).expect("it joins");
    let slot = victim.slot();
    assert!(workers.show_presence(slot).expect("it is there"));
    victim.announce_presence().expect("it says that it is there");
    scene.die(&victim);
    drop((victim, agents));
    assert!(!peer.pool().is_dead_for_sure(slot), "a worker is left");
    drop(workers);
    assert!(peer.pool().is_dead_for_sure(slot));
}

#[test]
fn nobody_fences_itself_and_the_fenced_fence_nobody() {
    let scene = Scene::new();
    let (victim, peer) = (scene.join("victim"), scene.join("peer"));
    assert!(peer.declare_dead(peer.slot(), peer.epoch()).is_err());
    peer.declare_dead(victim.slot(), victim.epoch()).expect("it is first");
    assert!(matches!(victim.declare_dead(peer.slot(), peer.epoch()), Err(Error::Fenced)));
    assert!(Tether::new(&scene.pool, peer.slot()).expect("a tie").holds());
}
