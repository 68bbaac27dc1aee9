//! A whole pool with the fuzzer's bytes written over its tables: opening, listing, checking and repairing it may refuse
//! and complain, but never panic, and never reach outside the pool.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_pool::format::layout::Layout;
use nil_pool::{
    Access, CapacityRequest, CreateOptions, GuestId, GuestKind, GuestRequest, HostIdentity, JobId, LegRequest,
    MemoryHome, Pool, StripeRequest, Tag, reap_orphan_legs,
};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

struct Image {
    path: PathBuf,
    metadata: Vec<u8>,
    layout: Layout,
    _file: File,
}

/// The tag of a capacity that has its only stripe in the same pool.
const STRIPED: [u8; 16] = [2; 16];

static IMAGE: OnceLock<Image> = OnceLock::new();

fn image() -> Image {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    let pool =
        Pool::create(&path, &CreateOptions { size: Some(16 << 20), ..CreateOptions::default() }).expect("a pool");
    let host = HostIdentity { kind: nil_pool::HostKind::Agent, ..HostIdentity::tool() };
    let member = pool.join(&host).expect("membership");
    member.add_capacity(&CapacityRequest::shared(Tag::from_bytes([1; 16]), 4 << 20)).expect("capacity");
    let leg = LegRequest { pool: pool.id(), weight: 1 };
    let striped = CapacityRequest::shared(Tag::from_bytes(STRIPED), 2 << 20);
    let stripe = StripeRequest { granularity: 2 << 20, legs: vec![leg] };
    member.add_striped_capacity(&striped, &stripe, &[]).expect("a striped capacity");
    let vm = GuestRequest {
        name: "g".into(),
        kind: GuestKind::Vm,
        memory_bytes: 2 << 20,
        home: MemoryHome::Pool,
        vcpus: 1,
        features: 0,
    };
    member.create_guest(&vm).expect("a guest");
    member.keep_report(JobId::random(), GuestId::random(), b"{}").expect("kept");
    let layout = pool.header().layout;
    let mut metadata = vec![0; usize::try_from(layout.data).expect("small")];
    File::open(&path).and_then(|file| file.read_exact_at(&mut metadata, 0)).expect("the tables");
    // As if the host's process had died: nobody uses the pool, so no check waits to look twice.
    let record = usize::try_from(layout.hosts.offset).expect("small") + 64;
    metadata[record + 104] ^= 1;
    let sum = nil_pool::format::checksum(&metadata[record..record + 188]);
    metadata[record + 188..record + 192].copy_from_slice(&sum.to_le_bytes());
    // The file stays reachable through its descriptor when the directory goes, so nothing is left behind.
    let file = File::options().read(true).write(true).open(&path).expect("the pool");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Image { path, metadata, layout, _file: file }
}

/// Where the input's next bytes go: a table and an entry near its start, where there is something.
fn places(layout: &Layout) -> [(u64, u64); 12] {
    let guests = layout.guests.offset;
    let reports = layout.reports.expect("a new pool has reports");
    [
        (0, 300),
        ((2 << 20) - 4096, 300),
        (layout.hosts.offset, 512),
        (layout.journals.offset, 256),
        (reports.at(1), 80),
        (layout.capacity_words.offset, 64),
        (layout.tags.offset, 4096),
        (layout.guest_words.offset, 64),
        (layout.owners.offset, 64),
        (guests, 64),
        (guests + 4096, 512),
        (layout.capacities.offset, 6 * 1024),
    ]
}

fuzz_target!(|data: &[u8]| {
    let image = IMAGE.get_or_init(image);
    let file = File::options().write(true).open(&image.path).expect("the pool");
    file.write_all_at(&image.metadata, 0).expect("the tables");
    let places = places(&image.layout);
    for change in data.chunks_exact(12) {
        let (start, length) = places[usize::from(change[0]) % places.len()];
        let at = u64::from(u16::from_le_bytes([change[1], change[2]])) % length;
        let count = usize::from(change[3] % 8) + 1;
        file.write_all_at(&change[4..4 + count], start + at).expect("the change");
    }
    seal_records(&file, image, data);
    let Ok(pool) = Pool::open(&image.path, Access::ReadWrite) else { return };
    let _ = (pool.usage(), pool.hosts(), pool.capacities(), pool.guests(), pool.reports());
    if let Some(info) = pool.find_guest("g") {
        if let Ok(control) = pool.guest(info.slot, info.id) {
            let _ = (control.map_memory().is_ok(), control.map_state().is_ok(), control.ownership().load());
        }
    }
    use_stripes(&pool);
    let _ = pool.check(false);
    let _ = pool.check(true);
    if let Ok(member) = pool.join(&HostIdentity::tool()) {
        let _ = member.keep_report(JobId::random(), GuestId::random(), b"again");
        pool.hosts().iter().for_each(|host| drop(member.cordon(host.slot)));
        let _ = (reap_orphan_legs(&[&member]), member.release_capacity(Tag::from_bytes(STRIPED)));
    }
});

/// Whatever a stripe's record says, what is mapped lies in the pool.
fn use_stripes(pool: &Pool) {
    let Ok(mapping) = pool.map_capacity(Tag::from_bytes(STRIPED)) else { return };
    let size = pool.usage().total;
    assert!(mapping.data_ranges().iter().all(|range| range.end <= mapping.len()));
    for at in (0..mapping.len()).step_by(2 << 20) {
        assert!(mapping.source_at(at).pool_offset.0 < size);
    }
}

/// Half of the inputs get right checksums on their records, so that the fuzzer gets past those.
fn seal_records(file: &File, image: &Image, data: &[u8]) {
    if data.len() % 2 == 0 {
        return;
    }
    let mut current = vec![0; image.metadata.len()];
    let reader = File::open(&image.path).expect("the pool");
    reader.read_exact_at(&mut current, 0).expect("the tables");
    let layout = &image.layout;
    let (hosts, journals) = (layout.hosts.offset + 64, layout.journals.offset);
    let (guests, capacities) = (layout.guests.offset + 4096, layout.capacities.offset);
    let records = [
        (hosts, 192),
        (journals, 64),
        (journals + 64, 64),
        (guests, 4096),
        (layout.reports.expect("a new pool has reports").at(1) + 8, 8184),
        (capacities, 960),
        (capacities + 1024, 960),
        (capacities + 2048, 960),
        (capacities + 3072, 960),
        (capacities + 4096, 960),
    ];
    for (at, length) in records {
        let start = usize::try_from(at).expect("small");
        let sum = nil_pool::format::checksum(&current[start..start + length - 4]);
        file.write_all_at(&sum.to_le_bytes(), at + length as u64 - 4).expect("the checksum");
    }
}
