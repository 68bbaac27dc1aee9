//! Where a guest's memory is, its memory capacity, and its pins; on a tmpfs file.
#![cfg(not(loom))]

use nil_pool::format::pin::PINS;
use nil_pool::{
    Access, CreateOptions, Epoch, Error, GRANULE, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity,
    HostKind, HostSlot, Membership, MemoryHome, Ownership, PinRequest, Place, Placed, PlacementSummary, Pool, Severity,
    StateArea,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

const GRANULES: u64 = 4;
/// Where a state area has its pins, and with one vCPU its placement map.
const PINS_AT: u64 = 4 << 10;
const MAP_AT: u64 = (128 + 2 * (64 + 32)) << 10;

/// A pool with one agent.
struct Lab {
    _directory: TempDir,
    path: PathBuf,
    pool: Pool,
    host: Membership,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let path = directory.path().join("pool");
        let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a new pool");
        let host = join(&pool, "a");
        Self { _directory: directory, path, pool, host }
    }

    fn unpublished(&self, home: MemoryHome) -> GuestControl {
        let memory_bytes = GRANULES * GRANULE;
        let name = "g".to_owned();
        let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes, home, vcpus: 1, features: 0 };
        self.host.create_guest(&request).expect("a guest")
    }

    fn guest(&self, home: MemoryHome) -> (GuestControl, StateArea) {
        let guest = self.unpublished(home);
        guest.publish(self.host.slot()).expect("published");
        let state = guest.map_state().expect("its state");
        (guest, state)
    }

    fn local(&self) -> Place {
        Place::Local { host: self.host.slot(), epoch: Epoch(1) }
    }

    fn mixed(&self) -> Place {
        Place::Mixed { host: self.host.slot(), epoch: Epoch(1) }
    }

    /// Writes into the guest's state area, past all that keeps it right.
    fn damage(&self, offset: u64, bytes: &[u8]) {
        let tag = self.pool.find_guest("g").expect("the guest").state.expect("a state area");
        let first = self.pool.find_capacity(tag).expect("its capacity").extents[0].first;
        let file = File::options().write(true).open(&self.path).expect("the pool");
        file.write_all_at(bytes, u64::from(first) * GRANULE + offset).expect("written");
    }

    /// What check says of the guest, and whether it mended it, by severity.
    fn findings(&self, repair: bool) -> Vec<(Severity, String, bool)> {
        let report = self.pool.check(repair);
        report.findings.into_iter().map(|found| (found.severity, found.what, found.repaired)).collect()
    }

    fn assert_found(&self, severity: Severity, what: &str) {
        let found = self.findings(false);
        assert!(found.iter().any(|found| found.0 == severity && found.1.contains(what)), "{what}: {found:#?}");
    }

    fn assert_mended(&self, severity: Severity, what: &str) {
        self.assert_found(severity, what);
        let found = self.findings(true);
        assert!(found.iter().any(|found| found.2 && found.1.contains(what)), "{what}: {found:#?}");
        assert_eq!(self.findings(false), []);
    }

    fn lose(&self, guest: &GuestControl) {
        let owned = guest.ownership().load().expect("a word");
        let lost = Ownership::Lost { host: self.host.slot(), epoch: Epoch(1) };
        assert!(guest.ownership().transition(owned, lost));
    }
}

fn join(pool: &Pool, name: &str) -> Membership {
    let identity = HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None };
    pool.join(&identity).expect("membership")
}

fn pin(offset: u64, bytes: u64) -> PinRequest {
    let host = HostSlot::new(0).expect("a slot");
    PinRequest { offset, bytes, owner: "virtio-blk0".to_owned(), reason: "fixed buffer".to_owned(), host }
}

#[test]
fn a_guest_in_dram_takes_no_memory_from_the_pool_until_it_is_placed() {
    let lab = Lab::new();
    let before = lab.pool.usage();
    let (guest, state) = lab.guest(MemoryHome::Dram);
    let memory = guest.config().expect("a configuration").memory;
    assert_eq!(lab.pool.usage().used, before.used + GRANULE, "its state only");
    assert!(!guest.is_placed());
    assert!(matches!(guest.map_memory(), Err(Error::NoCapacity { tag }) if tag == memory));
    let place = Place::Local { host: lab.host.slot(), epoch: Epoch(0) };
    assert_eq!((0..4).map(|granule| state.placement().get(granule)).collect::<Vec<_>>(), [Ok(Placed::cold(place)); 4]);
    assert_eq!(state.placement().away(), GRANULES);
    lab.host.place_memory(&guest).expect("placed");
    lab.host.place_memory(&guest).expect("it is there already");
    assert!(guest.is_placed());
    assert_eq!(guest.map_memory().expect("memory").len() as u64, GRANULES * GRANULE);
    assert_eq!(lab.pool.find_capacity(memory).expect("the capacity").user.as_deref(), Some("g"));
    lab.host.unplace_memory(&guest).expect("every granule is local");
    lab.host.unplace_memory(&guest).expect("it is gone already");
    assert!(!guest.is_placed());
    lab.host.destroy_guest(&guest).expect("destroyed");
    assert_eq!(lab.pool.usage(), before);
}

#[test]
fn a_guest_in_the_pool_has_all_of_its_granules_there() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Pool);
    assert!(guest.is_placed());
    let pooled = PlacementSummary { pooled: GRANULES, ..PlacementSummary::default() };
    assert_eq!(state.placement().summary(), pooled);
    assert_eq!((state.placement().away(), state.placement().first_away()), (0, None));
    let info = lab.pool.find_guest("g").expect("the guest");
    assert_eq!((info.places, info.pins), (Some(pooled), Some(0)));
    assert_eq!(info.memory, guest.config().expect("a configuration").memory);
    assert_eq!(lab.findings(false), []);
}

#[test]
fn memory_capacity_is_kept_while_a_granule_is_not_local() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Dram);
    lab.host.place_memory(&guest).expect("placed");
    for place in [lab.mixed(), Place::Pooled] {
        state.placement().put(2, Placed::cold(place));
        let refused = lab.host.unplace_memory(&guest).expect_err("granule 2 needs it");
        assert!(matches!(&refused, Error::MemoryInPool { granule: 2, place: at, .. } if *at == place), "{refused}");
        assert!(guest.is_placed());
    }
    state.placement().put(2, Placed::cold(lab.local()));
    lab.host.unplace_memory(&guest).expect("every granule is local");
}

#[test]
fn only_the_owner_or_the_creator_of_an_unpublished_guest_places_memory() {
    let lab = Lab::new();
    let other = join(&lab.pool, "b");
    let guest = lab.unpublished(MemoryHome::Dram);
    assert!(matches!(other.place_memory(&guest), Err(Error::GuestNotOurs { .. })));
    lab.host.place_memory(&guest).expect("placed");
    lab.host.unplace_memory(&guest).expect("every granule is local");
    guest.publish(lab.host.slot()).expect("published");
    assert!(matches!(other.place_memory(&guest), Err(Error::GuestNotOurs { .. })));
    lab.host.place_memory(&guest).expect("placed");
    assert!(matches!(other.unplace_memory(&guest), Err(Error::GuestNotOurs { .. })));
    let owned = guest.ownership().load().expect("a word");
    let offered = Ownership::Offered { source: lab.host.slot(), target: other.slot(), epoch: Epoch(1) };
    assert!(guest.ownership().transition(owned, offered));
    for host in [&lab.host, &other] {
        assert!(matches!(host.place_memory(&guest), Err(Error::GuestNotOurs { .. })));
        assert!(matches!(host.unplace_memory(&guest), Err(Error::GuestNotOurs { .. })));
    }
}

#[test]
fn memory_that_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let memory_bytes = 1 << 40;
    let name = "huge".to_owned();
    let home = MemoryHome::Dram;
    let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes, home, vcpus: 1, features: 0 };
    let guest = lab.host.create_guest(&request).expect("a guest larger than the pool");
    assert_eq!(guest.map_state().expect("its state").placement().granules() as u64, memory_bytes / GRANULE);
    let before = lab.pool.usage();
    assert!(matches!(lab.host.place_memory(&guest), Err(Error::NoRoom { .. })));
    assert_eq!(lab.pool.usage(), before);
    assert_eq!(lab.findings(false), []);
}

#[test]
fn threads_that_move_different_granules_keep_the_count() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Pool);
    let map = state.placement();
    std::thread::scope(|threads| {
        for granule in 0..4 {
            let (map, lab) = (map.clone(), &lab);
            threads.spawn(move || {
                for _ in 0..2000 {
                    for place in [lab.mixed(), lab.local(), lab.mixed(), Place::Pooled, lab.local()] {
                        map.put(granule, Placed::cold(place));
                        assert!((1..=4).contains(&map.away()) || place == Place::Pooled);
                    }
                }
            });
        }
        threads.spawn(|| (0..=255).cycle().take(20_000).for_each(|heat| map.set_heat(0, heat)));
    });
    assert_eq!(map.away(), GRANULES);
    assert_eq!(map.summary(), PlacementSummary { local: GRANULES, ..PlacementSummary::default() });
    assert_eq!(map.first_away().map(|(granule, placed)| (granule, placed.place)), Some((0, lab.local())));
}

#[test]
fn heat_leaves_the_place_as_it_is() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Pool);
    let map = state.placement();
    map.put(1, Placed::cold(lab.mixed()));
    map.set_heat(1, 200);
    assert_eq!(map.get(1), Ok(Placed { place: lab.mixed(), heat: 200 }));
    assert_eq!(map.away(), 1);
}

#[test]
fn pins_are_listed_until_they_are_released() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Pool);
    let pins = state.pins();
    let first = pins.take(&pin(0, 4096)).expect("a pin");
    let second = pins.take(&pin(GRANULE, GRANULE)).expect("a pin");
    assert_eq!(pins.list().iter().map(|pin| pin.id).collect::<Vec<_>>(), [first, second]);
    let seen = &state.pins().list()[1];
    assert_eq!((seen.offset, seen.bytes), (GRANULE, GRANULE));
    assert_eq!((seen.owner.as_str(), seen.reason.as_str()), ("virtio-blk0", "fixed buffer"));
    assert_eq!(lab.pool.find_guest("g").expect("the guest").pins, Some(2));
    let other = HostSlot::new(7).expect("a slot");
    pins.rehost(second, other).expect("it is held");
    assert_eq!(pins.list()[1].host, other);
    pins.release(first).expect("it is held");
    assert!(matches!(pins.release(first), Err(Error::NoPin { pin }) if pin == first));
    assert!(matches!(pins.rehost(first, other), Err(Error::NoPin { .. })));
    let third = pins.take(&pin(0, 1)).expect("a pin");
    assert_ne!(third, first, "the entry is used again, the name is not");
    assert!(matches!(pins.release(first), Err(Error::NoPin { .. })));
    pins.release(second).expect("it is held");
    assert_eq!(pins.list().len(), 1);
}

#[test]
fn pins_that_cannot_be_are_refused() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Pool);
    let pins = state.pins();
    let memory = GRANULES * GRANULE;
    for (offset, bytes) in [(0, 0), (memory, 1), (1, memory), (u64::MAX, 2)] {
        assert!(matches!(pins.take(&pin(offset, bytes)), Err(Error::PinOutside { .. })), "{bytes} at {offset}");
    }
    let long = PinRequest { owner: "x".repeat(32), ..pin(0, 1) };
    assert!(matches!(pins.take(&long), Err(Error::BadText(_))));
    let long = PinRequest { reason: "x".repeat(64), ..pin(0, 1) };
    assert!(matches!(pins.take(&long), Err(Error::BadText(_))));
    assert_eq!(pins.list(), []);
    let taken: Vec<_> = (0..PINS).map(|_| pins.take(&pin(0, memory)).expect("a pin")).collect();
    assert!(matches!(pins.take(&pin(0, 1)), Err(Error::PinTableFull { pins: PINS })));
    pins.release(taken[100]).expect("it is held");
    pins.take(&pin(0, 1)).expect("there is room again");
}

#[test]
fn threads_that_pin_at_once_get_different_entries() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Pool);
    let pins = state.pins();
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let pins = &pins;
            threads.spawn(move || {
                for round in 0..500 {
                    let wanted = pin(thread * 4096, round + 1);
                    let id = pins.take(&wanted).expect("a pin");
                    let listed = pins.list();
                    let seen = listed.iter().find(|pin| pin.id == id).expect("it is listed");
                    assert_eq!((seen.offset, seen.bytes), (wanted.offset, wanted.bytes));
                    pins.release(id).expect("it is held");
                }
            });
        }
    });
    assert_eq!(pins.list(), []);
}

#[test]
fn a_damaged_pin_counts_as_one_on_all_of_the_memory() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Pool);
    state.pins().take(&pin(0, 4096)).expect("a pin");
    let damaged = state.pins().take(&pin(4096, 4096)).expect("a pin");
    lab.damage(PINS_AT + 256 + 40, b"!");
    let listed = state.pins().list();
    assert_eq!((listed[1].offset, listed[1].bytes, listed[1].id), (0, GRANULES * GRANULE, damaged));
    assert!(listed[1].reason.contains("checksum"), "{listed:?}");
    lab.assert_found(Severity::Error, "its pin entry 1 is damaged");
    lab.lose(&guest);
    lab.assert_mended(Severity::Warning, "its pin entry 1 is damaged");
    assert_eq!(state.pins().list().len(), 1);
    lab.damage(PINS_AT, &[0x77; 8]);
    assert_eq!(state.pins().list()[0].bytes, GRANULES * GRANULE);
    lab.assert_mended(Severity::Warning, "its word 0x7777777777777777 is not a valid one");
    assert_eq!(state.pins().list(), []);
}

#[test]
fn an_entry_whose_writer_died_is_freed() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Pool);
    lab.damage(PINS_AT, &0x1000_0000_0000_0001_u64.to_le_bytes());
    assert_eq!((state.pins().list(), lab.findings(false)), (vec![], vec![]));
    lab.lose(&guest);
    lab.assert_mended(Severity::Note, "its pin entry 0 was being written");
}

#[test]
fn pooled_memory_without_a_capacity_is_an_error_that_names_it() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Dram);
    assert_eq!(lab.findings(false), []);
    for place in [Place::Pooled, lab.mixed()] {
        state.placement().put(3, Placed::cold(place));
        lab.assert_found(Severity::Error, "1 of its granules, the first 3, are in the pool");
    }
}

#[test]
fn capacity_that_holds_nothing_is_worth_a_note() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Dram);
    lab.host.place_memory(&guest).expect("placed");
    lab.assert_found(Severity::Note, "holds none of its granules");
    assert!(lab.pool.check(true).is_clean());
    state.placement().put(0, Placed::cold(lab.mixed()));
    assert_eq!(lab.findings(false), []);
}

#[test]
fn a_count_that_is_too_low_is_an_error() {
    let lab = Lab::new();
    let (guest, _) = lab.guest(MemoryHome::Dram);
    lab.damage(MAP_AT + 8, &[1]);
    lab.assert_found(Severity::Error, "too low");
    lab.lose(&guest);
    lab.assert_found(Severity::Error, "too low");
}

#[test]
fn a_count_that_is_too_high_is_mended_when_nobody_runs_the_guest() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Pool);
    lab.damage(MAP_AT + 8, &[3]);
    assert_eq!(lab.findings(true), [], "its worker may be moving memory");
    assert_eq!(state.placement().away(), 3);
    lab.damage(MAP_AT + 8, &[0xFF; 8]);
    lab.assert_found(Severity::Error, "its count of granules");
    lab.lose(&guest);
    lab.assert_mended(Severity::Note, "its count of granules");
    assert_eq!(state.placement().away(), 0);
}

#[test]
fn damaged_words_of_the_map_are_named_and_count_as_away() {
    let lab = Lab::new();
    let (guest, state) = lab.guest(MemoryHome::Pool);
    lab.damage(MAP_AT + 64 + 8, &[0; 8]);
    lab.damage(MAP_AT + 64 + 24, &[0xEE; 8]);
    let bad = state.placement().get(1).expect_err("no placement");
    assert_eq!((bad.granule, bad.word), (1, 0));
    assert_eq!(state.placement().summary().damaged, 2);
    lab.assert_found(Severity::Error, "2 words of its placement map are damaged, the first of granule 1");
    assert!(matches!(lab.host.unplace_memory(&guest), Err(Error::MemoryInPool { granule: 0, .. })));
    state.placement().put(0, Placed::cold(lab.local()));
    assert!(matches!(lab.host.unplace_memory(&guest), Err(Error::BadPlacement(_))));
}

#[test]
fn a_state_area_of_another_shape_is_refused() {
    let lab = Lab::new();
    let (guest, _) = lab.guest(MemoryHome::Pool);
    lab.damage(MAP_AT, &[5]);
    assert!(matches!(guest.map_state(), Err(Error::BadStateArea { .. })));
    lab.assert_found(Severity::Error, "its placement map is not the one of this guest's memory");
    lab.damage(MAP_AT, &[4]);
    lab.damage(32, &[5]);
    assert!(matches!(guest.map_state(), Err(Error::BadStateArea { .. })));
    let info = lab.pool.find_guest("g").expect("the guest");
    assert_eq!((info.places, info.pins), (None, None));
}

#[test]
fn a_pool_opened_for_reading_shows_where_memory_is() {
    let lab = Lab::new();
    let (_, state) = lab.guest(MemoryHome::Pool);
    state.pins().take(&pin(0, 4096)).expect("a pin");
    let reader = Pool::open(&lab.path, Access::ReadOnly).expect("the pool");
    let info = reader.find_guest("g").expect("the guest");
    assert_eq!((info.places.expect("a map").pooled, info.pins), (GRANULES, Some(1)));
    assert!(reader.check(false).is_clean());
}
