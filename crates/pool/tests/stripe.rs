//! One capacity over several pools: where its bytes lie, what happens when a part is missing, and how it ends.
#![cfg(not(loom))]

use nil_pool::format::capacity::{CapacityRecord, RECORD_BYTES};
use nil_pool::{
    AbsentPools, Access, BadStripe, CapacityInfo, CapacityRequest, CheckReport, Class, Coherence, Composition,
    CreateOptions, Error, Extent, GRANULE, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, LegRequest,
    Membership, MemoryHome, Pool, Severity, Stripe, StripeRequest, Tag, Whole, reap_orphan_legs,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const SIZE: u64 = 32 << 20;
const STEP: usize = 2 << 20;

fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs")
}

fn agent(name: &str) -> HostIdentity {
    HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None }
}

/// Memberships in so many new pools.
fn members<const N: usize>(directory: &TempDir) -> [Membership; N] {
    std::array::from_fn(|index| {
        let path = directory.path().join(format!("pool{index}"));
        let options = CreateOptions { size: Some(SIZE), ..CreateOptions::default() };
        Pool::create(&path, &options).expect("a new pool").join(&agent("a")).expect("membership")
    })
}

fn shared(granules: u64) -> CapacityRequest {
    CapacityRequest { label: "striped".to_owned(), ..CapacityRequest::shared(Tag::random(), granules * GRANULE) }
}

fn over(legs: &[(&Membership, u32)], granularity: u64) -> StripeRequest {
    let leg = |(member, weight): &(&Membership, u32)| LegRequest { pool: member.pool().id(), weight: *weight };
    StripeRequest { granularity: granularity * GRANULE, legs: legs.iter().map(leg).collect() }
}

/// A capacity of 7 granules in the first pool, striped over the second and the third with weights 2 and 1.
fn striped([home, left, right]: &[Membership; 3]) -> CapacityInfo {
    let stripe = over(&[(left, 2), (right, 1)], 1);
    home.add_striped_capacity(&shared(7), &stripe, &[left, right]).expect("a striped capacity")
}

fn stripe_of(info: &CapacityInfo) -> &Stripe {
    let Composition::Striped(stripe) = &info.composition else { panic!("it is striped: {info:?}") };
    stripe
}

fn usages(members: &[Membership; 3]) -> [u64; 3] {
    members.each_ref().map(|member| member.pool().usage().free)
}

fn assert_clean(pool: &Pool) {
    let report = pool.check(false);
    assert!(report.is_clean(), "{report:#?}");
}

fn errors(report: &CheckReport) -> Vec<String> {
    let wrong = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    wrong.map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
}

/// Changes the record of a capacity, as nothing but damage would.
fn rewrite(pool: &Pool, tag: Tag, change: impl FnOnce(&mut CapacityRecord)) {
    let slot = pool.find_capacity(tag).expect("the capacity").slot;
    let at = pool.header().layout.capacities.at(slot.index());
    let file = File::options().read(true).write(true).open(pool.path()).expect("the pool's file");
    let mut bytes = [0; RECORD_BYTES];
    file.read_exact_at(&mut bytes, at).expect("the record");
    let mut record = CapacityRecord::decode(&bytes).expect("a valid record");
    change(&mut record);
    file.write_all_at(&record.encode(), at).expect("the record");
}

#[test]
fn bytes_written_through_the_stripes_lie_in_the_right_granules_of_the_right_pools() {
    let directory = directory();
    let members = members::<3>(&directory);
    let info = striped(&members);
    assert_eq!((info.bytes, info.extents.as_slice()), (7 * GRANULE, [].as_slice()));
    let mapping = members[0].pool().map_capacity(info.tag).expect("a mapping");
    for granule in 0..7_u8 {
        // SAFETY: the mapping has seven granules, and only this thread uses them.
        unsafe { mapping.as_ptr().add(usize::from(granule) * STEP + 7).write_volatile(granule + 1) };
    }
    // Rounds of three granules: two for the left, one for the right; the last round has one granule only.
    for (leg, wanted) in stripe_of(&info).legs.iter().zip([[1, 2, 4, 5, 7].as_slice(), &[3, 6]]) {
        let member = members.iter().find(|member| member.pool().id() == leg.pool).expect("the leg's pool");
        let found = member.pool().find_capacity(leg.tag).expect("the leg");
        assert_eq!(found.composition, Composition::LegOf(Whole { pool: members[0].pool().id(), tag: info.tag }));
        let file = File::open(member.pool().path()).expect("the pool's file");
        let granules = found.extents.iter().flat_map(|extent: &Extent| extent.granules());
        let written: Vec<u8> = granules
            .map(|granule| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, granule as u64 * GRANULE + 7).expect("a byte");
                byte[0]
            })
            .collect();
        assert_eq!(written, wanted);
    }
    members.iter().for_each(|member| assert_clean(member.pool()));
}

#[test]
fn every_byte_of_a_stripe_is_named_with_its_pool_and_leg() {
    let directory = directory();
    let members = members::<3>(&directory);
    let info = striped(&members);
    let mapping = members[0].pool().map_capacity(info.tag).expect("a mapping");
    let right = &stripe_of(&info).legs[1];
    let source = mapping.source_at(5 * STEP + 9);
    assert_eq!((source.pool, source.path.as_path()), (right.pool, members[2].pool().path()));
    assert_eq!((source.capacity, source.offset), (right.tag, GRANULE + 9));
    let extent = members[2].pool().find_capacity(right.tag).expect("the leg").extents[0];
    assert_eq!(source.pool_offset.0, (u64::from(extent.first) + 1) * GRANULE + 9);
}

#[test]
fn data_and_second_mappings_go_across_legs() {
    let directory = directory();
    let members = members::<3>(&directory);
    let pool = members[0].pool();
    let mapping = pool.map_capacity(striped(&members).tag).expect("a mapping");
    assert_eq!(mapping.data_ranges(), []);
    // SAFETY: the bytes lie in the mapping, and only this thread uses them.
    unsafe { mapping.as_ptr().add(2 * STEP).write_volatile(9) };
    let data = mapping.data_ranges();
    assert!(data.len() == 1 && data[0].start == 2 * STEP && data[0].end <= 3 * STEP, "{data:?}");
    let other = pool.map_capacity(members[0].add_capacity(&shared(4)).expect("capacity").tag).expect("a mapping");
    let (offset, bytes) = (2 * STEP - 4096, 2 * STEP);
    // SAFETY: the bytes belong to `other`, into which nothing refers, and which unmaps them.
    let seen = unsafe {
        mapping.map_onto(offset, bytes, other.as_ptr()).expect("mapped");
        other.as_ptr().add(4096).read_volatile()
    };
    assert_eq!(seen, 9);
}

#[test]
fn a_capacity_may_be_larger_than_any_one_pool() {
    let directory = directory();
    let [home, left, right] = &members::<3>(&directory);
    let granules = SIZE / GRANULE + 6;
    let stripe = over(&[(home, 1), (left, 1), (right, 1)], 1);
    let added = home.add_striped_capacity(&shared(granules), &stripe, &[left, right]).expect("a striped capacity");
    assert!(added.bytes > home.pool().usage().total);
    assert_eq!(home.pool().map_capacity(added.tag).expect("a mapping").len() as u64, added.bytes);
    home.release_capacity_with(added.tag, &[left, right], AbsentPools::Refuse).expect("released");
    assert_eq!(usages(&members::<3>(&self::directory())), [home, left, right].map(|member| member.pool().usage().free));
}

#[test]
fn nothing_is_left_of_a_stripe_that_is_released() {
    let directory = directory();
    let members = members::<3>(&directory);
    let before = usages(&members);
    let info = striped(&members);
    let [home, left, right] = &members;
    assert_ne!(usages(&members), before);
    let leg = stripe_of(&info).legs[0];
    assert!(matches!(home.release_capacity(info.tag), Err(Error::LegNotAtHand { pool, .. }) if pool == leg.pool));
    home.release_capacity_with(info.tag, &[left, right], AbsentPools::Refuse).expect("released");
    assert_eq!(usages(&members), before);
    members.iter().for_each(|member| {
        assert_eq!(member.pool().capacities(), []);
        assert_clean(member.pool());
    });
}

#[test]
fn a_stripe_that_fails_in_one_pool_leaves_nothing_in_the_others() {
    let directory = directory();
    let members = members::<3>(&directory);
    let [home, left, right] = &members;
    let free = right.pool().usage().free / GRANULE;
    right.add_capacity(&shared(free)).expect("capacity");
    let before = usages(&members);
    let failed = home.add_striped_capacity(&shared(7), &over(&[(home, 1), (left, 2), (right, 1)], 1), &[left, right]);
    let Err(Error::InPool { path, source }) = failed else { panic!("no room: {failed:?}") };
    assert_eq!(path, right.pool().path());
    assert!(matches!(*source, Error::NoRoom { .. }));
    assert_eq!(usages(&members), before);
    assert_eq!((home.pool().capacities().len(), left.pool().capacities().len()), (0, 0));
}

#[test]
fn what_cannot_be_striped_is_refused_before_anything_is_made() {
    let directory = directory();
    let members = members::<3>(&directory);
    let [home, left, right] = &members;
    let before = usages(&members);
    let add = |stripe: &StripeRequest, with: &[&Membership]| home.add_striped_capacity(&shared(4), stripe, with);
    let absent = add(&over(&[(home, 1), (left, 1)], 1), &[right]);
    assert!(matches!(&absent, Err(Error::PoolNotJoined { pool }) if *pool == left.pool().id()), "{absent:?}");
    let twice = add(&over(&[(left, 1), (left, 1)], 1), &[left]);
    assert!(matches!(twice, Err(Error::BadStripe(BadStripe::Twice { .. }))));
    let none = add(&over(&[], 1), &[]);
    assert!(matches!(none, Err(Error::BadStripe(BadStripe::Legs { legs: 0 }))));
    let short = add(&over(&[(home, 1), (left, 4), (right, 1)], 1), &[left, right]);
    assert!(matches!(short, Err(Error::BadStripe(BadStripe::TooSmall { .. }))));
    assert_eq!(usages(&members), before);
}

#[test]
fn a_pool_that_is_not_at_hand_is_named_with_leg_and_weight() {
    let directory = directory();
    let members = members::<3>(&directory);
    let info = striped(&members);
    let alone = Pool::open(members[0].pool().path(), Access::ReadWrite).expect("the home pool");
    alone.add_companion(members[1].pool());
    let refused = alone.map_capacity(info.tag).expect_err("a leg is not at hand").to_string();
    let leg = stripe_of(&info).legs[1];
    for part in [leg.tag.to_string(), leg.pool.to_string(), "weight 1".to_owned(), "--pool PATH".to_owned()] {
        assert!(refused.contains(&part), "{part} in: {refused}");
    }
    assert_clean(&alone);
    alone.add_companion(&Pool::open(members[2].pool().path(), Access::ReadWrite).expect("the leg's pool"));
    alone.map_capacity(info.tag).expect("all legs are at hand");
}

#[test]
fn a_leg_is_not_released_while_it_is_needed() {
    let directory = directory();
    let members = members::<3>(&directory);
    let info = striped(&members);
    let [home, left, _] = &members;
    let leg = stripe_of(&info).legs[0];
    let unknown = left.release_capacity(leg.tag).expect_err("nobody can say");
    assert!(matches!(unknown, Error::WholeNotAtHand { .. }), "{unknown}");
    for absent in [AbsentPools::Refuse, AbsentPools::TakeAsGone] {
        let needed = left.release_capacity_with(leg.tag, &[home], absent);
        assert!(matches!(needed, Err(Error::LegInUse { .. })), "{needed:?}");
    }
    assert_eq!(reap_orphan_legs(&[home, left]).expect("looked"), []);
    home.pool().map_capacity(info.tag).expect("it is whole");
}

#[test]
fn what_lies_in_a_pool_that_was_away_at_the_release_is_an_orphan_when_it_returns() {
    let directory = directory();
    let members = members::<3>(&directory);
    let before = usages(&members);
    let info = striped(&members);
    let [home, left, right] = &members;
    home.release_capacity_with(info.tag, &[left], AbsentPools::TakeAsGone).expect("released");
    let leg = stripe_of(&info).legs[1];
    right.pool().add_companion(home.pool());
    let found = right.pool().check(true);
    assert!(found.findings.iter().any(|finding| finding.severity == Severity::Warning), "{found:#?}");
    assert_eq!(reap_orphan_legs(&[home, left, right]).expect("looked"), [leg.tag]);
    assert_eq!(usages(&members), before);
    assert_clean(right.pool());
}

#[test]
fn a_leg_that_is_lost_is_named() {
    let directory = directory();
    let members = members::<3>(&directory);
    let info = striped(&members);
    let [home, left, _] = &members;
    let leg = stripe_of(&info).legs[0];
    // Its home pool is not at hand here, and somebody says that it is gone.
    let alone = Pool::open(left.pool().path(), Access::ReadWrite).expect("the pool").join(&agent("b")).expect("member");
    alone.release_capacity_with(leg.tag, &[], AbsentPools::TakeAsGone).expect("released");
    let refused = home.pool().map_capacity(info.tag).expect_err("a leg is lost").to_string();
    assert!(refused.contains(&leg.tag.to_string()) && refused.contains("is missing"), "{refused}");
    let found = errors(&home.pool().check(true));
    assert!(found.len() == 1 && found[0].contains(&leg.tag.to_string()), "{found:?}");
}

type Damage = fn(&mut CapacityRecord);

#[test]
fn a_leg_that_is_another_ones_or_too_small_or_striped_is_not_mapped() {
    let cases: [(&str, Damage); 4] = [
        ("another capacity", |leg| {
            leg.composition = Composition::LegOf(Whole { tag: Tag::random(), pool: nil_pool::PoolId::random() });
        }),
        ("a capacity of its own", |leg| leg.composition = Composition::Plain),
        ("has not the size", |leg| {
            leg.extents[0].count -= 1;
            leg.bytes -= GRANULE;
        }),
        ("is itself striped", |leg| {
            let stripe = nil_pool::Leg { pool: nil_pool::PoolId::random(), tag: Tag::random(), weight: 1 };
            leg.composition = Composition::Striped(Stripe { granularity: GRANULE, legs: vec![stripe] });
            leg.extents = Vec::new();
        }),
    ];
    for (what, change) in cases {
        let directory = directory();
        let members = members::<3>(&directory);
        let info = striped(&members);
        let leg = stripe_of(&info).legs[0];
        rewrite(members[1].pool(), leg.tag, change);
        let refused = members[0].pool().map_capacity(info.tag).expect_err(what);
        assert!(matches!(&refused, Error::BadLeg { leg: named, .. } if *named == leg.tag), "{refused}");
        assert!(refused.to_string().contains(what), "{refused}");
        let found = errors(&members[0].pool().check(false));
        assert!(found.iter().any(|finding| finding.contains(what)), "{what}: {found:?}");
    }
}

#[test]
fn a_striped_capacity_that_names_itself_as_its_leg_is_not_mapped() {
    let directory = directory();
    let [home] = &members::<1>(&directory);
    let info = home.add_striped_capacity(&shared(4), &over(&[(home, 1)], 1), &[]).expect("a striped capacity");
    rewrite(home.pool(), info.tag, |striped| {
        let Composition::Striped(stripe) = &mut striped.composition else { panic!("it is striped") };
        stripe.legs[0].tag = striped.tag;
    });
    let refused = home.pool().map_capacity(info.tag).expect_err("a circle").to_string();
    assert!(refused.contains("is itself striped"), "{refused}");
    home.release_capacity(info.tag).expect("released");
}

fn vm(name: &str) -> GuestRequest {
    let (kind, home) = (GuestKind::Vm, MemoryHome::Dram);
    GuestRequest { name: name.to_owned(), kind, memory_bytes: 6 * GRANULE, home, vcpus: 1, features: 0 }
}

#[test]
fn memory_of_a_guest_may_be_striped() {
    let directory = directory();
    let members = members::<3>(&directory);
    let before = usages(&members);
    let [home, left, right] = &members;
    let guest = home.create_guest(&vm("g")).expect("a guest");
    let stripe = over(&[(left, 1), (right, 1)], 1);
    home.place_memory_striped(&guest, &stripe, &[left, right]).expect("placed");
    home.place_memory_striped(&guest, &stripe, &[left, right]).expect("placed already");
    assert!(guest.is_placed());
    let memory = guest.map_memory().expect("memory");
    assert_eq!(memory.len(), 6 * STEP);
    assert_eq!(memory.source_at(3 * STEP).pool, right.pool().id());
    let tag = guest.config().expect("a configuration").memory;
    let released = home.release_capacity_with(tag, &[left, right], AbsentPools::Refuse);
    assert!(matches!(released, Err(Error::CapacityInUse { .. })), "{released:?}");
    assert_clean(home.pool());
    home.destroy_guest(&guest).expect("destroyed");
    assert_eq!(reap_orphan_legs(&[home, left, right]).expect("looked").len(), 2);
    assert_eq!(usages(&members), before);
}

#[test]
fn a_guest_is_only_ever_in_shared_memory_with_hardware_coherence() {
    let directory = directory();
    let [host] = &members::<1>(&directory);
    let guest = host.create_guest(&vm("g")).expect("a guest");
    let tag = Some(guest.config().expect("a configuration").memory);
    for (class, coherence) in [(Class::Private, Coherence::Hardware), (Class::Shared, Coherence::Software)] {
        let added = host.add_capacity(&CapacityRequest { tag, class, coherence, ..shared(6) }).expect("capacity");
        assert_eq!((added.class, added.coherence), (class, coherence));
        let refused = guest.map_memory().expect_err("not for guests");
        assert!(matches!(refused, Error::NotForGuests { .. }), "{refused}");
        assert!(refused.to_string().contains(&format!("{class} with {coherence} coherence")), "{refused}");
        host.release_capacity(added.tag).expect("released");
    }
}

#[test]
fn a_release_is_asked_for_until_it_is_taken_back_or_the_capacity_ends() {
    let directory = directory();
    let [host] = &members::<1>(&directory);
    let request = shared(1);
    let tag = request.tag.expect("a tag");
    assert!(matches!(host.ask_release(tag), Err(Error::NoCapacity { .. })));
    let asked = || host.pool().find_capacity(tag).expect("the capacity").release_asked;
    let slot = host.add_capacity(&request).expect("capacity").slot;
    assert!(!asked());
    host.ask_release(tag).expect("asked");
    assert!(asked());
    host.withdraw_release(tag).expect("taken back");
    assert!(!asked());
    host.ask_release(tag).expect("asked");
    host.release_capacity(tag).expect("released");
    // The same slot again: hints move on, so that it takes a turn round the table.
    let again = (0..4096).find_map(|_| {
        let added = host.add_capacity(&request).expect("capacity");
        if added.slot == slot {
            return Some(added);
        }
        host.release_capacity(tag).expect("released");
        None
    });
    assert!(!again.expect("the slot is used again").release_asked);
}

#[test]
fn the_release_of_a_leg_is_asked_of_the_whole() {
    let directory = directory();
    let members = members::<3>(&directory);
    let info = striped(&members);
    let asked = || members[0].pool().find_capacity(info.tag).expect("the capacity").release_asked;
    assert!(!asked());
    members[1].ask_release(stripe_of(&info).legs[0].tag).expect("asked");
    assert!(asked());
}

#[test]
fn stripes_that_cross_are_added_and_released_at_once_while_orphans_are_looked_for() {
    let directory = directory();
    let members = members::<3>(&directory);
    let before = usages(&members);
    let [left, right, _] = &members;
    let turns = |home: &Membership, other: &Membership| {
        for _ in 0..200 {
            let stripe = over(&[(home, 1), (other, 1)], 1);
            let info = home.add_striped_capacity(&shared(3), &stripe, &[other]).expect("a striped capacity");
            home.pool().map_capacity(info.tag).expect("it is whole");
            home.release_capacity_with(info.tag, &[other], AbsentPools::Refuse).expect("released");
        }
    };
    let reaped = std::thread::scope(|scope| {
        let reaper = scope.spawn(|| {
            let looks = (0..100).map(|_| reap_orphan_legs(&[left, right]).expect("looked").len());
            looks.sum::<usize>()
        });
        scope.spawn(|| turns(left, right));
        scope.spawn(|| turns(right, left));
        reaper.join().expect("the reaper")
    });
    assert_eq!((reaped, usages(&members)), (0, before));
    members.iter().for_each(|member| assert_clean(member.pool()));
}
