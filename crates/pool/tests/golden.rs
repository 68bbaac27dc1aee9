//! The bytes of every record, as the worked example of docs/pool-format.md shows them: code and specification agree.
#![cfg(not(loom))]

use nil_pool::format::answers::{Answer, Answers};
use nil_pool::format::capacity::CapacityRecord;
use nil_pool::format::demand::Demand;
use nil_pool::format::guest::GuestRecord;
use nil_pool::format::header::{COMPAT_REPORTS, Header};
use nil_pool::format::host::{HostFlags, HostRecord};
use nil_pool::format::journal::{Entry, Intent};
use nil_pool::format::layout::Layout;
use nil_pool::format::protection::{Commit, LogEntry, OutputRule, ProtectionSettings, ProtectionShape, Standing};
use nil_pool::format::report::ReportRecord;
use nil_pool::format::slot_word::Reference;
use nil_pool::{
    Class, Coherence, Composition, CreateOptions, Epoch, Extent, GRANULE, GuestId, GuestKind, GuestRequest, HostId,
    HostIdentity, HostKind, HostSlot, JobId, Leg, MemoryHome, PinRequest, Place, Placed, Pool, PoolId, Region,
    SectionWriter, Stripe, Tag, Whole,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SPECIFICATION: &str = include_str!("../../../docs/pool-format.md");

/// Lines of sixteen bytes with their offset; lines of zeros are left out.
fn dump(bytes: &[u8]) -> String {
    let line = |(index, bytes): (usize, &[u8])| {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.iter().any(|byte| *byte != 0).then(|| format!("{:04x}  {}\n", index * 16, hex.join(" ")))
    };
    bytes.chunks(16).enumerate().filter_map(line).collect()
}

/// The specification holds a block of this name, and it shows these bytes.
fn assert_specified(name: &str, bytes: &[u8]) {
    let expected = format!("```hexdump {name}\n{}```\n", dump(bytes));
    assert!(SPECIFICATION.contains(&expected), "docs/pool-format.md should have this block:\n{expected}");
}

fn uuid(digit: u8) -> [u8; 16] {
    std::array::from_fn(|index| digit << 4 | u8::try_from(index).expect("small"))
}

fn header() -> Header {
    Header {
        id: PoolId::from_bytes(uuid(1)),
        version: 1,
        coherence: Coherence::Hardware,
        compat: COMPAT_REPORTS,
        ro_compat: 0,
        incompat: 0,
        size: 16 << 20,
        created: 1_800_000_000_000_000_000,
        generation: 1,
        layout: Layout::for_size(16 << 20).expect("a small pool"),
        label: "example".to_owned(),
    }
}

#[test]
fn the_header_is_the_specified_one() {
    assert_specified("header", &header().encode());
    assert_eq!(Header::decode(&header().encode()), Ok(header()));
}

/// The header as the first versions wrote it: nothing is said of reports.
#[test]
fn a_header_without_reports_is_still_one() {
    let mut layout = header().layout;
    layout.reports = None;
    let earlier = Header { compat: 0, layout, ..header() };
    assert_specified("header without reports", &earlier.encode());
    assert_eq!(Header::decode(&earlier.encode()), Ok(earlier));
}

#[test]
fn a_report_is_the_specified_one() {
    let report = ReportRecord {
        sequence: 5,
        job: JobId::from_bytes(uuid(11)),
        guest: GuestId::from_bytes(uuid(5)),
        written: 1_800_000_000_000_000_005,
        bytes: br#"{"outcome":"landed"}"#.to_vec(),
    };
    assert_specified("report", &report.encode());
    assert_eq!(ReportRecord::decode(&report.encode()), Ok(report));
}

#[test]
fn a_host_record_is_the_specified_one() {
    let host = HostRecord {
        id: HostId::from_bytes(uuid(2)),
        name: "a".to_owned(),
        kind: HostKind::Agent,
        kernel: uuid(3),
        incarnation: 1,
        started: 0x0012_3456,
        joined: 1_800_000_000_000_000_001,
        pid: 4711,
        address: Some("[fd00::7]:7700".parse().expect("an address")),
    };
    assert_specified("host", &host.encode());
    assert_eq!(HostRecord::decode(&host.encode()), Ok(host));
}

#[test]
fn a_capacity_record_is_the_specified_one() {
    let capacity = CapacityRecord {
        tag: Tag::from_bytes(uuid(4)),
        generation: 1,
        bytes: 3 * GRANULE,
        created: 1_800_000_000_000_000_002,
        class: Class::Shared,
        coherence: Coherence::Hardware,
        access: vec![HostId::from_bytes(uuid(2))],
        extents: vec![Extent { first: 2, count: 1 }, Extent { first: 5, count: 2 }],
        composition: Composition::Plain,
        label: "memory of g".to_owned(),
    };
    assert_specified("capacity", &capacity.encode());
    assert_eq!(CapacityRecord::decode(&capacity.encode()), Ok(capacity));
}

/// 10 MiB: of every four granules three in the first pool and one in the second; the second round has one granule.
fn striped() -> CapacityRecord {
    let leg = |pool, tag, weight| Leg { pool: PoolId::from_bytes(uuid(pool)), tag: Tag::from_bytes(uuid(tag)), weight };
    CapacityRecord {
        tag: Tag::from_bytes(uuid(7)),
        generation: 1,
        bytes: 5 * GRANULE,
        created: 1_800_000_000_000_000_004,
        class: Class::Shared,
        coherence: Coherence::Software,
        access: Vec::new(),
        extents: Vec::new(),
        composition: Composition::Striped(Stripe { granularity: GRANULE, legs: vec![leg(1, 8, 3), leg(9, 10, 1)] }),
        label: String::new(),
    }
}

#[test]
fn a_striped_capacity_record_is_the_specified_one() {
    let striped = striped();
    assert_specified("striped", &striped.encode());
    assert_eq!(CapacityRecord::decode(&striped.encode()), Ok(striped));
}

#[test]
fn the_record_of_a_leg_is_the_specified_one() {
    let leg = CapacityRecord {
        tag: Tag::from_bytes(uuid(10)),
        bytes: GRANULE,
        extents: vec![Extent { first: 4, count: 1 }],
        composition: Composition::LegOf(Whole { pool: PoolId::from_bytes(uuid(1)), tag: Tag::from_bytes(uuid(7)) }),
        ..striped()
    };
    assert_specified("leg", &leg.encode());
    assert_eq!(CapacityRecord::decode(&leg.encode()), Ok(leg));
}

#[test]
fn a_guest_record_is_the_specified_one() {
    let guest = GuestRecord {
        id: GuestId::from_bytes(uuid(5)),
        generation: 1,
        name: "g".to_owned(),
        kind: GuestKind::Vm,
        memory_bytes: 3 * GRANULE,
        vcpus: 2,
        features: 0,
        created: 1_800_000_000_000_000_003,
        creator: HostId::from_bytes(uuid(2)),
        state: Tag::from_bytes(uuid(6)),
        placement: vec![Region {
            guest_address: 0,
            bytes: 3 * GRANULE,
            capacity: Tag::from_bytes(uuid(4)),
            capacity_offset: 0,
        }],
    };
    assert_specified("guest", &guest.encode());
    assert_eq!(GuestRecord::decode(&guest.encode()), Ok(guest));
}

#[test]
fn a_journal_entry_is_the_specified_one() {
    let reference = |slot| Reference { slot, generation: 1 };
    let intent = Intent::CreateGuest { guest: reference(0), memory: Some(reference(7)), state: None };
    let entry = Entry { sequence: 3, incarnation: 1, intent };
    assert_specified("journal", &entry.encode());
    assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
}

#[test]
fn an_area_is_the_specified_one() {
    let mut bytes = [0; 72];
    let mut writer = SectionWriter::over(&mut bytes, Epoch(7));
    writer.put(1, 1, 0, b"registers").expect("it fits");
    writer.finish();
    assert_specified("area", &bytes);
}

#[test]
fn placement_map_and_pin_are_the_specified_ones() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    let options = CreateOptions { size: Some(16 << 20), ..CreateOptions::default() };
    let pool = Pool::create(&path, &options).expect("a new pool");
    let identity =
        HostIdentity { id: HostId::from_bytes(uuid(2)), name: "a".to_owned(), kind: HostKind::Agent, address: None };
    let member = pool.join(&identity).expect("membership");
    let home = MemoryHome::Dram;
    let name = "g".to_owned();
    let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes: 3 * GRANULE, home, vcpus: 2, features: 0 };
    let guest = member.create_guest(&request).expect("a guest");
    let state = guest.map_state().expect("its state area");
    let other = HostSlot::new(1).expect("a slot");
    let placed = [
        Placed { place: Place::Local { host: member.slot(), epoch: Epoch(1) }, heat: 255 },
        Placed { place: Place::Mixed { host: other, epoch: Epoch(7) }, heat: 0x20 },
        Placed { place: Place::Pooled, heat: 0 },
    ];
    placed.into_iter().enumerate().for_each(|(granule, placed)| state.placement().put(granule, placed));
    let (owner, reason) = ("virtio-blk0".to_owned(), "fixed buffer".to_owned());
    let pin = PinRequest { offset: 0x3000, bytes: 0x2000, owner, reason, host: other };
    state.pins().take(&pin).expect("a pin");

    let tag = pool.find_guest("g").expect("the guest").state.expect("a state area");
    let start = u64::from(pool.find_capacity(tag).expect("its capacity").extents[0].first) * GRANULE;
    let at = |offset: u64, bytes: usize| {
        let mut found = vec![0; bytes];
        File::open(&path).and_then(|file| file.read_exact_at(&mut found, start + offset)).expect("the state area");
        found
    };
    let mut header = [0; 64];
    header[..8].copy_from_slice(b"nilstate");
    header[8..24].copy_from_slice(&guest.id().to_bytes());
    (header[24], header[32]) = (2, 3);
    let sum = nil_pool::format::checksum(&header[..60]);
    header[60..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(at(0, 64), header);
    assert_specified("pin", &at(4 << 10, 256));
    let map = (128 << 10) + 2 * (64 + 2 * 32) * 1024;
    assert_specified("placement map", &at(map, 88));
}

/// The specification names a word in its list of examples.
fn assert_word(word: u64) {
    let expected = format!("`0x{word:016X}`");
    assert!(SPECIFICATION.contains(&expected), "docs/pool-format.md should name {expected}");
}

#[test]
fn flags_answers_and_demands_are_the_specified_ones() {
    let host = HostId::from_bytes(uuid(2));
    assert_word(HostFlags::decode(0, host).with_cordon().encode());
    let answers = Answers::decode(0, 7).with(0, Answer::Accepted).with(14, Answer::DeclinedAsUnusable);
    assert_word(answers.encode());
    let by = HostSlot::new(5).expect("a slot");
    assert_word(Demand::Standing { by }.encode(7));
    assert_word(Demand::Heeded { by }.encode(7));
}

#[test]
fn a_protection_and_its_commits_are_the_specified_ones() {
    let guest = GuestId::from_bytes(uuid(5));
    let shape = ProtectionShape { guest, vcpus: 2, granules: 3, log_pages: 512 };
    assert_specified("protection", &shape.encode());
    let host = HostSlot::new(1).expect("a slot");
    let taken = 1_800_000_000_000_000_006;
    let commit = Commit { number: 2, pages: 3, taken, host, epoch: Epoch(7), index_crc: 0x0102_0304 };
    assert_specified("commit", &commit.encode());
    assert_specified("log entry", &LogEntry { page: 600, crc: 0x0506_0708 }.encode());
    assert_word(Standing::Active(2).encode());
    let settings = ProtectionSettings { interval: Duration::from_millis(25), output: OutputRule::Hold };
    assert_word(settings.encode());
}
