//! Naming the system call for which a worker is about to be killed, for who works on its sandbox.
//!
//! The kernel kills a worker that makes a call its sandbox forbids without a word. With `NIL_SANDBOX_TRAP` in the
//! environment of its agent it raises `SIGSYS` instead; the handler here writes the call's number and the thread into the
//! worker's log, and then the signal does what it would have done. Not for machines with guests that matter: who has
//! taken a worker over could put a handler of its own in this one's place, and go on.
#![allow(unsafe_code)]

use std::io::Write;

/// Has a forbidden call named in the log, if that is asked for.
pub(super) fn name_if_asked() {
    if std::env::var_os("NIL_SANDBOX_TRAP").is_none() {
        return;
    }
    // SAFETY: all bytes zero are a `sigaction`; its handler and flags are set before it is used.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: the action is alive during the call, and its handler does what handlers may (signal-safety(7)).
    unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn handle(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler that was installed with SA_SIGINFO a context that is alive while it runs.
    let call = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] };
    let mut line = [0; 96];
    let mut rest = &mut line[..];
    let _ = writeln!(rest, "the sandbox forbids system call {call}, and kills the worker for it");
    let length = 96 - rest.len();
    // SAFETY: the bytes are alive; `write` and `raise` are among the functions that a handler may call. The signal's own
    // action is the default one again, by SA_RESETHAND.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        libc::raise(signal);
    }
}
