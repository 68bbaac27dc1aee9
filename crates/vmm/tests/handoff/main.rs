//! A guest of a few instructions goes back and forth between two hosts of one process.

mod models;
mod protection;
mod rack;
mod relocation;

use nil_migrate::WaitStyle;
use nil_pool::{Epoch, MemoryHome};
use nil_vmm::{Deadlines, HandoffOutcome, Vm, VmEvent};
use rack::{COUNTING, RESTING, Rack, await_progress, counter, kvm};
use std::time::Duration;

fn there_and_back(irqchip: bool, times: usize) {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, mut running) = rack.boot(&COUNTING, irqchip, MemoryHome::Pool);
    running.start().expect("the guest starts");
    let mut count = await_progress(&running, 0);
    for turn in 0..times {
        let to = rack.hosts[(turn + 1) % 2].slot();
        running.clear_arm();
        let target = Vm::arm(&control, to, WaitStyle::Auto).expect("the target arms");
        let outcome = running.handoff(to, Deadlines::default()).expect("the handoff begins");
        assert!(matches!(outcome, HandoffOutcome::Released { .. }), "{outcome:?}");
        assert!(matches!(target.next_event(Duration::from_secs(1)), Some(VmEvent::Landed { .. })));
        running = target;
        count = await_progress(&running, count);
    }
}

#[test]
fn a_guest_goes_there_and_back_and_never_loses_its_count() {
    there_and_back(false, 50);
}

#[test]
fn a_guest_with_interrupt_controllers_goes_there_and_back() {
    there_and_back(true, 10);
}

/// It has just begun a rest of a second when it is to go, twice as long as the source would wait for it.
#[test]
fn a_guest_that_rests_is_handed_over_at_once_and_goes_on_behind_its_rest() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, mut running) = rack.boot(&RESTING, false, MemoryHome::Pool);
    running.start().expect("the guest starts");
    for turn in 0..4 {
        let to = rack.hosts[(turn + 1) % 2].slot();
        running.clear_arm();
        let target = Vm::arm(&control, to, WaitStyle::Auto).expect("the target arms");
        let before = counter(&running);
        let count = await_progress(&running, before);
        let outcome = running.handoff(to, Deadlines::default()).expect("the handoff begins");
        assert!(matches!(outcome, HandoffOutcome::Released { .. }), "{outcome:?}");
        running = target;
        await_progress(&running, count);
    }
}

#[test]
fn a_guest_whose_target_never_arms_runs_on() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (_, vm) = rack.boot(&COUNTING, false, MemoryHome::Pool);
    vm.start().expect("the guest starts");
    let deadlines = Deadlines { armed: Duration::from_millis(20), ..Deadlines::default() };
    let error = vm.handoff(rack.hosts[1].slot(), deadlines).expect_err("nobody has armed");
    assert!(error.to_string().contains("not armed"), "{error}");
    let count = counter(&vm);
    await_progress(&vm, count);
}

#[test]
fn a_guest_that_writes_to_the_exit_port_ends_with_its_code() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    // mov al, 7; out 0xF4, al
    let (_control, vm) = rack.boot(&[0xB0, 0x07, 0xE6, 0xF4], false, MemoryHome::Pool);
    vm.start().expect("the guest starts");
    let event = vm.next_event(Duration::from_secs(2));
    assert_eq!(event, Some(VmEvent::Ended { why: "it wrote 7 to its exit port".into() }));
}

#[test]
fn a_target_refuses_a_configuration_that_disagrees_with_the_guests_record() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&COUNTING, false, MemoryHome::Pool);
    vm.start().expect("the guest starts");
    vm.clear_arm();
    // The machine section (kind 0x62) of a guest with three vCPUs and no memory.
    let config = control.map_state().expect("the state area").config();
    let mut out = config.writer(Epoch(0));
    let mut machine = [0; 32];
    machine[0] = 3;
    for (kind, payload) in [(0x62, &machine[..]), (0x60, &[]), (0x61, &[])] {
        out.put(kind, 1, 0, payload).expect("room for a section");
    }
    out.finish();
    let Err(error) = Vm::arm(&control, rack.hosts[1].slot(), WaitStyle::Auto) else { panic!("it armed") };
    assert!(error.to_string().contains("3 vCPUs"), "{error}");
    let count = counter(&vm);
    await_progress(&vm, count);
}

#[test]
fn a_target_that_goes_away_before_the_offer_leaves_the_guest_alone() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&COUNTING, false, MemoryHome::Pool);
    vm.start().expect("the guest starts");
    vm.clear_arm();
    drop(Vm::arm(&control, rack.hosts[1].slot(), WaitStyle::Auto).expect("the target arms"));
    let error = vm.handoff(rack.hosts[1].slot(), Deadlines::default()).expect_err("the target has gone");
    assert!(error.to_string().contains("not armed"), "{error}");
    let count = counter(&vm);
    await_progress(&vm, count);
}
