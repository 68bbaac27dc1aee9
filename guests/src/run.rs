//! The main loop of every guest.

use crate::boot::{Entry, Guest, boot, control};
use crate::cpu::{out, out_word};
use crate::gaps::GapRecorder;
use crate::pages::Pages;
use crate::registers::Registers;
use crate::serial::say;
use crate::tickets::Tickets;
use core::sync::atomic::Ordering;
use nil_guest_abi::layout::{EXIT_PORT, EXIT_REFUSED, EXIT_STOPPED, LONGEST_REST_US, REST_PORT};
use nil_guest_abi::{Command, CommandWord, ControlBlock, ErrorKind, GuestState, Program, VcpuBlock};

/// Turns of its loop that a guest which rests makes between two rests: some ten microseconds of work.
const STRETCH: u64 = 64;
/// How long `rest` rests unless it is told, in microseconds.
const DEFAULT_REST: u32 = 50_000;

/// What a program does in its loop; what it does not do is `None`.
struct Work {
    pages: Option<Pages>,
    registers: Option<Registers>,
    tickets: Option<Tickets>,
}

/// Runs a program on this vCPU.
pub fn run(program: Program, entry: Entry) -> ! {
    let Some(guest) = boot(program, entry) else { halt(EXIT_REFUSED) };
    let control = control();
    let vcpu = &control.vcpu[guest.index];
    let mut gaps = GapRecorder::new(vcpu, guest.options.effective_threshold());
    let mut work = Work::new(program, &guest, control, vcpu);
    work.prepare(vcpu, &mut gaps);
    if guest.index == 0 {
        while !control.vcpus().all(|vcpu| vcpu.generation.load(Ordering::Acquire) != 0) {
            gaps.tick();
        }
        control.state.store(GuestState::Running as u32, Ordering::Release);
    }
    let rest = rest_of(program, &guest);
    let says = if guest.index == 0 { guest.options.say } else { 0 };
    let mut seen = 0;
    loop {
        let turn = vcpu.counter.load(Ordering::Relaxed) + 1;
        vcpu.counter.store(turn, Ordering::Relaxed);
        if rest != 0 && turn.is_multiple_of(STRETCH) {
            out_word(REST_PORT, rest);
            gaps.rested();
        }
        if says != 0 && turn.is_multiple_of(says) {
            say(turn);
            gaps.rested();
        }
        if guest.index == 0 {
            listen(control, vcpu);
        }
        gaps.tick();
        work.turn(&mut gaps);
        let word = control.command.load(Ordering::Acquire);
        if word != seen {
            seen = word;
            obey(word, control, &guest, &mut work, &mut gaps);
        }
    }
}

/// How long the guest rests after each stretch of work, in microseconds; 0 is never.
fn rest_of(program: Program, guest: &Guest) -> u32 {
    match (guest.options.rest, program) {
        (0, Program::Rest) => DEFAULT_REST,
        (rest, _) => u32::try_from(rest).unwrap_or(LONGEST_REST_US),
    }
}

impl Work {
    fn new(program: Program, guest: &Guest, control: &'static ControlBlock, vcpu: &'static VcpuBlock) -> Self {
        let does = |programs: &[Program]| programs.contains(&program);
        let workset = control.workset.load(Ordering::Relaxed);
        let dwell = match (guest.options.dwell, program) {
            (0, Program::Registers) => 500,
            (0, _) => 100,
            (dwell, _) => dwell,
        };
        Self {
            pages: does(&[Program::Pages, Program::Demo, Program::Rest]).then(|| Pages::new(vcpu, guest, workset)),
            registers: does(&[Program::Registers, Program::Demo, Program::Rest])
                .then(|| Registers::new(vcpu, guest.features, guest.index, dwell)),
            tickets: does(&[Program::Xadd, Program::Demo, Program::Rest]).then(|| Tickets::new(control, vcpu)),
        }
    }

    /// Fills memory, if the program has to do with memory, and says that this vCPU is ready.
    fn prepare(&mut self, vcpu: &VcpuBlock, gaps: &mut GapRecorder) {
        match &mut self.pages {
            Some(pages) => pages.fill(gaps),
            None => vcpu.generation.store(1, Ordering::Release),
        }
    }

    /// One slice of everything, with a reading of the TSC behind each.
    #[inline(always)]
    fn turn(&mut self, gaps: &mut GapRecorder) {
        if let Some(pages) = &mut self.pages {
            pages.slice();
            gaps.tick();
        }
        if let Some(registers) = &mut self.registers {
            registers.slice();
            gaps.tick();
        }
        if let Some(tickets) = &mut self.tickets {
            tickets.slice();
            gaps.tick();
        }
    }
}

/// Takes note of what another guest was heard to say: never less than before.
#[inline(always)]
fn listen(control: &ControlBlock, vcpu: &VcpuBlock) {
    let (heard, last) = (control.heard.load(Ordering::Acquire), vcpu.heard.load(Ordering::Relaxed));
    if heard == last {
        return;
    }
    // KVM does not see who writes into this memory from outside. A store of our own makes the word part of the next commit
    // before what follows from it is.
    if control.heard.compare_exchange(heard, heard, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return;
    }
    if heard < last {
        vcpu.record_error(ErrorKind::HeardBackwards, 0, last, heard);
    }
    vcpu.heard.store(heard, Ordering::Release);
}

/// Carries out a command of the host. A word that is no command is left unacknowledged.
#[cold]
fn obey(word: u64, control: &'static ControlBlock, guest: &Guest, work: &mut Work, gaps: &mut GapRecorder) {
    let vcpu = &control.vcpu[guest.index];
    match CommandWord::decode(word).map(|word| word.command) {
        Some(Command::Run) => vcpu.acknowledged.store(word, Ordering::Release),
        Some(Command::VerifyAll) => verify_all(word, control, guest, work, gaps),
        Some(Command::Stop) => {
            control.state.store(GuestState::Stopped as u32, Ordering::Release);
            vcpu.acknowledged.store(word, Ordering::Release);
            // The machine may end with the first write to the port: let every vCPU come to this point.
            wait_for_all(word, control, gaps, |vcpu| vcpu.acknowledged.load(Ordering::Acquire) == word);
            halt(EXIT_STOPPED);
        }
        None => {}
    }
}

/// Verifies everything. The sum of the tickets can only be compared while nobody draws one, so all vCPUs park first, and
/// go on when vCPU 0 has compared.
fn verify_all(word: u64, control: &'static ControlBlock, guest: &Guest, work: &mut Work, gaps: &mut GapRecorder) {
    let vcpu = &control.vcpu[guest.index];
    if let Some(pages) = &mut work.pages {
        pages.verify_all(gaps);
    }
    if let Some(registers) = &mut work.registers {
        registers.slice();
    }
    vcpu.parked.store(word, Ordering::Release);
    if guest.index == 0 {
        let all_parked = wait_for_all(word, control, gaps, |vcpu| vcpu.parked.load(Ordering::Acquire) == word);
        if let (true, Some(tickets)) = (all_parked, &work.tickets) {
            tickets.verify_sum();
        }
    } else {
        let first = &control.vcpu[0];
        wait_for_all(word, control, gaps, |_| first.acknowledged.load(Ordering::Acquire) == word);
    }
    vcpu.acknowledged.store(word, Ordering::Release);
}

/// Waits until all vCPUs are there; not any longer when the host gives another command, which some vCPU may have seen
/// instead of the one that the others are waiting for. Whether all are there.
fn wait_for_all(
    command: u64,
    control: &ControlBlock,
    gaps: &mut GapRecorder,
    is_there: impl Fn(&VcpuBlock) -> bool,
) -> bool {
    while !control.vcpus().all(&is_there) {
        if control.command.load(Ordering::Acquire) != command {
            return false;
        }
        gaps.tick();
    }
    true
}

/// Does nothing more, and tells the host so every now and then.
pub fn halt(code: u8) -> ! {
    loop {
        out(EXIT_PORT, code);
        for _ in 0..1_000_000 {
            core::hint::spin_loop();
        }
    }
}
