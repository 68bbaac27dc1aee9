//! A guest's state area with the fuzzer's bytes written over its header, pin table and placement map: reading it, checking
//! and repairing it, moving granules and taking pins may refuse and complain, but never panic; and what the guest is
//! told is never too good: a damaged pin pins everything, a damaged granule is away.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_pool::{
    Access, CreateOptions, Epoch, GRANULE, GuestKind, GuestRequest, HostIdentity, HostKind, HostSlot, MemoryHome,
    PinRequest, Place, Placed, Pool, StateArea,
};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

const GRANULES: u64 = 8;
/// Where the state area of one vCPU has its header, its pin table and its placement map, and how much of each is written.
const PLACES: [(u64, u64); 3] = [(0, 64), (4 << 10, 512), (320 << 10, 64 + GRANULES * 8)];

struct Image {
    path: PathBuf,
    state_at: u64,
    sound: Vec<u8>,
    file: File,
}

static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
    let pool = Pool::create(&path, &options).expect("a pool");
    let host = HostIdentity { kind: HostKind::Agent, ..HostIdentity::tool() };
    let member = pool.join(&host).expect("membership");
    let (name, memory_bytes, home) = ("g".to_owned(), GRANULES * GRANULE, MemoryHome::Pool);
    let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes, home, vcpus: 1, features: 0 };
    let guest = member.create_guest(&request).expect("a guest");
    let state = guest.map_state().expect("its state area");
    for offset in [0, GRANULE] {
        state.pins().take(&pin(offset)).expect("a pin");
    }
    let tag = pool.find_guest("g").expect("the guest").state.expect("a state area");
    let state_at = u64::from(pool.find_capacity(tag).expect("its capacity").extents[0].first) * GRANULE;
    let file = File::options().read(true).write(true).open(&path).expect("the pool");
    // As if the host's process had died: nobody runs the guest, so no check waits to look twice, and all is mended.
    let record = pool.header().layout.hosts.offset + 64;
    let mut host = [0; 192];
    file.read_exact_at(&mut host, record).expect("the host's record");
    host[104] ^= 1;
    let sum = nil_pool::format::checksum(&host[..188]);
    host[188..].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&host, record).expect("the host's record");
    let mut sound = vec![0; 512 << 10];
    file.read_exact_at(&mut sound, state_at).expect("the state area");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Image { path, state_at, sound, file }
});

fn pin(offset: u64) -> PinRequest {
    let host = HostSlot::new(3).expect("a slot");
    PinRequest { offset, bytes: 4096, owner: "fuzzer".to_owned(), reason: String::new(), host }
}

/// Restores the state area, then lays (place, offset, length, bytes …) over it, as often as the data says.
fn damage(image: &Image, mut data: &[u8]) {
    image.file.write_all_at(&image.sound, image.state_at).expect("the sound state area");
    let seal = data.len().is_multiple_of(2);
    while let [place, offset, length, rest @ ..] = data {
        let (start, room) = PLACES[usize::from(*place) % PLACES.len()];
        let offset = u64::from(*offset) * 8 % room;
        let length = rest.len().min(usize::from(*length)).min(usize::try_from(room - offset).expect("small"));
        image.file.write_all_at(&rest[..length], image.state_at + start + offset).expect("written");
        data = &rest[length..];
    }
    // Half of the inputs get right checksums on their pins, so that the fuzzer gets past those.
    for entry in [4096, 4096 + 256].into_iter().filter(|_| seal) {
        let mut record = [0; 248];
        image.file.read_exact_at(&mut record, image.state_at + entry + 8).expect("a pin");
        let sum = nil_pool::format::checksum(&record[..244]);
        image.file.write_all_at(&sum.to_le_bytes(), image.state_at + entry + 252).expect("a checksum");
    }
}

fuzz_target!(|data: &[u8]| {
    let image = &*IMAGE;
    damage(image, data);
    let pool = Pool::open(&image.path, Access::ReadWrite).expect("the tables are sound");
    let _ = pool.check(false);
    let info = pool.find_guest("g").expect("its record is sound");
    let guest = pool.guest(info.slot, info.id).expect("its record is sound");
    if let Ok(state) = guest.map_state() {
        use_it(&state);
    }
    let _ = pool.check(true);
});

fn use_it(state: &StateArea) {
    let (map, pins) = (state.placement(), state.pins());
    let summary = map.summary();
    assert_eq!(summary.local + summary.mixed + summary.pooled + summary.damaged, GRANULES);
    assert_eq!(map.recount(), summary.away());
    let _ = map.first_away();
    let place = Place::Local { host: HostSlot::new(0).expect("a slot"), epoch: Epoch(1) };
    for granule in 0..map.granules() {
        map.set_heat(granule, 9);
        assert_eq!(map.get(granule).is_ok_and(|placed| placed.heat == 9), map.get(granule).is_ok());
        map.put(granule, Placed::cold(place));
        assert!(map.away() >= map.summary().away());
    }
    assert_eq!(map.away(), GRANULES);
    (0..map.granules()).for_each(|granule| map.put(granule, Placed::cold(Place::Pooled)));
    assert_eq!((map.away(), map.first_away()), (0, None));

    for pin in pins.list() {
        assert!(pin.bytes > 0 && pin.offset + pin.bytes <= GRANULES * GRANULE && !pin.owner.is_empty());
        let _ = pins.rehost(pin.id, pin.host);
        let _ = pins.release(pin.id);
    }
    let before = pins.list().len();
    if let Ok(taken) = pins.take(&pin(4096)) {
        assert_eq!(pins.list().len(), before + 1);
        pins.release(taken).expect("it is held");
    }
}
