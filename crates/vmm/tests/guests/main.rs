//! The test guests, each run on `/dev/kvm` without the product's VMM: what they report is what happened to them.
//!
//! The second half damages a running guest and expects it to name exactly that damage: a guest that reports nothing must
//! have nothing to report.

#[path = "../../../../guests/compile.rs"]
mod compile;
mod machine;

use kvm_ioctls::Kvm;
use machine::{Machine, kvm, prewarm, set_word, word};
use nil_guest_abi::control::register;
use nil_guest_abi::layout::IMAGE;
use nil_guest_abi::page::{PAGE_BYTES, Pattern};
use nil_guest_abi::{Command, ErrorKind, FirstError, Gap, GuestState, Mode, Options, Program};
use nil_vmm::boot::BootOptions;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const MEMORY: u64 = 32 << 20;
/// Where the memory under test begins: behind the image, rounded up to 2 MiB.
const UNDER_TEST: u64 = IMAGE + (2 << 20);

/// The image of a program, compiled if it is not yet.
fn image(program: Program) -> Vec<u8> {
    assert!(compile::GUESTS.contains(&program.name()), "{program:?} is compiled");
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let images = compile::compile(env!("CARGO"), None, &guests, &target);
    std::fs::read(images.join(program.name())).expect("it was compiled")
}

fn with(options: Options, vcpus: u32) -> BootOptions {
    BootOptions { memory_bytes: MEMORY, vcpus, command_line: options.to_string() }
}

fn start(kvm: &Kvm, program: Program, options: Options, vcpus: u32) -> Machine {
    let machine = Machine::boot(kvm, &image(program), &with(options, vcpus));
    machine.wait_until_running();
    machine
}

fn idle() -> Options {
    Options { mode: Mode::Idle, ..Options::default() }
}

fn first_error(machine: &Machine) -> FirstError {
    machine.wait_until("an error", |control| control.errors() != 0);
    machine.control().first_error().expect("it was counted").1
}

/// Runs a guest for a second and expects of every vCPU that it does what `grows` names and finds no error.
fn runs_without_error(program: Program, vcpus: u32, grows: fn(&nil_guest_abi::VcpuBlock) -> u64) {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, program, Options::default(), vcpus);
    let before: Vec<u64> = machine.control().vcpus().map(grows).collect();
    std::thread::sleep(Duration::from_secs(1));
    for (vcpu, before) in machine.control().vcpus().zip(before) {
        assert!(grows(vcpu) > before + 1000, "{} → {}", before, grows(vcpu));
    }
    machine.command(Command::VerifyAll);
    let turns: Vec<u64> = machine.control().vcpus().map(|vcpu| vcpu.counter.load(Relaxed)).collect();
    machine.wait_until("the loop goes on", |control| {
        control.vcpus().zip(&turns).all(|(vcpu, turns)| vcpu.counter.load(Relaxed) > *turns)
    });
    assert_eq!(machine.control().first_error(), None);
    assert_eq!(machine.control().errors(), 0);
    assert!(
        machine.serial().starts_with(&format!("nil guest {}: {vcpus} vCPUs", program.name())),
        "{}",
        machine.serial()
    );
    machine.command(Command::Stop);
    assert_eq!(machine.control().guest_state(), Some(GuestState::Stopped));
}

#[test]
fn tsc_gaps_does_nothing_but_look_at_the_clock() {
    runs_without_error(Program::TscGaps, 1, |vcpu| vcpu.counter.load(Relaxed));
}

#[test]
fn pages_are_rewritten_and_verified() {
    runs_without_error(Program::Pages, 1, |vcpu| vcpu.pages_verified.load(Relaxed));
}

#[test]
fn registers_are_verified() {
    runs_without_error(Program::Registers, 1, |vcpu| vcpu.register_rounds.load(Relaxed));
}

#[test]
fn two_vcpus_draw_tickets() {
    runs_without_error(Program::Xadd, 2, |vcpu| vcpu.tickets.load(Relaxed));
}

#[test]
fn the_demo_does_everything_on_two_vcpus() {
    runs_without_error(Program::Demo, 2, |vcpu| {
        let figures = [&vcpu.counter, &vcpu.pages_verified, &vcpu.pages_written, &vcpu.register_rounds, &vcpu.tickets];
        figures.iter().map(|figure| figure.load(Relaxed)).min().expect("there are some")
    });
}

#[test]
fn a_resting_guest_does_everything_too_and_its_rests_are_no_gaps() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Rest, Options { rest: 5_000, ..Options::default() }, 2);
    machine.wait_until("some work between many rests", |control| {
        control.vcpus().all(|vcpu| {
            let figures = [&vcpu.pages_verified, &vcpu.pages_written, &vcpu.register_rounds, &vcpu.tickets];
            vcpu.counter.load(Relaxed) > 20 * 64 && figures.iter().all(|figure| figure.load(Relaxed) > 100)
        })
    });
    machine.command(Command::VerifyAll);
    assert_eq!(machine.control().first_error(), None);
    machine.command(Command::Stop);
}

#[test]
fn verifying_looks_at_every_page_under_test() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Pages, idle(), 2);
    let verified =
        |machine: &Machine| machine.control().vcpus().map(|vcpu| vcpu.pages_verified.load(Relaxed)).sum::<u64>();
    assert_eq!(verified(&machine), 0);
    machine.command(Command::VerifyAll);
    assert_eq!(verified(&machine), (MEMORY - UNDER_TEST) / PAGE_BYTES);
    assert_eq!(machine.control().ranges[0].start.load(Relaxed), UNDER_TEST);
    assert_eq!(machine.control().errors(), 0);
}

#[test]
fn a_pause_of_the_vcpu_is_recorded_as_one_gap() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::TscGaps, Options::default(), 1);
    let from = machine.control().vcpu[0].gaps.load(Relaxed);
    let counter = machine.control().vcpu[0].counter.load(Relaxed);
    let pause = machine.with_vcpu(0, |_| {
        // SAFETY: RDTSC exists on every x86-64 CPU.
        let before = unsafe { core::arch::x86_64::_rdtsc() };
        std::thread::sleep(Duration::from_millis(50));
        // SAFETY: as above.
        unsafe { core::arch::x86_64::_rdtsc() - before }
    });
    machine.wait_until("it goes on", |control| control.vcpu[0].counter.load(Relaxed) > counter + 10_000);
    let longest = machine.control().vcpu[0].gaps(from).max_by_key(Gap::cycles).expect("a gap");
    assert!(longest.cycles() >= pause, "{longest:?} is shorter than the pause of {pause} cycles");
    assert!(machine.control().vcpu[0].max_gap.load(Relaxed) >= pause);
}

#[test]
fn a_command_line_that_it_does_not_know_is_refused_by_the_guest() {
    let Some(kvm) = kvm() else { return };
    let options = BootOptions { memory_bytes: MEMORY, vcpus: 1, command_line: "mode=hot colour=red".into() };
    let machine = Machine::boot(&kvm, &image(Program::Pages), &options);
    machine.wait_until("it refuses", |control| control.guest_state() == Some(GuestState::Refused));
    assert_eq!(machine.control().refused_at.load(Relaxed), 9);
    machine.wait_until("it says so", |_| machine.serial().contains("refused: the option at byte 9"));
}

#[test]
fn the_prewarm_stub_reads_up_to_the_end_and_says_so() {
    let Some(kvm) = kvm() else { return };
    let end = prewarm(&kvm, &image(Program::TscGaps), &with(idle(), 1), 0, MEMORY);
    assert_eq!(end, MEMORY);
}

#[test]
fn one_flipped_bit_in_a_page_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Pages, idle(), 1);
    let address = UNDER_TEST + 1000 * PAGE_BYTES + 300 * 8;
    let expected = word(machine.memory(), address);
    assert_eq!(expected, Pattern::new(UNDER_TEST + 1000 * PAGE_BYTES, 1).word(300));
    set_word(machine.memory(), address, expected ^ 1 << 17);
    machine.command(Command::VerifyAll);
    let kind = Ok(ErrorKind::PageTorn);
    assert_eq!(first_error(&machine), FirstError { kind, address, expected, found: expected ^ 1 << 17 });
    assert_eq!(machine.control().errors(), 1);
}

#[test]
fn a_lost_page_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Pages, idle(), 1);
    let address = UNDER_TEST + 7 * PAGE_BYTES;
    for offset in (0..PAGE_BYTES).step_by(8) {
        set_word(machine.memory(), address + offset, 0);
    }
    machine.command(Command::VerifyAll);
    assert_eq!(first_error(&machine), FirstError { kind: Ok(ErrorKind::PageLost), address, expected: 1, found: 0 });
    assert_eq!(machine.control().errors(), 1);
}

#[test]
fn a_misplaced_page_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Pages, idle(), 1);
    let (from, to) = (UNDER_TEST + 3 * PAGE_BYTES, UNDER_TEST + 4 * PAGE_BYTES);
    for offset in (0..PAGE_BYTES).step_by(8) {
        set_word(machine.memory(), to + offset, word(machine.memory(), from + offset));
    }
    machine.command(Command::VerifyAll);
    assert_eq!(
        first_error(&machine),
        FirstError { kind: Ok(ErrorKind::PageMisplaced), address: to, expected: to, found: from }
    );
}

#[test]
fn a_page_that_fell_back_to_an_older_state_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Pages, Options::default(), 1);
    let pages = (MEMORY - UNDER_TEST) / PAGE_BYTES;
    let memory = machine.memory().clone();
    // While the vCPU is out of the guest: far behind the cursor nothing is half written.
    let (address, old) = machine.with_vcpu(0, {
        let (memory, cursor) = (memory.clone(), machine.control().vcpu[0].cursor.load(Relaxed));
        move |_| {
            let address = UNDER_TEST + (cursor + pages / 2) % pages * PAGE_BYTES;
            let old: Vec<u64> = (0..512).map(|index| word(&memory, address + index * 8)).collect();
            (address, old)
        }
    });
    let passes = machine.control().vcpu[0].passes.load(Relaxed);
    machine.wait_until("two more passes", |control| control.vcpu[0].passes.load(Relaxed) > passes + 2);
    let stale = old[1];
    machine.with_vcpu(0, move |_| {
        for (index, word) in (0u64..).zip(old) {
            set_word(&memory, address + index * 8, word);
        }
    });
    let error = first_error(&machine);
    assert_eq!((error.kind, error.address, error.found), (Ok(ErrorKind::PageStale), address, stale));
    assert!(error.expected > stale);
}

/// Starts a guest that spends nearly all its time in the dwelling loop.
fn dwelling(kvm: &Kvm) -> Machine {
    let machine = start(kvm, Program::Registers, Options { dwell: 50_000_000, ..Options::default() }, 1);
    let rounds = machine.control().vcpu[0].register_rounds.load(Relaxed);
    machine.wait_until("a round", |control| control.vcpu[0].register_rounds.load(Relaxed) > rounds);
    assert_eq!(machine.control().errors(), 0);
    machine
}

#[test]
fn a_changed_general_register_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = dwelling(&kvm);
    let expected = machine.with_vcpu(0, |fd| {
        let mut regs = fd.get_regs().expect("registers can be read");
        let before = regs.r12;
        regs.r12 ^= 1 << 40;
        fd.set_regs(&regs).expect("registers can be set");
        before
    });
    let address = register::GENERAL + 12;
    let kind = Ok(ErrorKind::Register);
    assert_eq!(first_error(&machine), FirstError { kind, address, expected, found: expected ^ 1 << 40 });
    assert_eq!(machine.control().errors(), 1);
}

#[test]
fn a_changed_vector_register_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = dwelling(&kvm);
    machine.with_vcpu(0, |fd| {
        let mut xsave = fd.get_xsave().expect("XSAVE state can be read");
        // XMM5 in the legacy area: byte 160 + 5 * 16.
        xsave.region[(160 + 5 * 16) / 4] ^= 1;
        // SAFETY: no dynamically enabled state is used, so 4096 bytes are enough.
        unsafe { fd.set_xsave(&xsave) }.expect("XSAVE state can be set");
    });
    let error = first_error(&machine);
    assert_eq!((error.kind, error.address), (Ok(ErrorKind::Register), register::XMM + 2 * 5));
    assert_eq!(error.expected ^ error.found, 1);
}

#[test]
fn a_changed_gs_base_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = dwelling(&kvm);
    if machine.control().features.load(Relaxed) & nil_guest_abi::control::FEATURE_FSGSBASE == 0 {
        eprintln!("skipped: this CPU has no WRGSBASE");
        return;
    }
    let expected = machine.with_vcpu(0, |fd| {
        let mut sregs = fd.get_sregs().expect("special registers can be read");
        let before = sregs.gs.base;
        sregs.gs.base += 8;
        fd.set_sregs(&sregs).expect("special registers can be set");
        before
    });
    let error = first_error(&machine);
    let kind = Ok(ErrorKind::Register);
    assert_eq!(error, FirstError { kind, address: register::GS_BASE, expected, found: expected + 8 });
}

#[test]
fn a_second_instance_of_a_vcpu_is_noticed() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Xadd, Options::default(), 1);
    machine.control().vcpu[0].private_tickets.fetch_add(1, Relaxed);
    let error = first_error(&machine);
    assert_eq!((error.kind, error.found), (Ok(ErrorKind::Twin), error.expected + 1));
}

#[test]
fn a_counter_that_fell_back_is_noticed() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Xadd, Options::default(), 1);
    machine.wait_until("enough tickets", |control| control.tickets.load(Relaxed) > 1 << 20);
    machine.control().tickets.fetch_sub(1 << 20, Relaxed);
    assert_eq!(first_error(&machine).kind, Ok(ErrorKind::TicketRepeated));
}

#[test]
fn a_ticket_that_nobody_drew_is_noticed() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Xadd, Options::default(), 2);
    machine.control().tickets.fetch_add(1, Relaxed);
    assert_eq!(machine.control().errors(), 0);
    machine.command(Command::VerifyAll);
    let error = first_error(&machine);
    assert_eq!((error.kind, error.found), (Ok(ErrorKind::TicketSum), error.expected + 1));
}

#[test]
fn a_guest_counts_aloud_and_that_is_no_gap() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Rest, Options { rest: 1_000, say: 64, ..Options::default() }, 1);
    machine.wait_until("some turns", |control| control.vcpu[0].counter.load(Relaxed) > 5 * 64);
    let said = machine.serial();
    let numbers: Vec<&str> = said.lines().skip(1).take(4).collect();
    assert_eq!(numbers, ["#0000000000000040", "#0000000000000080", "#00000000000000c0", "#0000000000000100"]);
    assert_eq!(machine.control().first_error(), None);
}

#[test]
fn what_is_heard_from_another_guest_must_not_go_back() {
    let Some(kvm) = kvm() else { return };
    let machine = start(&kvm, Program::Xadd, Options::default(), 1);
    for heard in [5, 7] {
        machine.control().heard.store(heard, Relaxed);
        machine.wait_until("its notice", |control| control.vcpu[0].heard.load(Relaxed) == heard);
    }
    assert_eq!(machine.control().errors(), 0);
    machine.control().heard.store(6, Relaxed);
    let error = first_error(&machine);
    assert_eq!((error.kind, error.expected, error.found), (Ok(ErrorKind::HeardBackwards), 7, 6));
}
