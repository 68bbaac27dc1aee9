//! Reading memory that may fail.
//!
//! A page of the guest's memory may be poisoned, or gone together with the device that it lay in. Whoever touches it gets
//! SIGBUS. The routines here are written in assembly so that the handler in [`crate::lost`] can tell that a signal came
//! from them, and have them return what they had done until then: losing memory ends a move, not the process.
//!
//! ```text
//! rip in a routine ──signal──▶ rdx = address that failed, rip = the routine's end ──▶ the caller sees Err(Lost)
//! ```
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::ops::Range;

global_asm!(
    ".pushsection .text.nil_mover_copy,\"ax\",@progbits",
    ".p2align 4",
    // nil_mover_copy(rdi: to, rsi: from, rdx: bytes) -> rax: bytes not copied, rdx: where it failed
    ".hidden nil_mover_copy",
    ".globl nil_mover_copy",
    "nil_mover_copy:",
    "mov rcx, rdx",
    "xor edx, edx",
    "cld",
    "rep movsb",
    ".hidden nil_mover_copy_end",
    ".globl nil_mover_copy_end",
    "nil_mover_copy_end:",
    "mov rax, rcx",
    "ret",
    ".p2align 4",
    // nil_mover_any(rdi: from, rsi: bytes, a multiple of 128) -> rax: not 0 if any byte is not 0, rdx: where it failed
    ".hidden nil_mover_any",
    ".globl nil_mover_any",
    "nil_mover_any:",
    "xor edx, edx",
    "xor eax, eax",
    "add rsi, rdi",
    "2:",
    "cmp rdi, rsi",
    "jae nil_mover_any_end",
    "movdqu xmm0, [rdi]",
    "movdqu xmm1, [rdi + 16]",
    "movdqu xmm2, [rdi + 32]",
    "movdqu xmm3, [rdi + 48]",
    "movdqu xmm4, [rdi + 64]",
    "movdqu xmm5, [rdi + 80]",
    "movdqu xmm6, [rdi + 96]",
    "movdqu xmm7, [rdi + 112]",
    "por xmm0, xmm1",
    "por xmm2, xmm3",
    "por xmm4, xmm5",
    "por xmm6, xmm7",
    "por xmm0, xmm2",
    "por xmm4, xmm6",
    "por xmm0, xmm4",
    "packsswb xmm0, xmm0",
    "movq rax, xmm0",
    "sub rdi, -128",
    "test rax, rax",
    "jz 2b",
    ".hidden nil_mover_any_end",
    ".globl nil_mover_any_end",
    "nil_mover_any_end:",
    "ret",
    ".popsection",
);

/// What both routines return in rax and rdx.
#[repr(C)]
struct Returned {
    value: u64,
    failed_at: usize,
}

// The signatures are those of the comments above.

unsafe extern "C" {
    fn nil_mover_copy(to: *mut u8, from: *const u8, bytes: usize) -> Returned;
    fn nil_mover_any(from: *const u8, bytes: usize) -> Returned;
    static nil_mover_copy_end: u8;
    static nil_mover_any_end: u8;
}

/// Memory that could not be read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    /// The address that failed.
    pub(crate) address: usize,
}

/// Copies bytes that others may be writing, and whose memory may fail.
///
/// # Errors
/// [`Failed`] with the address, in either range.
///
/// # Safety
/// Both ranges are mapped or reserved for the caller, and do not overlap. [`crate::lost::watch_for_faults`] has been
/// called.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) -> Result<(), Failed> {
    // SAFETY: the caller's promise; the routine touches nothing else, and comes back whatever happens.
    let returned = unsafe { nil_mover_copy(to, from, bytes) };
    if returned.value == 0 { Ok(()) } else { Err(Failed { address: returned.failed_at }) }
}

/// Whether all bytes are zero; `bytes` is a multiple of 128.
///
/// # Errors
/// [`Failed`] with the address.
///
/// # Safety
/// The range is mapped or reserved for the caller. [`crate::lost::watch_for_faults`] has been called.
pub(crate) unsafe fn is_zero(from: *const u8, bytes: usize) -> Result<bool, Failed> {
    debug_assert!(bytes.is_multiple_of(128));
    // SAFETY: the caller's promise.
    let returned = unsafe { nil_mover_any(from, bytes) };
    if returned.failed_at == 0 { Ok(returned.value == 0) } else { Err(Failed { address: returned.failed_at }) }
}

/// Where a routine that was interrupted at `instruction` is to go on when the memory that it touched has failed.
pub(crate) fn recovery(instruction: usize) -> Option<usize> {
    let routine = |start: usize, end: *const u8| Range { start, end: end.addr() };
    let copy = routine(nil_mover_copy as *const () as usize, &raw const nil_mover_copy_end);
    let any = routine(nil_mover_any as *const () as usize, &raw const nil_mover_any_end);
    [copy, any].into_iter().find(|routine| routine.contains(&instruction)).map(|routine| routine.end)
}
