//! A guest of a few instructions goes back and forth between two hosts of one process.

use nil_migrate::WaitStyle;
use nil_pool::{
    CreateOptions, Epoch, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership,
    MemoryHome, Pool,
};
use nil_vmm::{BootRequest, Deadlines, HandoffOutcome, Vm, VmEvent};
use std::time::Duration;

/// Where the guest counts: the loader leaves this page free.
const COUNTER: usize = 0x1_0000;

/// Counts in RBX and writes every count to memory, for ever:
/// `mov rdi, 0x10000; next: inc rbx; mov [rdi], rbx; jmp next`
const COUNTING: [u8; 15] = [0x48, 0xC7, 0xC7, 0x00, 0x00, 0x01, 0x00, 0x48, 0xFF, 0xC3, 0x48, 0x89, 0x1F, 0xEB, 0xF8];

struct Rack {
    hosts: [Membership; 2],
    _directory: tempfile::TempDir,
}

impl Rack {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let path = directory.path().join("pool");
        let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a pool");
        let join = |name: &str| {
            let identity = HostIdentity { id: HostId::random(), name: name.into(), kind: HostKind::Agent };
            pool.join(&identity).expect("a free host slot")
        };
        Self { hosts: [join("a"), join("b")], _directory: directory }
    }

    fn boot(&self, image: &[u8], irqchip: bool) -> (GuestControl, Vm) {
        let request = GuestRequest {
            name: "counter".into(),
            kind: GuestKind::Vm,
            memory_bytes: 8 << 20,
            home: MemoryHome::Pool,
            vcpus: 1,
            features: 0,
        };
        let control = self.hosts[0].create_guest(&request).expect("room for a guest");
        let boot = BootRequest { image: image.to_vec(), command_line: String::new(), irqchip };
        let vm = Vm::boot(&control, self.hosts[0].slot(), &boot).expect("a machine");
        (control, vm)
    }
}

fn counter(control: &GuestControl) -> u64 {
    let memory = control.map_memory().expect("the guest's memory");
    // SAFETY: the counter lies inside the mapping; the guest writes it with single aligned stores.
    unsafe { memory.as_ptr().add(COUNTER).cast::<u64>().read_volatile() }
}

fn await_progress(control: &GuestControl, from: u64) -> u64 {
    for _ in 0..2000 {
        let now = counter(control);
        if now > from {
            return now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the guest does not get beyond {from}");
}

/// Whether this machine can run the test at all.
fn kvm() -> bool {
    match nil_vmm::KvmHost::open() {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

fn there_and_back(irqchip: bool, times: usize) {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, mut running) = rack.boot(&COUNTING, irqchip);
    running.start().expect("the guest starts");
    let mut count = await_progress(&control, 0);
    for turn in 0..times {
        let to = rack.hosts[(turn + 1) % 2].slot();
        running.clear_arm();
        let target = Vm::arm(&control, to, WaitStyle::Auto).expect("the target arms");
        let outcome = running.handoff(to, Deadlines::default()).expect("the handoff begins");
        assert!(matches!(outcome, HandoffOutcome::Released { .. }), "{outcome:?}");
        assert!(matches!(target.next_event(Duration::from_secs(1)), Some(VmEvent::Landed { .. })));
        count = await_progress(&control, count);
        running = target;
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

#[test]
fn a_guest_whose_target_never_arms_runs_on() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&COUNTING, false);
    vm.start().expect("the guest starts");
    let deadlines = Deadlines { armed: Duration::from_millis(20), ..Deadlines::default() };
    let error = vm.handoff(rack.hosts[1].slot(), deadlines).expect_err("nobody has armed");
    assert!(error.to_string().contains("not armed"), "{error}");
    let count = counter(&control);
    await_progress(&control, count);
}

#[test]
fn a_guest_that_writes_to_the_exit_port_ends_with_its_code() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    // mov al, 7; out 0xF4, al
    let (_control, vm) = rack.boot(&[0xB0, 0x07, 0xE6, 0xF4], false);
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
    let (control, vm) = rack.boot(&COUNTING, false);
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
    let count = counter(&control);
    await_progress(&control, count);
}

#[test]
fn a_target_that_goes_away_before_the_offer_leaves_the_guest_alone() {
    if !kvm() {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = rack.boot(&COUNTING, false);
    vm.start().expect("the guest starts");
    vm.clear_arm();
    drop(Vm::arm(&control, rack.hosts[1].slot(), WaitStyle::Auto).expect("the target arms"));
    let error = vm.handoff(rack.hosts[1].slot(), Deadlines::default()).expect_err("the target has gone");
    assert!(error.to_string().contains("not armed"), "{error}");
    let count = counter(&control);
    await_progress(&control, count);
}
