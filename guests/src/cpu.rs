//! The instructions that Rust has no words for, and what the CPU can do.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _mm_lfence, _rdtsc};

/// Reads the TSC, not before everything that stands before it in the program.
#[inline(always)]
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: LFENCE and RDTSC exist on every x86-64 CPU, and CR4.TSD is clear under every loader of this guest.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Writes a byte to an I/O port.
#[inline]
pub fn out(port: u16, byte: u8) {
    // SAFETY: IOPL is 3, so OUT does not fault; the ports used are the serial port and nil's own, none of which touches
    // memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags)) }
}

/// Writes a 32-bit word to an I/O port.
#[inline]
pub fn out_word(port: u16, word: u32) {
    // SAFETY: as in `out`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") word, options(nomem, nostack, preserves_flags)) }
}

/// What this vCPU can be asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// AVX registers are there and XCR0 lets them be used.
    pub avx: bool,
    /// WRFSBASE and its kin are there; whoever starts a guest turns CR4.FSGSBASE on wherever CPUID shows it.
    pub fsgsbase: bool,
}

impl Features {
    /// Asks the CPU.
    #[must_use]
    pub fn detect() -> Self {
        const OSXSAVE_AND_AVX: u32 = 1 << 27 | 1 << 28;
        const SSE_AND_AVX_STATE: u32 = 6;
        let leaves = __cpuid_count(0, 0).eax;
        let avx = __cpuid_count(1, 0).ecx & OSXSAVE_AND_AVX == OSXSAVE_AND_AVX
            && xcr0() & SSE_AND_AVX_STATE == SSE_AND_AVX_STATE;
        let fsgsbase = leaves >= 7 && __cpuid_count(7, 0).ebx & 1 != 0;
        Self { avx, fsgsbase }
    }
}

/// The low half of XCR0. Only to be called where CPUID shows OSXSAVE.
fn xcr0() -> u32 {
    let low: u32;
    // SAFETY: the caller has seen OSXSAVE, so XGETBV exists and CR4 allows it.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags)) }
    low
}
