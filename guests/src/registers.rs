//! Fills every register that user code has, dwells, and verifies them.
//!
//! A round is one call of an assembly routine: it loads a frame's `*_in` half into the x87 and MMX registers, XMM, the
//! upper lanes of YMM, MXCSR, FS and GS base, RFLAGS and all general registers; goes round a loop that touches nothing but
//! RCX; and stores all of it into the `*_out` half. A vCPU that is frozen meanwhile and thawed elsewhere must find every
//! bit again. Each round has a pattern of its own, so that an older state of the same vCPU shows as well.

use crate::cpu::Features;
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use nil_guest_abi::control::register;
use nil_guest_abi::{ErrorKind, VcpuBlock};

/// What a round loads and what it stores.
#[repr(C, align(64))]
struct Frame {
    /// FXSAVE image: control words, ST0–7, XMM0–15.
    legacy_in: [u64; 64],
    legacy_out: [u64; 64],
    /// Upper lanes of YMM0–15.
    high_in: [u64; 32],
    high_out: [u64; 32],
    /// In the order of [`register::GENERAL_NAMES`]; RCX is the number of turns, RSP is filled in by the routine.
    general_in: [u64; 16],
    general_out: [u64; 16],
    flags_in: u64,
    flags_out: u64,
    /// FS and GS base: they point to `targets`.
    bases_in: [u64; 2],
    bases_out: [u64; 2],
    /// What a load through FS and GS gave.
    loads: [u64; 2],
    targets: [u64; 2],
    avx: u64,
    fsgsbase: u64,
}

/// RFLAGS that user code may change without consequence: CF, PF, AF, ZF, SF, DF, OF, ID.
const FLAGS: u64 = 0x0020_0CD5;

/// Words of an FXSAVE image (Intel SDM volume 1, section 10.5.1).
const ST: usize = 4;
const XMM: usize = 20;

const FCW_DEFAULT: u64 = 0x037F;
const MXCSR_DEFAULT: u64 = 0x1F80;

/// The registers of one vCPU.
pub struct Registers {
    vcpu: &'static VcpuBlock,
    features: Features,
    seed: u64,
    round: u64,
    dwell: u64,
}

impl Registers {
    /// `dwell` is how many turns of its loop a round takes.
    #[must_use]
    pub fn new(vcpu: &'static VcpuBlock, features: Features, index: usize, dwell: u64) -> Self {
        Self { vcpu, features, seed: (index as u64 + 1) << 56, round: 0, dwell: dwell.max(1) }
    }

    /// One round: load, dwell, store, compare.
    pub fn slice(&mut self) {
        self.round += 1;
        let mut frame = self.frame();
        // SAFETY: `frame` is a whole frame, aligned to 64 bytes; the routine keeps the C calling convention, uses AVX and
        // FS/GS base only where the frame says that they are there, and leaves x87 and MXCSR as it finds them at boot.
        unsafe { nil_register_round(&raw mut frame) };
        self.compare(&frame);
        self.vcpu.register_rounds.store(self.round, Ordering::Relaxed);
    }

    /// The pattern of this round.
    fn frame(&self) -> Frame {
        let mut next = Pattern(self.seed ^ self.round);
        let mut legacy = [0; 64];
        legacy[ST..XMM + 32].fill_with(|| next.word());
        for register in 0..8 {
            legacy[ST + 2 * register + 1] &= 0xFFFF;
        }
        // Rounding control; the stack's top and the condition codes, but no exception; all eight registers valid.
        let fcw = FCW_DEFAULT | next.word() & 0x0C00;
        let fsw = next.word() & 0x7F00;
        legacy[0] = fcw | fsw << 16 | 0xFF << 32;
        // Rounding control, flush to zero, sticky exceptions; all exceptions stay masked.
        legacy[3] = MXCSR_DEFAULT | next.word() & 0xE03F;
        let mut frame = Frame {
            legacy_in: legacy,
            legacy_out: [0; 64],
            high_in: [0; 32],
            high_out: [0; 32],
            general_in: [0; 16],
            general_out: [0; 16],
            flags_in: 2 | next.word() & FLAGS,
            flags_out: 0,
            bases_in: [0; 2],
            bases_out: [0; 2],
            loads: [0; 2],
            targets: [next.word(), next.word()],
            avx: u64::from(self.features.avx),
            fsgsbase: u64::from(self.features.fsgsbase),
        };
        frame.high_in.fill_with(|| next.word());
        frame.general_in.fill_with(|| next.word());
        frame.general_in[RCX] = self.dwell;
        frame
    }

    fn compare(&self, frame: &Frame) {
        let check = |number: u64, expected: u64, found: u64| {
            if expected != found {
                self.vcpu.record_error(ErrorKind::Register, number, expected, found);
            }
        };
        for (number, (&sent, &found)) in (register::GENERAL..).zip(frame.general_in.iter().zip(&frame.general_out)) {
            let expected = if number == RCX as u64 { 0 } else { sent };
            check(number, expected, found);
        }
        check(register::FLAGS, frame.flags_in & FLAGS, frame.flags_out & FLAGS);
        let (sent, found) = (&frame.legacy_in, &frame.legacy_out);
        check(register::FCW, sent[0] & 0xFFFF, found[0] & 0xFFFF);
        check(register::FSW, sent[0] >> 16 & 0xFFFF, found[0] >> 16 & 0xFFFF);
        check(register::FTW, sent[0] >> 32 & 0xFF, found[0] >> 32 & 0xFF);
        check(register::MXCSR, sent[3] & 0xFFFF_FFFF, found[3] & 0xFFFF_FFFF);
        for (half, word) in (ST..XMM).enumerate() {
            let mask = if half % 2 == 1 { 0xFFFF } else { u64::MAX };
            check(register::ST + half as u64, sent[word] & mask, found[word] & mask);
        }
        for (half, word) in (XMM..XMM + 32).enumerate() {
            check(register::XMM + half as u64, sent[word], found[word]);
        }
        if self.features.avx {
            for (number, (&sent, &found)) in (register::YMM_HIGH..).zip(frame.high_in.iter().zip(&frame.high_out)) {
                check(number, sent, found);
            }
        }
        if self.features.fsgsbase {
            check(register::FS_BASE, frame.bases_in[0], frame.bases_out[0]);
            check(register::GS_BASE, frame.bases_in[1], frame.bases_out[1]);
            check(register::FS_LOAD, frame.targets[0], frame.loads[0]);
            check(register::GS_LOAD, frame.targets[1], frame.loads[1]);
        }
    }
}

/// Index of RCX among the general registers.
const RCX: usize = 2;

/// Words that look like noise (xorshift-multiply, after SplitMix64).
struct Pattern(u64);

impl Pattern {
    #[inline]
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ mixed >> 27
    }
}

unsafe extern "C" {
    /// One round; see the module.
    fn nil_register_round(frame: *mut Frame);
}

global_asm!(
    ".pushsection .text.nil_register_round, \"ax\"",
    ".balign 64",
    "nil_register_round:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi", // stays at [rsp] throughout the round
    "mov [rdi + {general_in} + 8 * 7], rsp",
    "lea rax, [rdi + {targets}]",
    "mov [rdi + {bases_in}], rax",
    "lea rcx, [rdi + {targets} + 8]",
    "mov [rdi + {bases_in} + 8], rcx",
    //
    "fxrstor64 [rdi + {legacy_in}]",
    "cmp qword ptr [rdi + {avx}], 0",
    "je 2f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vinsertf128 ymm\\n, ymm\\n, xmmword ptr [rdi + {high_in} + 16 * \\n], 1",
    ".endr",
    "2:",
    "cmp qword ptr [rdi + {fsgsbase}], 0",
    "je 3f",
    "wrfsbase rax",
    "wrgsbase rcx",
    "3:",
    "push qword ptr [rdi + {flags_in}]",
    "mov rax, [rdi + {general_in} + 8 * 0]",
    "mov rbx, [rdi + {general_in} + 8 * 1]",
    "mov rcx, [rdi + {general_in} + 8 * 2]",
    "mov rdx, [rdi + {general_in} + 8 * 3]",
    "mov rsi, [rdi + {general_in} + 8 * 4]",
    "mov rbp, [rdi + {general_in} + 8 * 6]",
    ".irp n, 8,9,10,11,12,13,14,15",
    "mov r\\n, [rdi + {general_in} + 8 * \\n]",
    ".endr",
    "mov rdi, [rdi + {general_in} + 8 * 5]",
    "popfq",
    //
    "4:",
    "loop 4b", // changes RCX and no flag
    //
    "pushfq",
    "push rdi",
    "mov rdi, [rsp + 16]",
    "mov [rdi + {general_out} + 8 * 0], rax",
    "mov [rdi + {general_out} + 8 * 1], rbx",
    "mov [rdi + {general_out} + 8 * 2], rcx",
    "mov [rdi + {general_out} + 8 * 3], rdx",
    "mov [rdi + {general_out} + 8 * 4], rsi",
    "mov [rdi + {general_out} + 8 * 6], rbp",
    ".irp n, 8,9,10,11,12,13,14,15",
    "mov [rdi + {general_out} + 8 * \\n], r\\n",
    ".endr",
    "pop qword ptr [rdi + {general_out} + 8 * 5]",
    "pop qword ptr [rdi + {flags_out}]",
    "mov [rdi + {general_out} + 8 * 7], rsp",
    "fxsave64 [rdi + {legacy_out}]",
    "cmp qword ptr [rdi + {avx}], 0",
    "je 5f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vextractf128 xmmword ptr [rdi + {high_out} + 16 * \\n], ymm\\n, 1",
    ".endr",
    "vzeroupper",
    "5:",
    "cmp qword ptr [rdi + {fsgsbase}], 0",
    "je 6f",
    "mov rax, fs:[0]",
    "mov [rdi + {loads}], rax",
    "mov rax, gs:[0]",
    "mov [rdi + {loads} + 8], rax",
    "rdfsbase rax",
    "mov [rdi + {bases_out}], rax",
    "rdgsbase rax",
    "mov [rdi + {bases_out} + 8], rax",
    "6:",
    "cld",
    "fninit",
    "mov dword ptr [rsp - 8], {mxcsr_default}",
    "ldmxcsr [rsp - 8]",
    "pop rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    legacy_in = const offset_of!(Frame, legacy_in),
    legacy_out = const offset_of!(Frame, legacy_out),
    high_in = const offset_of!(Frame, high_in),
    high_out = const offset_of!(Frame, high_out),
    general_in = const offset_of!(Frame, general_in),
    general_out = const offset_of!(Frame, general_out),
    flags_in = const offset_of!(Frame, flags_in),
    flags_out = const offset_of!(Frame, flags_out),
    bases_in = const offset_of!(Frame, bases_in),
    bases_out = const offset_of!(Frame, bases_out),
    loads = const offset_of!(Frame, loads),
    targets = const offset_of!(Frame, targets),
    avx = const offset_of!(Frame, avx),
    fsgsbase = const offset_of!(Frame, fsgsbase),
    mxcsr_default = const MXCSR_DEFAULT,
);
