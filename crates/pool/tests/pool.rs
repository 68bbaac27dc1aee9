//! A pool from its creation to its end, on a tmpfs file.
#![cfg(not(loom))]

use nil_pool::{
    Access, Answer, Area, CapacityRequest, CreateOptions, Epoch, Error, GRANULE, GuestControl, GuestKind, GuestRequest,
    HostId, HostIdentity, HostKind, HostSlot, Membership, MemoryHome, Ownership, Pool, Side, Stamp, Tag, decode,
};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    (directory, path)
}

fn pool_at(path: &Path) -> Pool {
    Pool::create(path, &CreateOptions { size: Some(SIZE), ..CreateOptions::default() }).expect("a new pool")
}

fn agent(name: &str) -> HostIdentity {
    HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None }
}

fn vm(name: &str) -> GuestRequest {
    GuestRequest {
        name: name.to_owned(),
        kind: GuestKind::Vm,
        memory_bytes: 8 << 20,
        home: MemoryHome::Pool,
        vcpus: 2,
        features: 5,
    }
}

fn create(host: &Membership, name: &str) -> GuestControl {
    host.create_guest(&vm(name)).expect("a new guest")
}

fn fill(area: &Area, epoch: Epoch, byte: u8) {
    let mut writer = area.writer(epoch);
    writer.put(1, 1, 0, &[byte; 100]).expect("it fits");
    writer.finish();
}

#[test]
fn a_pool_is_found_as_it_was_made() {
    let (_directory, path) = place();
    let options =
        CreateOptions { size: Some(SIZE), force: false, label: "rack 3".to_owned(), ..CreateOptions::default() };
    let made = Pool::create(&path, &options).expect("a new pool");
    let found = Pool::open(&path, Access::ReadOnly).expect("the same pool");
    assert_eq!(found.header(), made.header());
    assert_eq!(found.header().label, "rack 3");
    assert_eq!(found.usage().total, SIZE);
    assert_eq!(found.usage().free + found.usage().tables, SIZE);
}

#[test]
fn a_capacity_is_listed_until_it_is_released() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    let before = pool.usage();
    let added = host.add_capacity(&CapacityRequest::private(4 << 20)).expect("capacity");
    assert_eq!(pool.capacities(), std::slice::from_ref(&added));
    assert_eq!(pool.usage().free, before.free - (4 << 20));
    host.release_capacity(added.tag).expect("released");
    assert_eq!(pool.capacities(), []);
    assert_eq!(pool.usage(), before);
}

#[test]
fn a_guest_has_memory_state_and_an_owner() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    let guest = create(&host, "g");
    assert_eq!(guest.config().expect("a configuration").features, 5);
    assert_eq!(guest.ownership().load(), Ok(Ownership::Vacant));
    guest.publish(host.slot()).expect("published");

    let other = Pool::open(&path, Access::ReadWrite).expect("the same pool");
    let info = other.find_guest("g").expect("the guest");
    let seen = other.guest(info.slot, info.id).expect("the guest");
    assert_eq!(seen.ownership().load(), Ok(Ownership::Owned { host: host.slot(), epoch: Epoch(1) }));

    let (mine, theirs) = (guest.map_memory().expect("memory"), seen.map_memory().expect("memory"));
    assert_eq!((mine.len(), mine.as_ptr().align_offset(2 << 20)), (8 << 20, 0));
    // SAFETY: both mappings are at least that long, and only this thread uses them.
    unsafe {
        mine.as_ptr().add((8 << 20) - 1).write_volatile(42);
        assert_eq!(theirs.as_ptr().add((8 << 20) - 1).read_volatile(), 42);
    }

    let (source, target) = (guest.map_state().expect("state"), seen.map_state().expect("state"));
    fill(&source.vcpu(1, 1), Epoch(1), 7);
    let mut copy = Vec::with_capacity(target.vcpu(1, 1).len());
    target.vcpu(1, 1).read_into(&mut copy).expect("written state");
    let sections = decode(&copy, Epoch(1)).expect("valid state");
    assert_eq!(sections.get(1, 0).expect("the section").payload, [7; 100]);
    assert!(matches!(target.vcpu(0, 1).read_into(&mut copy), Err(Error::AreaUnfinished)));

    guest.timeline().set(Stamp::Kick, 99);
    assert_eq!(seen.timeline().get(Stamp::Kick), 99);
    let rung = seen.bell(Side::Target).read();
    guest.bell(Side::Target).ring();
    assert_ne!(seen.bell(Side::Target).read(), rung);
}

#[test]
fn a_destroyed_guest_leaves_nothing_behind() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    let before = pool.usage();
    let guest = create(&host, "g");
    guest.publish(host.slot()).expect("published");
    assert!(matches!(
        host.release_capacity(guest.placement().expect("a placement")[0].capacity),
        Err(Error::CapacityInUse { .. })
    ));
    host.destroy_guest(&guest).expect("destroyed");
    assert_eq!(pool.usage(), before);
    assert_eq!(pool.capacities(), []);
    assert!(matches!(guest.config(), Err(Error::GuestGone { .. })));
    assert!(matches!(pool.guest(guest.slot(), guest.id()), Err(Error::GuestGone { .. })));
    host.leave().expect("nothing holds it");
}

#[test]
fn only_its_owner_destroys_a_guest() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let (a, b) = (pool.join(&agent("a")).expect("membership"), pool.join(&agent("b")).expect("membership"));
    let guest = create(&a, "g");
    assert!(matches!(b.destroy_guest(&guest), Err(Error::GuestNotOurs { .. })), "not published, but its creator lives");
    guest.publish(a.slot()).expect("published");
    assert!(matches!(b.destroy_guest(&guest), Err(Error::GuestNotOurs { .. })));
    assert!(matches!(a.leave(), Err(Error::HostHoldsGuest { .. })));
    assert_eq!(pool.find_guest("g").expect("the guest").damage, None);
}

#[test]
fn names_and_tags_are_unique() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    assert!(matches!(pool.join(&agent("a")), Err(Error::NameTaken { .. })));
    assert!(matches!(pool.join(host.identity()), Err(Error::AlreadyJoined { .. })));
    create(&host, "g");
    assert!(matches!(host.create_guest(&vm("g")), Err(Error::GuestExists { .. })));
    let request = CapacityRequest::shared(Tag::random(), GRANULE);
    host.add_capacity(&request).expect("capacity");
    assert!(matches!(host.add_capacity(&request), Err(Error::TagExists { .. })));
    let tagless = CapacityRequest { tag: None, ..request };
    assert!(matches!(host.add_capacity(&tagless), Err(Error::TagNeeded)));
}

#[test]
fn a_tool_leaves_when_it_is_dropped_and_an_agent_stays() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    drop(pool.join(&HostIdentity::tool()).expect("membership"));
    assert_eq!(pool.hosts(), []);
    drop(pool.join(&agent("a")).expect("membership"));
    assert_eq!(pool.hosts().len(), 1);
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    let before = pool.usage();
    assert!(matches!(host.add_capacity(&CapacityRequest::private(SIZE)), Err(Error::NoRoom { .. })));
    assert!(matches!(
        host.add_capacity(&CapacityRequest::private(1 << 60)),
        Err(Error::NoRoom { .. } | Error::CapacitySize { .. })
    ));
    assert!(matches!(host.add_capacity(&CapacityRequest::private(0)), Err(Error::CapacitySize { .. })));
    assert!(matches!(host.add_capacity(&CapacityRequest::private(4096)), Err(Error::CapacitySize { .. })));
    assert!(matches!(
        host.create_guest(&GuestRequest { memory_bytes: before.free, ..vm("g") }),
        Err(Error::NoRoom { .. })
    ));
    assert!(matches!(host.create_guest(&GuestRequest { vcpus: 0, ..vm("g") }), Err(Error::GuestVcpus { .. })));
    assert!(matches!(host.create_guest(&GuestRequest { vcpus: 5000, ..vm("g") }), Err(Error::GuestVcpus { .. })));
    assert!(matches!(host.create_guest(&vm("a/b")), Err(Error::BadText(_))));
    assert_eq!(pool.usage(), before);
}

#[test]
fn a_capacity_of_several_pieces_is_mapped_as_one() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    let all: Vec<_> = std::iter::from_fn(|| host.add_capacity(&CapacityRequest::private(GRANULE)).ok()).collect();
    for every_other in all.iter().step_by(2) {
        host.release_capacity(every_other.tag).expect("released");
    }
    let pieces = host.add_capacity(&CapacityRequest::private(3 * GRANULE)).expect("capacity in pieces");
    assert_eq!(pieces.extents.len(), 3);
    let mapping = pool.map_capacity(pieces.tag).expect("mapped");
    assert_eq!(mapping.len() as u64, 3 * GRANULE);
    // SAFETY: the mapping is that long, and nobody else uses it.
    unsafe { mapping.as_ptr().write_bytes(1, mapping.len()) };
    assert_eq!(pool.capacities().len(), all.len() - all.len().div_ceil(2) + 1);
}

#[test]
fn new_capacity_reads_as_zeros_whatever_lay_there() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let host = pool.join(&agent("a")).expect("membership");
    let all = CapacityRequest::private(pool.usage().free);
    let first = host.add_capacity(&all).expect("capacity");
    let mapping = pool.map_capacity(first.tag).expect("mapped");
    // SAFETY: the mapping is that long, and nobody else uses it.
    unsafe { mapping.as_ptr().write_bytes(0xFF, mapping.len()) };
    host.release_capacity(first.tag).expect("released");
    let second = host.add_capacity(&all).expect("capacity");
    let mapping = pool.map_capacity(second.tag).expect("mapped");
    // SAFETY: as above; nobody writes it now.
    let bytes = unsafe { std::slice::from_raw_parts(mapping.as_ptr(), mapping.len()) };
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn a_pool_opened_for_reading_is_not_changed() {
    let (_directory, path) = place();
    pool_at(&path);
    let pool = Pool::open(&path, Access::ReadOnly).expect("the pool");
    assert!(matches!(pool.join(&agent("a")), Err(Error::OpenedReadOnly)));
    assert!(matches!(pool.map_capacity(Tag::random()), Err(Error::OpenedReadOnly)));
}

#[test]
fn a_host_tells_its_address_and_is_cordoned_until_it_is_told_otherwise() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let identity = HostIdentity { address: Some("10.0.0.7:7700".parse().expect("an address")), ..agent("a") };
    let host = pool.join(&identity).expect("membership");
    let tool = pool.join(&HostIdentity::tool()).expect("membership");
    let seen = |pool: &Pool| pool.find_host("a").map(|host| (host.address, host.cordoned));
    assert_eq!(seen(&pool), Some((identity.address.clone(), false)));
    tool.cordon(host.slot()).expect("cordoned by another");
    assert_eq!(seen(&pool), Some((identity.address.clone(), true)));
    assert_eq!(pool.find_host(&tool.identity().name).map(|host| (host.address, host.cordoned)), Some((None, false)));
    let slot = host.slot();
    host.leave().expect("left");
    assert!(matches!(tool.cordon(slot), Err(Error::NoHost { .. })));

    let other = pool.join(&agent("b")).expect("membership");
    assert_eq!(other.slot(), slot, "the entry is another's");
    assert!(!pool.find_host("b").expect("the host").cordoned, "what was said of the host before it is not said of it");
    other.leave().expect("left");
    let host = pool.join(&identity).expect("membership");
    assert_eq!(seen(&pool), Some((identity.address.clone(), true)), "it returned to the entry");
    host.uncordon(host.slot()).expect("uncordoned by itself");
    assert_eq!(seen(&pool), Some((identity.address, false)));
    assert!(matches!(host.cordon(HostSlot::new(4000).expect("a slot")), Err(Error::NoHost { .. })));
    assert!(pool.check(false).is_clean());
}

#[test]
fn shared_capacity_is_not_changed_by_attaching_joining_or_restarting() {
    let (_directory, path) = place();
    let pool = pool_at(&path);
    let (a, b) = (agent("a"), agent("b"));
    let first = pool.join(&a).expect("membership");
    let access = vec![a.id, b.id];
    let request = CapacityRequest { access, ..CapacityRequest::shared(Tag::random(), 4 * GRANULE) };
    let tag = first.add_capacity(&request).expect("capacity").tag;
    first.answer_offer(tag, Answer::Accepted).expect("accepted");
    let contents: Vec<u8> = (0..4 * GRANULE / 8).flat_map(|word| (word * 0x9E37_79B9).to_le_bytes()).collect();
    let mapping = first.pool().map_capacity(tag).expect("mapped");
    // SAFETY: the mapping is that long, and nobody else uses it.
    unsafe { mapping.as_ptr().copy_from_nonoverlapping(contents.as_ptr(), contents.len()) };
    let same = |member: &Membership| {
        member.answer_offer(tag, Answer::Accepted).expect("accepted");
        let mapping = member.pool().map_capacity(tag).expect("mapped");
        mapping.populate().expect("populated");
        // SAFETY: the mapping is that long, and nobody writes it now.
        unsafe { std::slice::from_raw_parts(mapping.as_ptr(), mapping.len()) == contents }
    };
    let second = Pool::open(&path, Access::ReadWrite).expect("the pool").join(&b).expect("membership");
    assert!(same(&second), "a second host attaches it");
    drop(mapping);
    first.leave().expect("left");
    drop(pool);
    let again = Pool::open(&path, Access::ReadWrite).expect("the pool").join(&a).expect("membership");
    assert!(same(&again), "its host attaches it after a restart");
    second.answer_offer(tag, Answer::Released).expect("let go");
    assert!(same(&second) && same(&again), "a host attaches it after it had let go of it");
}
