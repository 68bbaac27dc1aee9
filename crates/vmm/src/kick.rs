//! Kicking a vCPU thread out of the guest.
//!
//! A kick is a signal to the thread. Its handler, which runs on that very thread, sets `kvm_run.immediate_exit`, so that
//! `KVM_RUN` returns `EINTR` whether the signal came while the guest ran, or between two `KVM_RUN`s
//! (Documentation/virt/kvm/api.rst, `immediate_exit`). The flag stays set until the vCPU's state has been saved.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::Once;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// Where this thread's `immediate_exit` is; null when it runs no vCPU.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|flag| {
        let flag = flag.get();
        if !flag.is_null() {
            // SAFETY: a non-null pointer was put there by a `Kickable` of this thread that is still alive, and so is
            // the kvm_run page; the kernel reads the byte when the thread enters KVM_RUN.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// Installs the handler, once per process.
///
/// # Errors
/// What `sigaction` says.
pub(crate) fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), on_kick).map_err(io::Error::from));
    result
}

/// While it lives, kicks of this thread stop the vCPU whose flag it was made with.
pub(crate) struct Kickable {
    /// Bound to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Kickable {
    /// `immediate_exit` lies in the mapped kvm_run page of a vCPU that outlives the guard on this thread.
    pub(crate) fn new(immediate_exit: *mut u8) -> Self {
        IMMEDIATE_EXIT.with(|flag| flag.set(immediate_exit));
        Self { _thread: PhantomData }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|flag| flag.set(std::ptr::null_mut()));
    }
}

/// Kicks the thread. It must not have been joined yet.
pub(crate) fn kick(thread: libc::pthread_t) {
    // SAFETY: the caller holds the thread's JoinHandle, so the id is valid; the handler is installed before any vCPU
    // thread is started. A thread that has finished gives ESRCH, which means that there is nothing to stop.
    unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
}
