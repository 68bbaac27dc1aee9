//! A guest that is protected is brought back to its last commit on another host.

use crate::rack::{COUNTER, COUNTING, RESTING, Rack, await_progress, counter, kvm};
use nil_migrate::WaitStyle;
use nil_mover::{Direction, MoveControl, MovePlan};
use nil_pool::{
    Epoch, GuestControl, MemoryHome, OutputRule, Ownership, Protection, ProtectionSettings, Standing, decode,
};
use nil_vmm::{Cycle, ProtectionControl, ProtectionEvent, Vm, VmEvent};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn settings(output: OutputRule) -> ProtectionSettings {
    ProtectionSettings { interval: Duration::from_millis(5), output }
}

/// Protects the guest on a thread of its own while `body` runs, which is given the commits; and how that ended.
fn protected<T>(vm: &Vm, body: impl FnOnce(&Receiver<Cycle>) -> T) -> (T, nil_vmm::Result<()>) {
    let control = ProtectionControl::default();
    let (sender, commits) = channel();
    std::thread::scope(|scope| {
        let protecting = scope.spawn(|| {
            vm.protect(&control, |event| {
                if let ProtectionEvent::Committed(cycle) = event {
                    sender.send(cycle).ok();
                }
            })
        });
        let result = body(&commits);
        control.stop();
        (result, protecting.join().expect("no panic"))
    })
}

fn while_protected<T>(vm: &Vm, body: impl FnOnce(&Receiver<Cycle>) -> T) -> T {
    let (result, ended) = protected(vm, body);
    ended.expect("it was protected all the while");
    result
}

fn await_commits(commits: &Receiver<Cycle>, number: usize) -> Cycle {
    let next = || commits.recv_timeout(PATIENCE).expect("another commit");
    for _ in 1..number {
        next();
    }
    next()
}

/// What the first host would leave behind if it died now, taken over by the second.
fn take_over(rack: &Rack, control: &GuestControl, owned: Epoch) -> (u64, Vm) {
    let (former, taker) = (rack.hosts[0].slot(), rack.hosts[1].slot());
    let epoch = owned.next().expect("a later epoch");
    let restored = control.restore(former, epoch, || true).expect("it can be brought back");
    let frozen = Ownership::Frozen { source: former, target: taker, epoch };
    assert!(control.ownership().transition(Ownership::Owned { host: former, epoch: owned }, frozen));
    let vm = Vm::arm(control, taker, WaitStyle::Auto).expect("the taker arms");
    assert!(matches!(vm.next_event(PATIENCE), Some(VmEvent::Landed { .. })));
    (restored.commit, vm)
}

/// RBX in the state of a commit that has been brought back.
fn counted(control: &GuestControl, epoch: Epoch) -> u64 {
    let mut copy = Vec::new();
    control.map_state().expect("its state").vcpu(epoch.slot(), 0).read_into(&mut copy).expect("whole");
    let sections = decode(&copy, epoch).expect("of that epoch");
    let regs = sections.iter().find(|section| section.kind == 0x10).expect("general registers").payload;
    u64::from_le_bytes(regs[8..16].try_into().expect("eight bytes"))
}

fn counter_in_image(control: &GuestControl) -> u64 {
    let image = control.map_memory().expect("its image");
    // SAFETY: the counter lies in the mapping, and is aligned.
    unsafe { image.as_ptr().add(COUNTER).cast::<u64>().read_volatile() }
}

#[test]
fn memory_and_registers_of_a_commit_are_of_the_same_instant_and_the_guest_goes_on_from_there() {
    if !kvm() {
        return;
    }
    for commits in [1, 2, 7] {
        let rack = Rack::new();
        let (control, vm) = rack.boot(&COUNTING, false, MemoryHome::Dram);
        vm.start().expect("the guest starts");
        let protection = rack.hosts[0].protect(&control, settings(OutputRule::Pass), None).expect("protected");
        await_progress(&vm, 0);
        let ((number, taken), ended) = protected(&vm, |events| {
            let last = await_commits(events, commits);
            // The host dies: it commits nothing more, and nobody knows what its guest did after the last commit.
            let (former, taker) = (rack.hosts[0].slot(), Epoch(2));
            let restored = control.restore(former, taker, || true).expect("it can be brought back");
            assert!(restored.commit >= last.number);
            (restored.commit, restored.taken)
        });
        assert!(taken > 0);
        let over = ended.expect_err("it is not the first host's guest any more").to_string();
        assert!(over.contains("Sealed"), "{over}");
        vm.halt();
        assert_eq!(protection.standing().expect("a word"), Standing::Sealed(number));
        let (memory, register) = (counter_in_image(&control), counted(&control, Epoch(2)));
        assert!(memory == register || memory + 1 == register, "memory {memory:#x}, register {register:#x}");
        let (again, vm) = take_over(&rack, &control, Epoch(1));
        assert_eq!(again, number);
        assert_eq!(
            protection.standing().expect("a word"),
            Standing::Idle(number),
            "once it runs, there is no way back"
        );
        await_progress(&vm, memory);
        vm.halt();
    }
}

#[test]
fn protection_is_suspended_while_memory_moves_and_goes_on_afterwards() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&COUNTING, false, MemoryHome::Dram);
    vm.start().expect("the guest starts");
    let protection = rack.hosts[0].protect(&control, settings(OutputRule::Pass), None).expect("protected");
    for _ in 0..3 {
        while_protected(&vm, |commits| await_commits(commits, 3));
        assert!(matches!(protection.standing(), Ok(Standing::Idle(_))));
        let none = control.restore(rack.hosts[0].slot(), Epoch(2), || true).expect_err("there is no way back");
        assert!(none.to_string().contains("not in force"), "{none}");
        for direction in [Direction::Decouple, Direction::Recouple] {
            let plan = MovePlan::of_everything(direction);
            vm.move_memory(plan, &MoveControl::default(), |_| {}).expect("the memory moves");
            if direction == Direction::Decouple {
                let refused = vm.protect(&ProtectionControl::default(), |_| {}).expect_err("it is in the pool");
                assert!(refused.to_string().contains("recouple"), "{refused}");
            }
        }
        let count = counter(&vm);
        await_progress(&vm, count);
    }
    vm.halt();
}

#[test]
fn a_guest_that_rests_is_protected_all_the_same() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&RESTING, true, MemoryHome::Dram);
    vm.start().expect("the guest starts");
    rack.hosts[0].protect(&control, settings(OutputRule::Pass), None).expect("protected");
    while_protected(&vm, |commits| await_commits(commits, 5));
    vm.halt();
}

/// Writes 'a', then 'b' and so on to its serial port, and counts: `mov edx, 0x3F8; mov al, 'a'; next: out dx, al; inc al;
/// mov ecx, 200000; wait: dec ecx; jnz wait; jmp next`
const TALKING: [u8; 21] = [
    0xBA, 0xF8, 0x03, 0x00, 0x00, 0xB0, 0x61, 0xEE, 0xFE, 0xC0, 0xB9, 0x40, 0x0D, 0x03, 0x00, 0xFF, 0xC9, 0x75, 0xFC,
    0xEB, 0xF2,
];

/// A guest that talks, and whose next commit after the first is an hour away.
fn talking(rack: &Rack) -> (GuestControl, Vm, Protection) {
    let (control, vm) = rack.boot(&TALKING, false, MemoryHome::Dram);
    vm.start().expect("the guest starts");
    let held = ProtectionSettings { interval: Duration::from_secs(3600), output: OutputRule::Hold };
    let protection = rack.hosts[0].protect(&control, held, None).expect("protected");
    (control, vm, protection)
}

#[test]
fn output_that_is_held_is_seen_once_its_epoch_is_committed_and_no_sooner() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (_control, vm, protection) = talking(&rack);
    while_protected(&vm, |commits| {
        await_commits(commits, 1);
        let seen = vm.console().read_from(0).1;
        // It goes on talking, and nothing of that is seen before the next commit, which is an hour away.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(vm.console().read_from(0).1, seen);
        assert!(matches!(protection.standing(), Ok(Standing::Active(1))));
    });
    assert!(!vm.console().read_from(0).0.is_empty());
    vm.halt();
}

#[test]
fn what_is_held_of_a_guest_that_was_taken_is_never_said() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm, _) = talking(&rack);
    let (seen, ended) = protected(&vm, |commits| {
        await_commits(commits, 1);
        let seen = vm.console().read_from(0).1;
        std::thread::sleep(Duration::from_millis(50));
        // Another host has fenced this one, and goes on from that commit.
        let Ok(Ownership::Owned { host, epoch }) = control.ownership().load() else { panic!("it is owned") };
        control.restore(host, epoch.next().expect("a later epoch"), || true).expect("it can be brought back");
        seen
    });
    ended.expect_err("it is protected here no more");
    assert_eq!(vm.console().read_from(0).1, seen, "what came after the commit was undone");
    vm.halt();
}
