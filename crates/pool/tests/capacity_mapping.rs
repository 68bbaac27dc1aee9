//! Capacities mapped: which parts have contents, and the same bytes at two addresses.
#![cfg(not(loom))]

use nil_pool::{
    BackingKind, CapacityMapping, CapacityRequest, CreateOptions, Error, GRANULE, HostId, HostIdentity, HostKind,
    Membership, Pool, Tag,
};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tempfile::TempDir;

const PAGE: usize = 4096;
const STEP: usize = 2 << 20;

fn member(directory: &TempDir) -> Membership {
    let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
    let pool = Pool::create(&directory.path().join("pool"), &options).expect("a new pool");
    let identity = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
    pool.join(&identity).expect("membership")
}

fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs")
}

fn add(member: &Membership, granules: u64) -> Tag {
    let tag = Tag::random();
    member.add_capacity(&CapacityRequest::shared(tag, granules * GRANULE)).expect("capacity").tag
}

/// A capacity of four granules in two pieces, because another one lies in between.
fn two_pieces(member: &Membership) -> Tag {
    let tags = [add(member, 2), add(member, 1)];
    let free = member.pool().usage().free / GRANULE;
    let rest = add(member, free);
    member.release_capacity(tags[0]).expect("released");
    member.release_capacity(rest).expect("released");
    let behind = add(member, free - 2);
    let tag = add(member, 4);
    member.release_capacity(behind).expect("released");
    assert_eq!(member.pool().find_capacity(tag).expect("the capacity").extents.len(), 2);
    tag
}

fn set(mapping: &CapacityMapping, offset: usize, byte: u8) {
    assert!(offset < mapping.len());
    // SAFETY: the byte lies in the mapping, and only this thread uses it.
    unsafe { mapping.as_ptr().add(offset).write_volatile(byte) }
}

fn get(address: *const u8, offset: usize) -> u8 {
    // SAFETY: callers pass mappings that are longer than `offset`, which only this thread uses.
    unsafe { address.add(offset).read_volatile() }
}

fn blocks(path: &Path) -> u64 {
    path.metadata().expect("the pool's file").blocks()
}

#[test]
fn what_was_never_written_is_no_data() {
    let directory = directory();
    let host = member(&directory);
    let mapping = host.pool().map_capacity(two_pieces(&host)).expect("a mapping");
    assert_eq!(mapping.data_ranges(), []);
    set(&mapping, STEP + 1, 1);
    set(&mapping, 3 * STEP - 1, 2);
    set(&mapping, 3 * STEP, 3);
    for byte in [STEP + 1, 3 * STEP - 1, 3 * STEP] {
        assert!(mapping.data_ranges().iter().any(|range| range.contains(&byte)), "byte {byte:#x}");
    }
    assert!(mapping.data_ranges().iter().all(|range| range.start >= STEP), "the first granule is a hole");
    assert!(!mapping.has_data(0..STEP) && mapping.has_data(0..STEP + 2) && mapping.has_data(2 * STEP..4 * STEP));
    assert!(mapping.data_ranges().windows(2).all(|pair| pair[0].end < pair[1].start), "ascending and merged");
}

#[test]
fn what_a_shorter_file_has_lost_counts_as_data_and_is_no_hole() {
    let directory = directory();
    let host = member(&directory);
    let mapping = host.pool().map_capacity(add(&host, 8)).expect("a mapping");
    set(&mapping, STEP, 1);
    let cut = mapping.source_at(6 * STEP).pool_offset.0;
    let file = std::fs::File::options().write(true).open(host.pool().path()).expect("the pool's file");
    file.set_len(cut).expect("a shorter file");
    assert_eq!(mapping.data_ranges().last(), Some(&(6 * STEP..8 * STEP)));
    assert!(mapping.has_data(5 * STEP..7 * STEP) && mapping.has_data(7 * STEP..8 * STEP));
    assert!(!mapping.has_data(3 * STEP..6 * STEP));
}

#[test]
fn holes_stay_holes_when_data_is_populated() {
    let directory = directory();
    let host = member(&directory);
    let tag = add(&host, 8);
    let mapping = host.pool().map_capacity(tag).expect("a mapping");
    set(&mapping, 3 * STEP, 1);
    let (before, data) = (blocks(host.pool().path()), mapping.data_ranges());
    let again = host.pool().map_capacity(tag).expect("a mapping");
    again.populate_data().expect("memory");
    assert_eq!(blocks(host.pool().path()), before);
    assert_eq!(again.data_ranges(), data);
    again.populate().expect("memory");
    assert_eq!(again.data_ranges(), std::slice::from_ref(&(0..8 * STEP)), "populating everything fills the holes");
}

#[test]
fn the_same_bytes_show_at_a_second_address() {
    let directory = directory();
    let host = member(&directory);
    let mapping = host.pool().map_capacity(two_pieces(&host)).expect("a mapping");
    let other = host.pool().map_capacity(add(&host, 4)).expect("a mapping");
    // From the middle of the first piece to the middle of the second, in pages that are no granules.
    let (offset, bytes) = (STEP + 3 * PAGE, 2 * STEP - PAGE);
    let address = other.as_ptr().wrapping_add(5 * PAGE);
    // SAFETY: the bytes belong to `other`, into which nothing refers, and which unmaps them.
    unsafe { mapping.map_onto(offset, bytes, address).expect("mapped") };
    for at in [0, STEP - 4 * PAGE, STEP, bytes - 1] {
        set(&mapping, offset + at, 7);
        assert_eq!(get(address, at), 7, "byte {at:#x}");
        set(&other, 5 * PAGE + at, 8);
        assert_eq!(get(mapping.as_ptr(), offset + at), 8, "byte {at:#x}");
    }
    set(&mapping, offset - 1, 9);
    set(&mapping, offset + bytes, 9);
    assert_eq!([get(address.wrapping_sub(1), 0), get(address, bytes)], [0, 0], "what lies around is as it was");
}

#[test]
fn parts_outside_the_mapping_and_parts_of_pages_are_refused() {
    let directory = directory();
    let host = member(&directory);
    let (mapping, other) = (add(&host, 1), add(&host, 1));
    let [mapping, other] = [mapping, other].map(|tag| host.pool().map_capacity(tag).expect("a mapping"));
    for (offset, bytes, shift) in [(0, 2 * STEP, 0), (STEP, PAGE, 0), (usize::MAX, PAGE, 0), (1, PAGE, 0), (0, 1, 0)]
        .into_iter()
        .chain([(0, 0, 0), (0, PAGE, 1)])
    {
        // SAFETY: nothing refers into `other`; and nothing is mapped.
        let refused = unsafe { mapping.map_onto(offset, bytes, other.as_ptr().wrapping_add(shift)) };
        assert!(matches!(refused, Err(Error::OutsideMapping { .. })), "{offset:#x}+{bytes:#x} at +{shift}");
    }
}

#[test]
fn a_byte_is_named_by_pool_capacity_and_place() {
    let directory = directory();
    let host = member(&directory);
    let tag = two_pieces(&host);
    let mapping = host.pool().map_capacity(tag).expect("a mapping");
    assert_eq!(mapping.kind(), BackingKind::File);
    let extents = host.pool().find_capacity(tag).expect("the capacity").extents;
    let source = mapping.source_at(2 * STEP + 5);
    assert_eq!((source.pool, source.path.as_path()), (host.pool().id(), host.pool().path()));
    assert_eq!((source.capacity, source.offset), (tag, 2 * GRANULE + 5));
    assert_eq!(source.pool_offset.0, u64::from(extents[1].first) * GRANULE + 5);
    let sentence = source.to_string();
    assert!(sentence.contains(&tag.to_string()) && sentence.contains("/pool"), "{sentence}");
}
