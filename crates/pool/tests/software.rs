//! A pool in software mode on real memory, whose caches agree: that the whole path is there, not that nothing is missing from it.

#![cfg(not(loom))]

use nil_pool::{
    Access, Coherence, CreateOptions, Epoch, Error, GRANULE, GuestKind, GuestRequest, HostId, HostIdentity, HostKind,
    LeaseTerms, Membership, MemoryHome, OutputRule, Ownership, Pool, ProtectionSettings,
};
use std::path::Path;
use std::time::Duration;

fn join(path: &Path, name: &str) -> Membership {
    let pool = Pool::open(path, Access::ReadWrite).expect("it opens");
    let identity = HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None };
    pool.join(&identity).expect("membership")
}

fn request() -> GuestRequest {
    let (name, kind, memory_bytes) = ("web".to_owned(), GuestKind::Vm, 2 * GRANULE);
    GuestRequest { name, kind, memory_bytes, home: MemoryHome::Pool, vcpus: 1, features: 0 }
}

#[test]
fn a_guest_goes_from_one_host_to_another_and_back() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    let options =
        CreateOptions { size: Some(32 * GRANULE), coherence: Coherence::Software, ..CreateOptions::default() };
    let pool = Pool::create(&path, &options).expect("a pool");
    assert_eq!(pool.coherence(), Coherence::Software);
    let (first, second) = (join(&path, "a"), join(&path, "b"));
    assert_eq!([first.slot().index(), second.slot().index()], [0, 1]);
    let there = first.create_guest(&request()).expect("a guest");
    there.publish(first.slot()).expect("published");
    for (epoch, source, target) in [(1, &first, &second), (2, &second, &first)] {
        let (source, target, epoch) = (source.slot(), target.slot(), Epoch(epoch));
        let here = second.pool().guest(there.slot(), there.id()).expect("the guest");
        let owned = Ownership::Owned { host: source, epoch };
        let offered = Ownership::Offered { source, target, epoch };
        let frozen = Ownership::Frozen { source, target, epoch };
        assert!(there.ownership().transition(owned, offered));
        there.hand_memory_over().expect("written back");
        assert!(there.ownership().transition(offered, frozen));
        assert_eq!(here.ownership().load(), Ok(frozen));
        here.take_memory_over().expect("dropped");
        let after = Ownership::Owned { host: target, epoch: epoch.next().expect("a later one") };
        assert!(here.ownership().transition(frozen, after));
        assert!(!there.ownership().transition(frozen, Ownership::Owned { host: source, epoch: Epoch(9) }));
        assert_eq!(there.ownership().load(), Ok(after));
    }
    assert!(pool.check(false).is_clean(), "{:#?}", pool.check(false));
    first.destroy_guest(&there).expect("destroyed");
    first.announce_lease(LeaseTerms::default()).expect("said");
    first.beat();
    assert_eq!(pool.usage().guests, 0);
    first.leave().expect("it leaves");
    assert_eq!(join(&path, "c").slot().index(), 0, "the door is open again");
    assert!(pool.check(false).is_clean(), "{:#?}", pool.check(false));
}

#[test]
fn what_needs_coherent_caches_is_refused_by_name() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    let options =
        CreateOptions { size: Some(32 * GRANULE), coherence: Coherence::Software, ..CreateOptions::default() };
    Pool::create(&path, &options).expect("a pool");
    let host = join(&path, "a");
    let guest = host.create_guest(&request()).expect("a guest");
    let settings = ProtectionSettings { interval: Duration::from_millis(25), output: OutputRule::Pass };
    let refused = host.protect(&guest, settings, None).expect_err("refused");
    assert!(matches!(refused, Error::NotCoherent { .. }), "{refused}");
    assert!(refused.to_string().contains("protecting a guest"), "{refused}");
}
