//! Writing back: what a host's caches hold of the pool dies with the host, unless it has reached the pool's memory.
//!
//! ```text
//!   store ──▶ this host's cache ──── persist ────▶ the pool's memory        survives this host
//!                  │ every host sees it, as long as this one lives (hardware coherence)
//! ```
//!
//! Lines leave a cache in any order, and one that a peer has looked at has left it. So a word may survive while what it
//! publishes is lost. Therefore whatever recovery relies on is written back before what comes after it is written: a journal
//! entry before the word of which it speaks, a record before the word that publishes it, each changed word before the next
//! change. What decides nothing is not: leases, doorbells, arm words, time stamps.
//!
//! Only where a host can die without the memory: a dax device, or a file of a file system that maps one. The page cache of
//! other files is memory of this kernel: its processes share its caches, and it is gone with its host in any case. There
//! nothing is written back, unless `NIL_WRITE_BACK=always` is set, by which the cost can be measured.
//!
//! **Without hardware coherence** no host sees what another's cache holds. There each word is written back by whoever stores it
//! ([`crate::sync::AtomicU64`]), and each line is dropped from the cache before it is read or changed ([`refresh`]).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is written back; so that a test can leave one of them out, and show that it notices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Point {
    /// A word that was changed by compare-and-swap, or given back.
    Word,
    /// An entry of a journal.
    Journal,
    /// A host's record.
    Host,
    /// A capacity's record, and the words beside it.
    Capacity,
    /// A guest's record, and its racing words.
    Guest,
    /// A report.
    Report,
    /// Header and placement map of a new state area.
    StateArea,
    /// The count of granules that are away, and the placement of one.
    Placement,
    /// The record of a pin.
    Pin,
    /// The sections of an area, before the header that makes them readable.
    Sections,
    /// The header of an area.
    Area,
    /// The ownership word.
    Ownership,
    /// The zeros of a new capacity, where the kernel does not make them.
    Zeros,
    /// Header, log, index and commits of a guest's protection.
    Protection,
    /// Pages of the image of a guest that is protected.
    Image,
    /// The memory of a guest that has left this host.
    Memory,
    /// The tables of a new pool.
    Tables,
    /// A copy of the pool's header.
    Header,
}

/// Whether some pool of this process lies in memory that outlives this host's caches.
static OUTLIVED: AtomicBool = AtomicBool::new(false);

/// Whether some pool of this process has hosts whose caches do not agree.
static SOFTWARE: AtomicBool = AtomicBool::new(false);

/// From now on this process keeps its caches coherent by itself. One pool that needs it is enough: it harms no other.
pub(crate) fn begin_software_coherence() {
    begin();
    SOFTWARE.store(true, Ordering::Relaxed);
}

/// Whether this process keeps its caches coherent by itself.
#[inline]
pub(crate) fn is_software_coherent() -> bool {
    #[cfg(all(test, not(loom)))]
    if let Some(simulated) = crate::medium::is_software_coherent() {
        return simulated;
    }
    SOFTWARE.load(Ordering::Relaxed)
}

/// Returns once this host's caches hold none of these bytes, where that is what it takes to see what other hosts have written.
#[inline]
pub(crate) fn refresh(start: *const u8, bytes: usize) {
    if is_software_coherent() {
        refresh_now(start, bytes);
    }
}

/// The same, before it is known whether it is necessary.
pub(crate) fn refresh_now(start: *const u8, bytes: usize) {
    #[cfg(all(test, not(loom)))]
    if crate::medium::refresh(start, bytes) {
        return;
    }
    lines::drop_from_cache(start, bytes);
}

/// From now on this process writes back. One pool that needs it is enough: it harms no other.
pub(crate) fn begin() {
    OUTLIVED.store(true, Ordering::Relaxed);
}

/// Whether this process writes back.
pub(crate) fn is_needed() -> bool {
    OUTLIVED.load(Ordering::Relaxed)
}

/// Whether writing back is asked for wherever a pool lies.
pub(crate) fn is_forced() -> bool {
    static FORCED: OnceLock<bool> = OnceLock::new();
    *FORCED.get_or_init(|| std::env::var_os("NIL_WRITE_BACK").is_some_and(|value| value == "always"))
}

/// Returns once these bytes, as this thread has written them, are in the pool's memory.
#[inline]
pub(crate) fn persist(point: Point, start: *const u8, bytes: usize) {
    #[cfg(all(test, not(loom)))]
    if crate::medium::persist(point, start, bytes) {
        return;
    }
    let _ = point;
    if is_needed() {
        lines::write_back(start, bytes);
    }
}

/// Write-back, and dropping, by cache line (Intel SDM volume 2, CLWB, CLFLUSHOPT, CLFLUSH; volume 1, section 11.4.4).
mod lines {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _mm_mfence, _mm_sfence};
    use std::sync::OnceLock;

    const LINE: usize = 64;
    /// CPUID leaf 7, EBX.
    const CLFLUSHOPT: u32 = 1 << 23;
    const CLWB: u32 = 1 << 24;

    /// From the best to the one that every x86-64 has.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) enum Instruction {
        /// Keeps the line.
        Clwb,
        /// Drops the line.
        Clflushopt,
        /// Drops the line, one after the other.
        Clflush,
    }

    impl Instruction {
        fn of_this_cpu() -> Self {
            static CHOSEN: OnceLock<Instruction> = OnceLock::new();
            *CHOSEN.get_or_init(|| {
                let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
                Self::best(features)
            })
        }

        pub(super) fn best(features: u32) -> Self {
            match (features & CLWB != 0, features & CLFLUSHOPT != 0) {
                (true, _) => Self::Clwb,
                (false, true) => Self::Clflushopt,
                (false, false) => Self::Clflush,
            }
        }
    }

    pub(super) fn write_back(start: *const u8, bytes: usize) {
        write_back_by(Instruction::of_this_cpu(), start, bytes);
    }

    /// Lines that hold stores of this host are written back. What is loaded afterwards is loaded from memory.
    pub(super) fn drop_from_cache(start: *const u8, bytes: usize) {
        let dropping = match Instruction::of_this_cpu() {
            // It keeps the line. Whatever has it has the next one, too.
            Instruction::Clwb | Instruction::Clflushopt => Instruction::Clflushopt,
            Instruction::Clflush => Instruction::Clflush,
        };
        each_line(dropping, start, bytes);
        // SAFETY: every x86-64 CPU has SSE2.
        unsafe { _mm_mfence() }
    }

    pub(super) fn write_back_by(instruction: Instruction, start: *const u8, bytes: usize) {
        each_line(instruction, start, bytes);
        // SAFETY: every x86-64 CPU has SSE.
        unsafe { _mm_sfence() }
    }

    fn each_line(instruction: Instruction, start: *const u8, bytes: usize) {
        let first = start.wrapping_sub(start.addr() % LINE);
        let count = (start.addr() % LINE + bytes).div_ceil(LINE);
        for line in (0..count).map(|index| first.wrapping_add(index * LINE)) {
            // SAFETY: all three change no contents. The line holds a byte that the caller has written or is about to read, so it is mapped, and
            // CPUID says that the CPU knows the instruction.
            unsafe {
                match instruction {
                    Instruction::Clwb => asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)),
                    Instruction::Clflushopt => asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)),
                    Instruction::Clflush => asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)),
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::lines::{Instruction, drop_from_cache, write_back, write_back_by};

    #[test]
    fn the_best_instruction_that_the_cpu_has_is_taken() {
        let chosen = [0, 1 << 23, 1 << 24, 1 << 23 | 1 << 24].map(Instruction::best);
        use Instruction::{Clflush, Clflushopt, Clwb};
        assert_eq!(chosen, [Clflush, Clflushopt, Clwb, Clwb]);
    }

    #[test]
    fn writing_back_changes_nothing_and_stays_within_the_lines() {
        let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let before = bytes.clone();
        for (start, length) in [(0, 0), (0, 1), (63, 2), (64, 4032), (4095, 1)] {
            write_back(bytes[start..].as_ptr(), length);
            drop_from_cache(bytes[start..].as_ptr(), length);
            write_back_by(Instruction::Clflush, bytes[start..].as_ptr(), length);
        }
        assert_eq!(bytes, before);
    }
}
