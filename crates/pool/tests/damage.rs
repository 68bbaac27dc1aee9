//! Files that are no pool, damaged pools: refused with the reason, never written, never a panic; found and mended by check.
#![cfg(not(loom))]

use nil_pool::format::header::{BadHeader, Header};
use nil_pool::format::layout::{BadLayout, HEADER_B, Layout};
use nil_pool::{
    Access, CapacityRequest, CheckReport, CreateOptions, Error, GRANULE, GuestId, GuestKind, GuestRequest, HostId,
    HostIdentity, HostKind, JobId, MemoryHome, Pool, Severity, Tag,
};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SIZE: u64 = 32 << 20;

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let path = directory.path().join("pool");
    (directory, path)
}

fn options(force: bool) -> CreateOptions {
    CreateOptions { size: Some(SIZE), force, ..CreateOptions::default() }
}

/// A pool with a tool's capacity and an agent's guest; the agent of this process is still alive.
fn furnished(path: &Path) -> Layout {
    let pool = Pool::create(path, &options(false)).expect("a new pool");
    let host = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
    let host = pool.join(&host).expect("membership");
    let request = CapacityRequest { label: "x".to_owned(), ..CapacityRequest::shared(Tag::random(), 4 << 20) };
    host.add_capacity(&request).expect("capacity");
    let vm = GuestRequest {
        name: "g".to_owned(),
        kind: GuestKind::Vm,
        memory_bytes: 4 << 20,
        home: MemoryHome::Pool,
        vcpus: 1,
        features: 0,
    };
    host.create_guest(&vm).expect("a guest").publish(host.slot()).expect("published");
    pool.header().layout
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("the file");
    file.write_all_at(bytes, offset).expect("written");
}

fn bytes_at<const N: usize>(path: &Path, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    File::open(path).expect("the file").read_exact_at(&mut bytes, offset).expect("read");
    bytes
}

/// Rewrites both header copies with a change and a right checksum.
fn with_header(path: &Path, change: impl Fn(&mut [u8; 4096])) {
    for at in [0, HEADER_B] {
        let mut bytes = bytes_at::<4096>(path, at);
        change(&mut bytes);
        let sum = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..].copy_from_slice(&sum.to_le_bytes());
        overwrite(path, at, &bytes);
    }
}

fn refusal(path: &Path) -> Error {
    let before = fs::read(path).expect("the file");
    let refusal = Pool::open(path, Access::ReadWrite).expect_err("no usable pool");
    assert!(before == fs::read(path).expect("the file"), "what is refused is not written to");
    refusal
}

fn reason(path: &Path) -> BadHeader {
    match refusal(path) {
        Error::NotAPool { reason, .. } => reason,
        other => panic!("refused for another reason: {other}"),
    }
}

fn check(path: &Path, repair: bool) -> CheckReport {
    Pool::open(path, Access::ReadWrite).expect("the pool").check(repair)
}

/// Check finds it, --repair mends it, and then nothing is wrong any more.
fn assert_mended(path: &Path, what: &str) {
    let found = check(path, false);
    assert!(
        found.findings.iter().any(|f| f.what.contains(what) && f.severity == Severity::Warning),
        "{what}: {found:#?}"
    );
    assert!(!found.is_clean());
    let repaired = check(path, true);
    assert!(repaired.is_clean() && repaired.findings.iter().any(|f| f.repaired), "{what}: {repaired:#?}");
    assert!(check(path, false).is_clean(), "{what}");
}

/// Check finds it and says that it cannot be mended; --repair leaves it alone.
fn assert_named(path: &Path, what: &str) {
    for repair in [false, true] {
        let found = check(path, repair);
        assert!(
            found.findings.iter().any(|f| f.what.contains(what) && f.severity == Severity::Error && !f.repaired),
            "{what}: {found:#?}"
        );
    }
}

#[test]
fn foreign_files_are_refused() {
    let (_directory, path) = place();
    for contents in [vec![], vec![0; 100], vec![0xA5; 4096], vec![0x5A; 32 << 20]] {
        fs::write(&path, contents).expect("a file");
        assert_eq!(reason(&path), BadHeader::Foreign);
    }
}

#[test]
fn a_newer_version_and_unknown_features_are_refused_by_name() {
    let (_directory, path) = place();
    furnished(&path);
    with_header(&path, |header| header[8] = 2);
    assert_eq!(reason(&path), BadHeader::Version(2));
    with_header(&path, |header| (header[8], header[48]) = (1, 2));
    assert_eq!(reason(&path), BadHeader::Incompat(2));
    // Neither without the other, and not without the lines.
    for (incompat, coherence) in [(1, 0), (0, 1), (1, 2)] {
        with_header(&path, |header| (header[48], header[12]) = (incompat, coherence));
        assert_eq!(reason(&path), BadHeader::Field("coherence"));
    }
    with_header(&path, |header| (header[48], header[12]) = (1, 1));
    assert_eq!(reason(&path), BadHeader::Layout(BadLayout::Shape("host line")));
}

#[test]
fn unknown_read_only_features_allow_reading_only() {
    let (_directory, path) = place();
    furnished(&path);
    with_header(&path, |header| (header[32], header[40]) = (0x80, 0x40));
    assert!(matches!(refusal(&path), Error::ReadOnlyFeatures { features: 0x40, .. }));
    let pool = Pool::open(&path, Access::ReadOnly).expect("readable");
    assert!(pool.check(false).is_clean());
    assert_eq!(pool.guests().len(), 1);
}

#[test]
fn a_truncated_pool_is_refused_wherever_it_ends() {
    let (_directory, path) = place();
    furnished(&path);
    for size in [SIZE - 1, SIZE / 2, 5 << 20] {
        File::options().write(true).open(&path).expect("the file").set_len(size).expect("truncated");
        assert!(matches!(refusal(&path), Error::Truncated { .. }), "{size}");
    }
    for size in [3 << 20, 1 << 20, 4096, 100, 0] {
        File::options().write(true).open(&path).expect("the file").set_len(size).expect("truncated");
        assert!(matches!(refusal(&path), Error::Truncated { .. } | Error::NotAPool { .. }), "{size}");
    }
}

#[test]
fn a_header_whose_tables_lie_is_refused() {
    let (_directory, path) = place();
    furnished(&path);
    let sound = bytes_at::<4096>(&path, 0);
    for field in (56..232).step_by(4).filter(|field| !(72..96).contains(field)) {
        for value in [u32::MAX, 1, 0x8000_0000] {
            let mut forged = sound;
            forged[field..field + 4].copy_from_slice(&value.to_le_bytes());
            let sum = crc32c::crc32c(&forged[..4092]);
            forged[4092..].copy_from_slice(&sum.to_le_bytes());
            if forged[..4092] != sound[..4092] {
                assert!(Header::decode(&forged).is_err(), "field {field} = {value:#x}");
            }
        }
    }
}

#[test]
fn one_damaged_header_copy_is_enough_and_is_mended() {
    let (_directory, path) = place();
    furnished(&path);
    for at in [0, HEADER_B] {
        overwrite(&path, at + 300, b"damage");
        assert_mended(&path, "not valid: its checksum is wrong");
        overwrite(&path, at, &[0; 4096]);
        assert_mended(&path, "not valid");
    }
    overwrite(&path, 300, b"damage");
    overwrite(&path, HEADER_B + 300, b"damage");
    assert_eq!(reason(&path), BadHeader::Checksum);
}

#[test]
fn what_cannot_hold_a_pool_is_refused_by_name() {
    let (directory, path) = place();
    let create = |path: &Path| Pool::create(path, &options(false));
    assert!(matches!(create(directory.path()), Err(Error::WrongKind { what: "a directory", .. })));
    assert!(matches!(Pool::open(directory.path(), Access::ReadOnly), Err(Error::WrongKind { .. })));
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    assert!(matches!(create(&pipe), Err(Error::WrongKind { what: "a pipe", .. })));
    assert!(matches!(create(Path::new("/dev/null")), Err(Error::WrongKind { .. })));
    assert!(matches!(
        create(Path::new("/proc/version")),
        Err(Error::System { .. } | Error::NoMmap { .. } | Error::ReadOnlyFile { .. })
    ));
    assert!(matches!(create(&directory.path().join("no/where")), Err(Error::System { .. })));
    fs::write(&path, [7; 100]).expect("a file");
    assert!(matches!(create(&path), Err(Error::ForeignData { .. })));
    assert_eq!(fs::read(&path).expect("the file"), [7; 100]);
    let mut permissions = path.metadata().expect("the file").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o444);
    fs::set_permissions(&path, permissions).expect("read-only");
    assert!(matches!(Pool::create(&path, &options(true)), Err(Error::ReadOnlyFile { .. } | Error::System { .. })));
}

#[test]
fn a_failed_creation_leaves_no_file() {
    let (_directory, path) = place();
    for size in [None, Some(0), Some(1), Some(4 << 20), Some(SIZE + 1), Some(u64::MAX)] {
        let options = CreateOptions { size, ..CreateOptions::default() };
        assert!(Pool::create(&path, &options).is_err(), "{size:?}");
        assert!(!path.exists(), "{size:?}");
    }
    let label = CreateOptions { label: "x".repeat(65), ..options(false) };
    assert!(matches!(Pool::create(&path, &label), Err(Error::BadText(_))));
    assert!(!path.exists());
}

#[test]
fn a_pool_is_formatted_anew_only_by_force_and_never_under_a_live_host() {
    let (_directory, path) = place();
    let first = Pool::create(&path, &options(false)).expect("a new pool");
    assert!(matches!(Pool::create(&path, &options(false)), Err(Error::AlreadyPool { id, .. }) if id == first.id()));
    let second = Pool::create(&path, &options(true)).expect("a new pool");
    assert_ne!(first.id(), second.id());
    let host = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
    let member = second.join(&host).expect("membership");
    assert!(matches!(Pool::create(&path, &options(true)), Err(Error::InUse { .. })));
    member.leave().expect("left");
    Pool::create(&path, &options(true)).expect("a new pool");
}

#[test]
fn damaged_records_are_named_and_listed_as_damaged() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    overwrite(&path, layout.capacities.at(0) + 20, b"!");
    assert_named(&path, "its record is damaged");
    let pool = Pool::open(&path, Access::ReadWrite).expect("the pool");
    assert!(pool.capacities()[0].damage.is_some());
    overwrite(&path, layout.guests.at(0) + 4096 + 70, b"!");
    assert_named(&path, "its record is damaged");
    assert!(pool.guests()[0].damage.is_some());
    assert!(pool.find_guest("g").is_none());
    overwrite(&path, layout.hosts.at(0) + 64, b"!");
    assert_named(&path, "its record is damaged");
    assert!(pool.hosts()[0].damage.is_some());
}

#[test]
fn a_damaged_slot_word_of_a_capacity_is_mended_from_record_and_owner_map() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    overwrite(&path, layout.capacity_words.at(0), &[0x77; 8]);
    assert_mended(&path, "its slot word");
}

#[test]
fn owner_words_that_contradict_the_records_are_mended() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    let first = layout.first_data_granule();
    let owned = (first..layout.owners.count as usize)
        .find(|granule| bytes_at::<8>(&path, layout.owners.at(*granule)) != [0; 8]);
    let owned = owned.expect("something is allocated");
    let word = bytes_at::<8>(&path, layout.owners.at(owned));
    overwrite(&path, layout.owners.at(owned), &[0; 8]);
    assert_mended(&path, "not marked as its own");
    assert_eq!(bytes_at::<8>(&path, layout.owners.at(owned)), word);
    let last = layout.owners.count as usize - 1;
    overwrite(&path, layout.owners.at(last), &word);
    assert_mended(&path, "does not list them");
    overwrite(&path, layout.owners.at(last), &[0xEE; 8]);
    assert_mended(&path, "impossible owner");
    overwrite(&path, layout.owners.at(0), &[0; 8]);
    assert_mended(&path, "not marked so");
}

#[test]
fn a_granule_goes_back_with_its_contents_to_the_capacity_that_lists_it() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    let pool = Pool::open(&path, Access::ReadWrite).expect("the pool");
    let granules: Vec<_> = pool.capacities().iter().map(|capacity| capacity.extents[0].first as usize).collect();
    overwrite(&path, granules[0] as u64 * GRANULE, b"contents");
    overwrite(&path, layout.owners.at(granules[0]), &bytes_at::<8>(&path, layout.owners.at(granules[1])));
    assert_mended(&path, "not marked as its own");
    assert_eq!(&bytes_at::<8>(&path, granules[0] as u64 * GRANULE), b"contents");
}

#[test]
fn a_granule_in_the_records_of_two_capacities_is_named_and_left_alone() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    let [first, second] = [0, 1].map(|slot| bytes_at::<960>(&path, layout.capacities.at(slot)));
    let mut forged = second;
    forged[352..360].copy_from_slice(&first[352..360]);
    let sum = crc32c::crc32c(&forged[..956]);
    forged[956..].copy_from_slice(&sum.to_le_bytes());
    overwrite(&path, layout.capacities.at(1), &forged);
    assert_named(&path, "belong to another capacity");
}

#[test]
fn a_tag_that_is_missing_in_the_index_or_in_the_wrong_place_is_mended() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    let words = 0..layout.tags.count as usize;
    let entered = words.clone().find(|word| bytes_at::<8>(&path, layout.tags.at(*word)) != [0; 8]).expect("an entry");
    let entry = bytes_at::<8>(&path, layout.tags.at(entered));
    overwrite(&path, layout.tags.at(entered), &[0; 8]);
    assert_mended(&path, "is not in the index");
    let far = (entered + layout.tags.count as usize / 2) % layout.tags.count as usize;
    let free = (far..).find(|word| bytes_at::<8>(&path, layout.tags.at(*word)) == [0; 8]).expect("a free word");
    overwrite(&path, layout.tags.at(free), &entry);
    let report = check(&path, true);
    assert!(report.is_clean(), "{report:#?}");
    overwrite(&path, layout.tags.at(free), &[0xFF; 8]);
    assert_mended(&path, "no possible capacity");
}

#[test]
fn words_of_guests_that_contradict_are_found() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    overwrite(&path, layout.guests.at(3), &0x0100_0FFF_0000_0001_u64.to_le_bytes());
    assert_mended(&path, "nobody is there");
    overwrite(&path, layout.guests.at(0) + 64, &[0x99; 8]);
    assert_mended(&path, "its arm word");
    overwrite(&path, layout.capacities.at(1) + 960, &[0; 8]);
    assert_mended(&path, "not marked as used by it");
    overwrite(&path, layout.guests.at(0), &[0x99; 8]);
    assert_named(&path, "its ownership word");
    overwrite(&path, layout.guests.at(0), &0x0100_9FFF_0000_0001_u64.to_le_bytes());
    assert_named(&path, "there is no host h9");
}

/// A pool of the first versions, which knew nothing of reports: the bit and the descriptor are zero.
#[test]
fn a_pool_without_a_ring_of_reports_is_used_as_ever_and_keeps_none() {
    let (_directory, path) = place();
    furnished(&path);
    with_header(&path, |header| {
        header[32] = 0;
        header[296..312].fill(0);
    });
    let pool = Pool::open(&path, Access::ReadWrite).expect("the pool");
    assert!(pool.check(true).is_clean() && !pool.keeps_reports());
    let host = pool.join(&HostIdentity::tool()).expect("membership");
    let refusal = host.keep_report(JobId::random(), GuestId::random(), b"{}").expect_err("no room");
    assert!(matches!(refusal, Error::NoReports { .. }), "{refusal}");
    assert_eq!((pool.reports(), pool.report(JobId::random())), (Vec::new(), None));
    host.add_capacity(&CapacityRequest::private(GRANULE)).expect("capacity");
    assert!(pool.check(false).is_clean());
}

#[test]
fn a_ring_of_reports_that_would_lie_in_another_table_is_ignored_and_noted() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    for offset in [0, layout.hosts.offset, layout.guests.offset, u64::MAX - 4095] {
        with_header(&path, |header| header[296..304].copy_from_slice(&offset.to_le_bytes()));
        let pool = Pool::open(&path, Access::ReadWrite).expect("the pool");
        let report = pool.check(true);
        assert!(report.is_clean(), "{report:#?}");
        assert!(report.findings.iter().any(|found| found.what.contains("and not where")), "{report:#?}");
        assert!(!pool.keeps_reports() && pool.reports().is_empty());
    }
}

#[test]
fn damaged_reports_are_left_out_noted_and_make_room() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    let ring = layout.reports.expect("a new pool has reports");
    let pool = Pool::open(&path, Access::ReadWrite).expect("the pool");
    let host = pool.join(&HostIdentity::tool()).expect("membership");
    let [kept, torn, misplaced] = [(); 3].map(|()| {
        let job = JobId::random();
        host.keep_report(job, GuestId::random(), b"{}").expect("kept");
        job
    });
    overwrite(&path, ring.at(2) + 70, b"!");
    // A number that no report can have there, and a word that is none.
    overwrite(&path, ring.at(3), &(0x2FFF_0000_0000_0000_u64 | 4).to_le_bytes());
    overwrite(&path, ring.at(9), &[0x77; 8]);
    assert_eq!(pool.report(torn).or(pool.report(misplaced)), None);
    assert_eq!(pool.reports().iter().map(|report| report.job).collect::<Vec<_>>(), [kept]);
    let found = check(&path, false);
    assert!(found.is_clean());
    let notes = |report: &CheckReport| report.findings.iter().filter(|f| f.place.starts_with("report ")).count();
    assert_eq!(notes(&found), 3, "{found:#?}");
    assert!(check(&path, true).findings.iter().any(|found| found.repaired));
    assert_eq!(notes(&check(&path, false)), 0);
    for _ in 0..ring.count {
        host.keep_report(JobId::random(), GuestId::random(), b"{}").expect("kept");
    }
    assert_eq!(pool.reports().len(), ring.count as usize);
}

#[test]
fn an_address_that_is_none_is_damage() {
    let (_directory, path) = place();
    let layout = furnished(&path);
    let record = layout.hosts.at(0) + 64;
    let mut bytes = bytes_at::<192>(&path, record);
    bytes[128..134].copy_from_slice(b"a:port");
    let sum = crc32c::crc32c(&bytes[..188]);
    bytes[188..].copy_from_slice(&sum.to_le_bytes());
    overwrite(&path, record, &bytes);
    assert_named(&path, "'address' has an impossible value");
}
