//! Moves under threads that store into every page as fast as they can.

mod access;
mod storm;

use super::*;
use crate::chunk::HOLDER;
use crate::dram::failing;
use crate::lost::LostMemory;
use crate::plan::{Budget, MoveRange, Pace};
use crate::userfault::Userfault;
use nil_pool::{BadPlacement, Epoch, MemoryHome, Ownership, PinId, PinRequest, Place, Placed};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use storm::{Ground, HugeFiles, Mount, Storm};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn fast(direction: Direction) -> MovePlan {
    MovePlan { budget: Budget { pace: Pace::Fast, bandwidth: None }, ..MovePlan::of_everything(direction) }
}

fn movement(ground: &Ground, direction: Direction) -> Move {
    Move::new(Arc::clone(&ground.memory), fast(direction), Vec::new()).expect("a move")
}

fn run(movement: &Move) -> MoveReport {
    let report = movement.run(&MoveControl::default(), |_| ()).expect("a move that ends");
    assert_eq!(report.outcome, MoveOutcome::Done);
    report
}

fn both_ways(ground: &Ground, shape: impl Fn(Move) -> Move) {
    for direction in [Direction::Decouple, Direction::Recouple] {
        run(&shape(movement(ground, direction)));
    }
}

#[test]
fn no_store_is_lost_in_a_hundred_round_trips() {
    let ground = Ground::in_dram(64 * MIB);
    let storm = Storm::over(&ground, 2);
    for _ in 0..100 {
        both_ways(&ground, |movement| movement);
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn no_store_is_lost_whatever_the_size_of_chunks() {
    let ground = Ground::in_dram(16 * MIB);
    let storm = Storm::over(&ground, 3);
    for bytes in (12..=21).map(|shift| 1 << shift) {
        both_ways(&ground, |movement| movement.in_chunks_of(bytes));
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn no_store_is_lost_behind_mprotect() {
    let ground = Ground::in_dram(16 * MIB);
    let storm = Storm::over(&ground, 3);
    for bytes in [2 * MIB, 256 * KIB, 16 * KIB, 2 * MIB] {
        both_ways(&ground, |movement| movement.by_mprotect().in_chunks_of(bytes));
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn without_protection_stores_are_lost_and_the_test_sees_it() {
    let ground = Ground::in_dram(64 * MIB);
    let storm = Storm::over(&ground, 2);
    for _ in 0..20 {
        both_ways(&ground, Move::unprotected);
    }
    assert!(storm.lost_stores() > 0, "nothing was lost without any protection");
}

#[test]
fn untouched_and_zero_memory_is_not_copied_and_takes_no_room_in_the_pool() {
    let ground = Ground::in_dram(16 * MIB);
    ground.word(5 * KIB).store(7, Ordering::Relaxed);
    ground.word(2 * MIB).store(0, Ordering::Relaxed);

    let there = run(&movement(&ground, Direction::Decouple));
    assert_eq!((there.copied_bytes, there.zero_bytes, there.untouched_bytes), (2 << 20, 2 << 20, 12 << 20));
    let capacity = ground.control.map_memory().expect("its capacity");
    assert_eq!(capacity.data_ranges(), [Range { start: 0, end: 2 * MIB }]);

    let back = run(&movement(&ground, Direction::Recouple));
    assert_eq!((back.copied_bytes, back.zero_bytes, back.untouched_bytes), (2 << 20, 0, 14 << 20));
    assert_eq!(capacity.data_ranges(), [Range { start: 0, end: 2 * MIB }], "looking at holes has filled them");
    assert_eq!(ground.word(5 * KIB).load(Ordering::Relaxed), 7);
}

#[test]
fn memory_that_became_zero_is_zero_in_the_pool_too() {
    let ground = Ground::in_dram(4 * MIB);
    ground.word(2 * MIB).store(7, Ordering::Relaxed);
    both_ways(&ground, |movement| movement);
    ground.word(2 * MIB).store(0, Ordering::Relaxed);
    run(&movement(&ground, Direction::Decouple));
    assert_eq!(ground.word(2 * MIB).load(Ordering::Relaxed), 0);
}

#[test]
fn a_guest_that_starts_in_the_pool_comes_to_dram_and_goes_back() {
    let ground = Ground::in_pool(8 * MIB);
    let storm = Storm::over(&ground, 1);
    assert_eq!(ground.memory.placement().away(), 0);
    run(&movement(&ground, Direction::Recouple));
    assert_eq!(ground.memory.placement().summary().local, 4);
    run(&movement(&ground, Direction::Decouple));
    assert_eq!((ground.memory.placement().away(), storm.lost_stores()), (0, 0));
}

#[test]
fn a_capacity_that_the_guest_has_left_can_be_released_and_made_anew() {
    let ground = Ground::in_dram(4 * MIB);
    ground.word(0).store(7, Ordering::Relaxed);
    both_ways(&ground, |movement| movement);
    ground.host.unplace_memory(&ground.control).expect("nothing is in it");
    Move::new(Arc::clone(&ground.memory), fast(Direction::Decouple), Vec::new()).expect_err("there is no room for it");
    ground.host.place_memory(&ground.control).expect("a capacity");
    run(&movement(&ground, Direction::Decouple));
    assert_eq!(ground.word(0).load(Ordering::Relaxed), 7);
}

#[test]
fn only_memory_that_is_wholly_in_the_pool_can_be_closed() {
    let ground = Ground::in_dram(8 * MIB);
    let hole = ground.memory.close().expect_err("it is local");
    assert!(hole.to_string().contains("8 MiB in all are not in the pool"), "{hole}");
    let first_half = MovePlan { range: Some(MoveRange { offset: 0, bytes: 4 << 20 }), ..fast(Direction::Decouple) };
    run(&Move::new(Arc::clone(&ground.memory), first_half, Vec::new()).expect("a move"));
    assert_eq!(ground.memory.close().expect_err("half of it is local").guest_address, 4 << 20);
    run(&movement(&ground, Direction::Decouple));
    drop(ground.memory.close().expect("all of it is in the pool"));
}

#[test]
fn ranges_that_are_not_granules_of_the_memory_are_refused() {
    let ground = Ground::in_dram(8 * MIB);
    for (offset, bytes) in [(4096, 2 << 20), (0, 4096), (0, 0), (8 << 20, 2 << 20), (u64::MAX - (2 << 20) + 1, 2 << 20)]
    {
        let plan = MovePlan { range: Some(MoveRange { offset, bytes }), ..fast(Direction::Decouple) };
        let refusal = Move::new(Arc::clone(&ground.memory), plan, Vec::new()).expect_err("a bad range");
        assert!(matches!(refusal, Error::BadRange { .. }), "{refusal}");
    }
}

#[test]
fn a_move_that_cannot_begin_leaves_the_memory_to_others() {
    let ground = Ground::in_pool(4 * MIB);
    let nowhere = MovePlan { node: Some(1023), ..fast(Direction::Recouple) };
    let movement = Move::new(Arc::clone(&ground.memory), nowhere, Vec::new()).expect("a move");
    let error = movement.run(&MoveControl::default(), |_| ()).expect_err("there is no such node");
    assert!(matches!(error, Error::Numa(_)), "{error}");
    both_ways(&Ground::in_dram(4 * MIB), |movement| movement);
    drop(ground.memory.close().expect("all of it is in the pool still"));
}

#[test]
fn what_a_guest_stores_into_most_goes_to_the_pool_last() {
    let ground = Ground::in_dram(32 * MIB);
    for granule in 0..16 {
        ground.word(granule * 2 * MIB).store(7, Ordering::Relaxed);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let storing = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for page in 0..512 {
                    ground.word(page * 4 * KIB).fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let this_thread = rustix::thread::gettid();
        let control = MoveControl::default();
        control.set_bandwidth(Some(100 << 20));
        let plan = fast(Direction::Decouple);
        let movement = Move::new(Arc::clone(&ground.memory), plan, vec![this_thread]).expect("a move");
        let moved = movement.run(&control, |progress| {
            if progress.done_bytes >= 16 << 20 {
                control.cancel();
            }
        });
        stop.store(true, Ordering::Relaxed);
        storing.join().expect("a thread that ends");
        assert_eq!(moved.expect("a move that ends").outcome, MoveOutcome::Cancelled);
    });
    let hot = ground.memory.placement().get(0).expect("a sound word");
    assert!(hot.heat > 0 && matches!(hot.place, Place::Local { .. }), "{hot:?}");
    assert!(ground.memory.placement().summary().pooled >= 8);
}

/// A pin of a page of granule 1.
fn pin(ground: &Ground, owner: &str) -> PinId {
    let (owner, reason) = (owner.to_owned(), "ring buffer".to_owned());
    let request = PinRequest { offset: (2 << 20) + 8192, bytes: 100, owner, reason, host: ground.host.slot() };
    ground.memory.pins().take(&request).expect("a pin")
}

#[test]
fn a_pin_stalls_the_move_by_name_until_it_is_released() {
    for direction in [Direction::Decouple, Direction::Recouple] {
        let ground = if direction == Direction::Decouple { Ground::in_dram(8 * MIB) } else { Ground::in_pool(8 * MIB) };
        let mut held = Some(pin(&ground, "virtio-net0"));
        let mut said = Vec::new();
        let report = movement(&ground, direction).run(&MoveControl::default(), |progress| {
            let Some(stall) = &progress.stall else { return };
            assert_eq!((progress.done_bytes, progress.total_bytes), (6 << 20, 8 << 20));
            said.push(stall.to_string());
            if let Some(pin) = held.take() {
                ground.memory.pins().release(pin).expect("it is held");
            }
        });
        assert_eq!(report.expect("a move that ends").outcome, MoveOutcome::Done);
        let sentence = "4 KiB of memory at guest address 0x202000 cannot move: virtio-net0 has pinned it (ring buffer)";
        assert_eq!(said.first().map(String::as_str), Some(sentence));
    }
}

#[test]
fn a_stall_that_lasts_too_long_ends_the_move_and_what_has_moved_stays_moved() {
    let ground = Ground::in_dram(8 * MIB);
    pin(&ground, "virtio-net0");
    let plan = MovePlan { stall_timeout_us: 10_000, ..fast(Direction::Decouple) };
    let movement = Move::new(Arc::clone(&ground.memory), plan, Vec::new()).expect("a move");
    let report = movement.run(&MoveControl::default(), |_| ()).expect("a move that ends");
    assert!(matches!(report.outcome, MoveOutcome::Stalled(Stall { guest_address: 0x20_2000, .. })), "{report:?}");
    assert!(report.stalled_us >= 10_000, "{report:?}");
    let summary = ground.memory.placement().summary();
    assert_eq!((summary.pooled, summary.local), (3, 1));
}

#[test]
fn what_is_held_comes_back_during_a_decouple_and_goes_when_it_is_let_go() {
    let ground = Ground::in_dram(16 * MIB);
    let storm = Storm::over(&ground, 1);
    let mut held = None;
    let mut let_go = false;
    let decouple = movement(&ground, Direction::Decouple);
    let slowly = MoveControl::default();
    slowly.set_bandwidth(Some(50 << 20));
    let report = decouple.run(&slowly, |progress| {
        if progress.done_bytes > 0 && held.is_none() && !let_go {
            held = Some(pin(&ground, HOLDER));
            let plan =
                MovePlan { range: Some(MoveRange { offset: 2 << 20, bytes: 2 << 20 }), ..fast(Direction::Recouple) };
            run(&Move::new(Arc::clone(&ground.memory), plan, Vec::new()).expect("a move"));
        }
        if let Some(stall) = &progress.stall {
            assert!(matches!(&stall.reason, StallReason::Held { owner, .. } if owner == HOLDER), "{stall}");
            if let Some(pin) = held.take() {
                ground.memory.pins().release(pin).expect("it is held");
                let_go = true;
            }
        }
    });
    assert_eq!(report.expect("a move that ends").outcome, MoveOutcome::Done);
    assert!(let_go, "the move never stalled");
    assert_eq!((ground.memory.placement().away(), storm.lost_stores()), (0, 0));
}

#[test]
fn a_move_that_is_called_off_leaves_what_has_moved_where_it_is() {
    let ground = Ground::in_dram(32 * MIB);
    let storm = Storm::over(&ground, 1);
    let control = MoveControl::default();
    control.set_bandwidth(Some(50 << 20));
    let report = movement(&ground, Direction::Decouple).in_chunks_of(64 * KIB).run(&control, |progress| {
        if progress.done_bytes > 0 {
            control.cancel();
        }
    });
    assert_eq!(report.expect("a move that ends").outcome, MoveOutcome::Cancelled);
    assert!(ground.memory.placement().away() > 0);
    run(&movement(&ground, Direction::Recouple));
    assert_eq!((ground.memory.placement().summary().local, storm.lost_stores()), (16, 0));
}

#[test]
fn small_chunks_leave_few_mappings_behind() {
    let mappings = || std::fs::read_to_string("/proc/self/maps").expect("/proc").lines().count();
    let ground = Ground::in_dram(32 * MIB);
    ground.memory.populate().expect("pages");
    let before = mappings();
    for _ in 0..3 {
        both_ways(&ground, |movement| movement.in_chunks_of(64 * KIB));
    }
    assert!(mappings() <= before + 8, "{before} mappings became {}", mappings());
}

#[test]
fn a_poisoned_page_ends_the_move_with_its_address_and_nothing_else() {
    let ground = Ground::in_dram(8 * MIB);
    ground.word(2 * MIB).store(7, Ordering::Relaxed);
    let page = ground.memory.range().addresses().start + 2 * MIB + 12 * KIB;
    let userfault = Userfault::open().expect("a userfaultfd");
    userfault.register(&ground.memory.range().addresses()).expect("registered");
    ground.memory.range().give_back(2 * MIB + 12 * KIB..2 * MIB + 16 * KIB);
    userfault.poison(&(page..page + 4 * KIB)).expect("poisoned");
    drop(userfault);

    let error = movement(&ground, Direction::Decouple).run(&MoveControl::default(), |_| ()).expect_err("it is lost");
    assert!(matches!(&error, Error::Lost(LostMemory { guest_address: 0x20_3000, source: None })), "{error}");
    assert_eq!(ground.memory.lost().map(|lost| lost.guest_address), Some(0x20_3000));
    assert_eq!(ground.word(2 * MIB).load(Ordering::Relaxed), 7);
    ground.word(2 * MIB).store(8, Ordering::Relaxed);
}

#[test]
fn memory_that_vanishes_from_the_pool_ends_the_move_with_its_place() {
    // Created in DRAM: then the guest's memory lies behind its state area in the pool, and the file can lose one without
    // the other.
    let ground = Ground::in_dram(32 * MIB);
    for granule in 0..16 {
        ground.word(granule * 2 * MIB).store(7, Ordering::Relaxed);
    }
    run(&movement(&ground, Direction::Decouple));
    let slowly = MoveControl::default();
    slowly.set_bandwidth(Some(50 << 20));
    let mut cut = None;
    let moved = movement(&ground, Direction::Recouple).run(&slowly, |progress| {
        cut.get_or_insert_with(|| {
            assert!(progress.done_bytes < 30 << 20, "the file is too late to lose anything");
            ground.cut_off(30 * MIB)
        });
    });

    let error = moved.expect_err("it is lost");
    let Error::Lost(lost) = &error else { panic!("{error}") };
    assert_eq!((lost.guest_address, lost.source.as_ref()), (30 << 20, cut.as_ref()));
    assert!(error.to_string().contains(&ground.path.display().to_string()), "{error}");
    assert_eq!(ground.memory.lost().as_ref(), Some(lost));
    assert_eq!(ground.word(0).load(Ordering::Relaxed), 7);
}

#[test]
fn memory_that_had_vanished_from_the_pool_before_the_move_is_lost_and_not_zero() {
    // Untouched but for its second granule: of the rest, only the end of the file tells that it is no hole.
    let ground = Ground::in_dram(16 * MIB);
    ground.word(2 * MIB).store(7, Ordering::Relaxed);
    run(&movement(&ground, Direction::Decouple));
    let cut = ground.cut_off(8 * MIB);

    let moved = movement(&ground, Direction::Recouple).run(&MoveControl::default(), |_| ());
    let error = moved.expect_err("it is lost");
    let Error::Lost(lost) = &error else { panic!("{error}") };
    assert_eq!((lost.guest_address, lost.source.as_ref()), (8 << 20, Some(&cut)));
    let place = |granule| ground.memory.placement().get(granule).expect("a sound word").place;
    assert!(matches!(place(3), Place::Local { .. }), "{:?}", place(3));
    assert_eq!(place(4), Place::Pooled, "what is lost stays where it was");
    assert_eq!(ground.word(2 * MIB).load(Ordering::Relaxed), 7);
}

#[test]
fn a_chunk_that_cannot_be_placed_is_in_the_pool_and_the_move_ends_with_the_reason() {
    let shapes: [fn(Move) -> Move; 2] = [|movement| movement, Move::by_mprotect];
    for shape in shapes {
        for direction in [Direction::Decouple, Direction::Recouple] {
            let ground =
                if direction == Direction::Decouple { Ground::in_dram(8 * MIB) } else { Ground::in_pool(8 * MIB) };
            (0..2048).for_each(|page| ground.word(page * 4 * KIB).store(page as u64 + 1, Ordering::Relaxed));
            let movement = shape(movement(&ground, direction)).in_chunks_of(256 * KIB);
            failing::once();
            let error = movement.run(&MoveControl::default(), |_| ()).expect_err("it cannot be placed");
            assert!(
                matches!(&error, Error::Place { source, .. } if source.kind() == ErrorKind::OutOfMemory),
                "{error}"
            );
            assert_eq!(ground.memory.lost(), None);
            let summary = ground.memory.placement().summary();
            let as_it_was = if direction == Direction::Decouple { (3, 1, 0) } else { (0, 0, 4) };
            assert_eq!((summary.local, summary.mixed, summary.pooled), as_it_was);

            let storm = |add| (0..2048).map(|page| ground.word(page * 4 * KIB).fetch_add(add, Ordering::Relaxed)).sum();
            let before: u64 = storm(1);
            assert_eq!(before, 2048 * 2049 / 2, "contents are lost");
            run(&movement);
            both_ways(&ground, shape);
            assert_eq!(storm(0), before + 2048, "stores are lost");
        }
    }
}

#[test]
fn locked_memory_moves_and_what_is_not_locked_any_more_is_counted() {
    let locked = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let line = status.lines().find(|line| line.starts_with("VmLck:")).expect("a count");
        line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("KiB") * KIB
    };
    let ground = Ground::in_dram(8 * MIB);
    ground.memory.range().lock(MIB..MIB + 128 * KIB);
    ground.memory.range().lock(6 * MIB..6 * MIB + 64 * KIB);
    assert_eq!(locked(), 192 * KIB);
    let range = Some(MoveRange { offset: 0, bytes: 4 << 20 });
    let decouple = MovePlan { range, ..fast(Direction::Decouple) };
    let decouple = Move::new(Arc::clone(&ground.memory), decouple, Vec::new()).expect("a move").in_chunks_of(64 * KIB);

    let equipment = Equipment::take(&ground.memory, &decouple.needs()).expect("equipment");
    let control = MoveControl::default();
    let mut run = Run::begin(&decouple, &control, equipment.carrier()).expect("a move");
    assert_eq!(run.until_the_end(&mut |_| ()).expect("a move that ends"), MoveOutcome::Done);
    assert_eq!((run.lookout.unlocked_bytes(), locked()), (128 << 10, 64 * KIB));
}

#[test]
fn a_guest_that_somebody_else_has_taken_does_not_move_and_its_map_stays_as_it_is() {
    let ground = Ground::in_dram(8 * MIB);
    let ours = Ownership::Owned { host: ground.host.slot(), epoch: Epoch(1) };
    let theirs = Ownership::Owned { host: ground.host.slot(), epoch: Epoch(2) };
    let slowly = MoveControl::default();
    slowly.set_bandwidth(Some(50 << 20));
    (0..4).for_each(|granule| ground.word(granule * 2 * MIB).store(7, Ordering::Relaxed));
    let mut away = None;
    let moved = movement(&ground, Direction::Decouple).run(&slowly, |progress| {
        if progress.done_bytes > 0 && away.is_none() {
            assert!(ground.control.ownership().transition(ours, theirs), "it was ours");
            away = Some(ground.memory.placement().away());
        }
    });
    let error = moved.expect_err("it is somebody else's");
    assert!(matches!(error, Error::NotOwner { epoch: Epoch(1), .. }), "{error}");
    assert_eq!(away, Some(ground.memory.placement().away()));
}

#[test]
fn a_placement_map_that_contradicts_what_was_done_is_refused() {
    let ground = Ground::in_dram(8 * MIB);
    ground.word(2 * MIB).store(7, Ordering::Relaxed);
    ground.memory.placement().put(1, Placed::cold(Place::Pooled));
    let error = movement(&ground, Direction::Decouple).run(&MoveControl::default(), |_| ()).expect_err("a lie");
    assert!(matches!(error, Error::Misplaced { granule: 1, place: Place::Pooled }), "{error}");
    GuestMemory::in_pool(&ground.control, &ground.state).expect_err("most of it is local");
    GuestMemory::in_dram(&ground.control, &ground.state, None).expect_err("part of it is in the pool");
}

#[test]
fn a_damaged_placement_word_is_refused() {
    let ground = Ground::in_dram(8 * MIB);
    ground.damage_placement(2);
    let error = movement(&ground, Direction::Decouple).run(&MoveControl::default(), |_| ()).expect_err("damage");
    assert!(matches!(error, Error::BadPlacement(BadPlacement { granule: 2, .. })), "{error}");
    assert!(ground.memory.close().is_err());
}

#[test]
fn huge_pages_stay_huge_both_ways() {
    let Some(mount) = Mount::try_huge() else { return };
    let ground = Ground::at(mount.path(), 16 * MIB, MemoryHome::Dram);
    let storm = Storm::over(&ground, 1);
    if !ground.is_huge() {
        eprintln!("skipped: this host has no huge page for private memory just now");
        return;
    }
    for direction in [Direction::Decouple, Direction::Recouple] {
        assert_eq!(run(&movement(&ground, direction)).huge_bytes, 16 << 20);
    }
    assert_eq!(storm.lost_stores(), 0);
}

#[test]
fn no_store_is_lost_on_the_way_to_a_file_of_huge_pages_and_back() {
    let Some(files) = HugeFiles::try_new(64) else { return };
    let ground = Ground::at(files.path(), 8 * MIB, MemoryHome::Dram);
    let storm = Storm::over(&ground, 1);
    let budgets = [Budget { pace: Pace::Fast, bandwidth: None }, Budget::default()];
    for budget in budgets {
        for direction in [Direction::Decouple, Direction::Recouple] {
            let plan = MovePlan { budget, ..fast(direction) };
            let movement = Move::new(Arc::clone(&ground.memory), plan, Vec::new()).expect("a move");
            assert_eq!(run(&movement.in_chunks_of(4 * KIB)).chunk_bytes.smallest, 2 << 20);
        }
    }
    assert_eq!((ground.memory.placement().away(), storm.lost_stores()), (4, 0));
}
