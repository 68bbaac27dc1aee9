//! The memory of a running guest comes to the pool and leaves it.

use crate::rack::{COUNTING, Rack, await_progress, counter, kvm};
use nil_migrate::WaitStyle;
use nil_mover::{Direction, MoveControl, MoveOutcome, MovePlan, MoveReport};
use nil_pool::{GuestControl, MemoryHome, PinRequest};
use nil_vmm::{Deadlines, HandoffOutcome, Vm, VmEvent};
use std::time::Duration;

fn relocate(vm: &Vm, direction: Direction) -> MoveReport {
    let plan = MovePlan::of_everything(direction);
    vm.move_memory(plan, &MoveControl::default(), |_| {}).expect("the memory moves")
}

/// A counting guest that runs in the DRAM of the first host, and has a place in the pool to go to.
fn guest_in_dram(rack: &Rack) -> (GuestControl, Vm) {
    let (control, vm) = rack.boot(&COUNTING, false, MemoryHome::Dram);
    vm.start().expect("the guest starts");
    rack.hosts[0].place_memory(&control).expect("room in the pool");
    (control, vm)
}

/// Hands the guest over to the other host.
fn hand_over(rack: &Rack, control: &GuestControl, vm: &Vm, to: usize) -> Vm {
    let to = rack.hosts[to].slot();
    vm.clear_arm();
    let target = Vm::arm(control, to, WaitStyle::Auto).expect("the target arms");
    let outcome = vm.handoff(to, Deadlines::default()).expect("the handoff begins");
    assert!(matches!(outcome, HandoffOutcome::Released { .. }), "{outcome:?}");
    assert!(matches!(target.next_event(Duration::from_secs(1)), Some(VmEvent::Landed { .. })));
    target
}

#[test]
fn a_guest_in_dram_is_decoupled_handed_over_and_recoupled_and_never_loses_its_count() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, mut vm) = guest_in_dram(&rack);
    let mut count = await_progress(&vm, 0);
    for turn in 0..10 {
        rack.hosts[turn % 2].place_memory(&control).expect("room in the pool");
        let decoupled = relocate(&vm, Direction::Decouple);
        assert_eq!(decoupled.outcome, MoveOutcome::Done);
        assert_eq!(vm.memory().placement().away(), 0);
        assert!(decoupled.copied_bytes > 0 && decoupled.copied_bytes <= decoupled.total_bytes);
        count = await_progress(&vm, count);

        vm = hand_over(&rack, &control, &vm, (turn + 1) % 2);
        count = await_progress(&vm, count);

        assert_eq!(relocate(&vm, Direction::Recouple).outcome, MoveOutcome::Done);
        assert_eq!(vm.memory().placement().away(), 4);
        rack.hosts[(turn + 1) % 2].unplace_memory(&control).expect("nothing lies in the pool any more");
        count = await_progress(&vm, count);
    }
}

#[test]
fn a_guest_with_memory_in_dram_is_not_handed_over_and_runs_on() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = guest_in_dram(&rack);
    relocate(&vm, Direction::Decouple);
    vm.clear_arm();
    let target = Vm::arm(&control, rack.hosts[1].slot(), WaitStyle::Auto).expect("the target arms");
    relocate(&vm, Direction::Recouple);
    let error = vm.handoff(rack.hosts[1].slot(), Deadlines::default()).expect_err("its memory is in DRAM");
    assert!(error.to_string().contains("not in the pool"), "{error}");
    drop(target);
    let count = counter(&vm);
    await_progress(&vm, count);
}

#[test]
fn a_move_waits_for_pinned_memory_and_names_who_has_pinned_it() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (_, vm) = guest_in_dram(&rack);
    let request = PinRequest {
        offset: 2 << 20,
        bytes: 4096,
        owner: "vfio 0000:01:00.0".into(),
        reason: "DMA".into(),
        host: rack.hosts[0].slot(),
    };
    vm.memory().pins().take(&request).expect("a free entry");
    let plan = MovePlan { stall_timeout_us: 20_000, ..MovePlan::of_everything(Direction::Decouple) };
    let report = vm.move_memory(plan, &MoveControl::default(), |_| {}).expect("it ends");
    let MoveOutcome::Stalled(stall) = report.outcome else { panic!("{report:?}") };
    assert!(stall.to_string().contains("vfio 0000:01:00.0"), "{stall}");
    assert_eq!(vm.memory().placement().away(), 1);
    let count = counter(&vm);
    await_progress(&vm, count);
}

#[test]
fn a_guest_whose_memory_goes_away_stops_and_says_where_it_lay() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&COUNTING, false, MemoryHome::Pool);
    vm.start().expect("the guest starts");
    await_progress(&vm, 0);
    let source = control.map_memory().expect("its memory").source_at(0);
    let pool = std::fs::OpenOptions::new().write(true).open(&source.path).expect("the pool's file");
    pool.set_len(source.pool_offset.0).expect("the file is cut off where the guest's memory begins");
    let event = vm.next_event(Duration::from_secs(5));
    let Some(VmEvent::Faulted { why }) = event else { panic!("{event:?}") };
    assert!(why.contains("guest address 0x") && why.contains(&source.capacity.to_string()), "{why}");
}
