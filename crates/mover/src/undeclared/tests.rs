use super::*;
use proptest::prelude::*;

/// Where the guest of these tests lies.
const MEMORY: Range<u64> = 64 << 20..128 << 20;
const KIB: u64 = 1 << 10;

fn buffer(ring: u32, range: Range<u64>) -> RingBuffer {
    RingBuffer { ring, index: 0, range }
}

fn at(offset: u64, bytes: u64) -> Range<u64> {
    MEMORY.start + offset..MEMORY.start + offset + bytes
}

fn counted(pinned: u64, locked: u64) -> Counters {
    Counters { pinned, locked }
}

/// Offsets and lengths of what is found.
fn found(declared: &[Range<u64>], buffers: &[RingBuffer], counters: Counters) -> Vec<(Option<u64>, u64)> {
    let found = judge(&MEMORY, declared, buffers, counters, &[]);
    found.pins.iter().map(|pin| (pin.offset, pin.bytes)).collect()
}

#[test]
fn nothing_pinned_is_nothing_found() {
    assert_eq!(judge(&MEMORY, &[], &[], counted(0, 0), &[]), Undeclared::default());
}

#[test]
fn a_buffer_that_nobody_declared_is_found_where_it_lies_and_with_its_holder() {
    let found = judge(&MEMORY, &[], &[buffer(7, at(4096, 8192))], counted(8192, 0), &[]);
    let holder = "io_uring (descriptor 7, registered buffer 0)".to_owned();
    assert_eq!(found.pins, [UndeclaredPin { offset: Some(4096), bytes: 8192, holder }]);
    assert_eq!(
        found.pins[0].to_string(),
        "io_uring (descriptor 7, registered buffer 0) has pinned 8 KiB at 0x1000 of the guest's memory"
    );
}

#[test]
fn of_a_buffer_only_what_is_not_declared_and_the_guests_counts() {
    let over_the_edge = buffer(3, MEMORY.start - 8192..MEMORY.start + 16384);
    let declared = [at(4096, 4096)];
    let parts = found(&declared, &[over_the_edge], counted(24576, 0));
    assert_eq!(parts, [(Some(0), 4096), (Some(8192), 8192)]);
    assert_eq!(found(&[at(0, 8192)], &[buffer(3, at(0, 8192))], counted(8192, 0)), []);
    assert_eq!(found(&[], &[buffer(3, 0x1000..0x9000)], counted(32768, 0)), []);
}

#[test]
fn what_the_kernel_counts_and_nobody_explains_is_somewhere() {
    assert_eq!(found(&[], &[], counted(64 * KIB, 0)), [(None, 64 * KIB)]);
    let known = buffer(3, at(0, 8192));
    assert_eq!(found(&[], &[known], counted(BLOCK + 4096, 0)), [(Some(0), 8192), (None, 4096)]);
}

#[test]
fn a_piece_of_a_huge_page_may_count_as_the_whole_page() {
    assert_eq!(found(&[at(4096, 8192)], &[buffer(3, at(4096, 8192))], counted(BLOCK, 0)), []);
    assert_eq!(found(&[at(4096, 8192)], &[], counted(BLOCK, 0)), []);
    let across = at(BLOCK - 4096, 8192);
    assert_eq!(found(std::slice::from_ref(&across), &[buffer(3, across.clone())], counted(2 * BLOCK, 0)), []);
}

#[test]
fn a_buffer_of_two_rings_counts_twice_and_one_declared_as_well_does_not() {
    let shared = at(0, 8192);
    let rings = [buffer(3, shared.clone()), buffer(4, shared.clone())];
    assert_eq!(found(std::slice::from_ref(&shared), &rings, counted(2 * BLOCK, 0)), []);
    assert_eq!(found(std::slice::from_ref(&shared), &rings[..1], counted(2 * BLOCK, 0)), [(None, BLOCK)]);
}

#[test]
fn vfio_counts_as_locked_and_is_told_from_mlock() {
    let locked = [at(0, 64 * KIB)];
    let by_mlock = judge(&MEMORY, &[], &[], counted(0, 64 * KIB), &locked);
    assert_eq!(by_mlock, Undeclared { pins: vec![], locked: vec![LockedMemory { offset: 0, bytes: 64 * KIB }] });
    let by_both = judge(&MEMORY, &[], &[], counted(4096, 96 * KIB), &locked);
    let pins: Vec<_> = by_both.pins.iter().map(|pin| (pin.bytes, pin.holder.contains("VFIO"))).collect();
    assert_eq!(pins, [(32 * KIB, true), (4096, false)]);
    let declared = judge(&MEMORY, &[at(BLOCK, 32 * KIB)], &[], counted(0, 96 * KIB), &locked);
    assert_eq!(declared.pins, []);
}

#[test]
fn locked_memory_outside_the_guests_is_not_told_of() {
    let outside = 0x1000..0x9000;
    assert_eq!(judge(&MEMORY, &[], &[], counted(0, 32 * KIB), &[outside]), Undeclared::default());
}

proptest! {
    #[test]
    fn what_is_left_of_a_range_and_what_is_taken_out_make_it_up(
        start in 0u64..40, length in 0u64..40, others in proptest::collection::vec((0u64..60, 0u64..20), 0..5)
    ) {
        let others: Vec<_> = others.iter().map(|&(start, length)| start..start + length).collect();
        let parts = without(start..start + length, &others);
        for point in 0..100 {
            let expected = (start..start + length).contains(&point) && !others.iter().any(|other| other.contains(&point));
            prop_assert_eq!(parts.iter().filter(|part| part.contains(&point)).count(), usize::from(expected));
        }
        prop_assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
