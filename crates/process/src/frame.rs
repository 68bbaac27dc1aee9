//! The frame from which a borrowed thread restores itself, should whoever borrows it die.
//!
//! A thread that is to make a system call for somebody else is sent to a `syscall; ret` of its own program, with a stack
//! below its red zone on which lie the address of a `sigreturn` and a signal frame with everything it was about. If the
//! borrower lives, it puts the registers back itself; if it dies, at whatever point, the thread makes the call, returns
//! into the `sigreturn`, and is where it was. One thing is lost then: a sleep that was interrupted ends early (EINTR).
//!
//! Layout: `struct rt_sigframe` from `uc` on (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h, uapi/asm/ucontext.h).

use crate::tracee::Registers;

/// Bytes below the stack pointer that belong to the running function (System V ABI).
const RED_ZONE: u64 = 128;
/// `struct ucontext`: flags, link, stack; registers; mask.
const UCONTEXT: usize = 40 + 256 + 8;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const FLAGS: u64 = 7;
/// Flags of an alternate stack that no kernel takes, so that the thread's own one stays (`restore_altstack`).
const NO_ALTSTACK: u64 = 0x7f;
/// `FP_XSTATE_MAGIC1`, `FP_XSTATE_MAGIC2`.
const MAGIC: [u32; 2] = [0x4650_5853, 0x4650_5845];
/// Where software says how long the area is, in an XSAVE area.
const SOFTWARE: usize = 464;
/// The least that an XSAVE area has: legacy part and header.
const LEAST: usize = 512 + 64;

/// Errors of the kernel's own: the call is to be made again.
const RESTART: [i64; 3] = [-512, -513, -514];
/// The same with `restart_syscall`, whose state a `sigreturn` forgets.
const RESTART_BLOCK: i64 = -516;
const EINTR: i64 = -4;

/// A frame, to be written to the thread's stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    /// Where it goes; the stack pointer with which the call is made.
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    /// The frame of a thread with these registers, this extended state (XSAVE, as ptrace gives it) and these blocked
    /// signals; `sigreturn` is the address of the instructions that make that call. `None` when the extended state is none.
    pub(crate) fn build(registers: &Registers, xstate: &[u8], mask: u64, sigreturn: u64) -> Option<Self> {
        let length = u32::try_from(xstate.len()).ok().filter(|_| xstate.len() >= LEAST)?;
        let state_at = (registers.rsp.checked_sub(RED_ZONE + u64::from(length) + 4)?) & !63;
        let address = state_at.checked_sub(8 + UCONTEXT as u64)? & !15;
        let mut bytes = Vec::with_capacity(xstate.len() + UCONTEXT + 128);
        let mut put = |word: u64| bytes.extend_from_slice(&word.to_le_bytes());
        put(sigreturn);
        [FLAGS, 0, 0, NO_ALTSTACK, 0].into_iter().for_each(&mut put);
        context(registers, state_at).into_iter().for_each(&mut put);
        put(mask);
        bytes.resize(usize::try_from(state_at - address).ok()?, 0);
        let state = bytes.len();
        bytes.extend_from_slice(xstate);
        let features: [u8; 8] = xstate[SOFTWARE..SOFTWARE + 8].try_into().ok()?;
        let software = &mut bytes[state + SOFTWARE..state + 512];
        software.fill(0);
        software[0..4].copy_from_slice(&MAGIC[0].to_le_bytes());
        software[4..8].copy_from_slice(&(length + 4).to_le_bytes());
        software[8..16].copy_from_slice(&features);
        software[16..20].copy_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&MAGIC[1].to_le_bytes());
        Some(Self { address, bytes })
    }
}

/// `struct sigcontext`, in words.
fn context(registers: &Registers, state_at: u64) -> [u64; 32] {
    let (rip, rax) = resumed(registers);
    let r = registers;
    let segments = (r.cs & 0xffff) | (r.ss & 0xffff) << 48;
    let mut words = [0; 32];
    words[..18].copy_from_slice(&[
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, rax, r.rcx, r.rsp,
        rip, r.eflags,
    ]);
    words[18] = segments;
    words[23] = state_at;
    words
}

/// Where it goes on, and with what result of the call that it was in: what the kernel would have done on its way out.
fn resumed(registers: &Registers) -> (u64, u64) {
    let result = registers.rax.cast_signed();
    match registers.orig_rax.cast_signed() {
        call if call >= 0 && RESTART.contains(&result) => (registers.rip - 2, registers.orig_rax),
        call if call >= 0 && result == RESTART_BLOCK => (registers.rip, EINTR.cast_unsigned()),
        _ => (registers.rip, registers.rax),
    }
}
