//! Kicking a vCPU thread out of the guest.
//!
//! A kick is a signal that vCPU threads keep blocked, and that only `KVM_RUN` unblocks (`KVM_SET_SIGNAL_MASK`,
//! Documentation/virt/kvm/api.rst). So it is never delivered: it makes `KVM_RUN` return `EINTR`, whether it came while
//! the guest ran or between two `KVM_RUN`s, and stays pending until the thread takes it back. No handler runs while the
//! guest stands still, and no kick is lost.

use crate::error::{Error, Result};
use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::AsRawFd;
use vmm_sys_util::signal::{Error as SignalError, SIGRTMIN, block_signal, clear_signal, get_blocked_signals};

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, of which the kernel counts the fixed part only.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_AE8B;

/// `struct kvm_signal_mask` with the kernel's 64-bit signal set.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    set: u64,
}
const _: () = assert!(size_of::<SignalMask>() == 12);

/// Makes the calling thread, which is to run `vcpu`, one that kicks take out of the guest and nowhere else.
pub(crate) fn make_kickable(vcpu: &VcpuFd) -> Result<()> {
    block()?;
    let blocked = get_blocked_signals().map_err(|error| Error::Signal(io::Error::other(error.to_string())))?;
    let others = blocked.into_iter().filter(|signal| *signal != SIGRTMIN());
    let set = others.fold(0, |set, signal| set | 1 << (signal - 1));
    let mask = SignalMask { len: 8, set };
    // SAFETY: the fd is a vCPU's, and `mask` is alive and as long as its `len` says.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
    if result == 0 {
        Ok(())
    } else {
        Err(Error::Kvm { ioctl: "KVM_SET_SIGNAL_MASK", source: io::Error::last_os_error() })
    }
}

/// Kicks the thread, whose handle the caller holds.
pub(crate) fn kick(thread: libc::pthread_t) {
    // SAFETY: the id is valid as long as the thread has not been joined. A thread that has finished gives ESRCH, which
    // means that there is nothing to stop; one that has not made itself kickable yet has the signal blocked, since its
    // creator has.
    unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
}

/// Kicks the calling thread.
pub(crate) fn kick_self() {
    // SAFETY: a thread's own id is valid while it runs.
    kick(unsafe { libc::pthread_self() });
}

/// Blocks kicks in the calling thread, so that the vCPU threads that it starts inherit that.
pub(crate) fn block() -> Result<()> {
    match block_signal(SIGRTMIN()) {
        Ok(()) | Err(SignalError::SignalAlreadyBlocked(_)) => Ok(()),
        Err(error) => Err(Error::Signal(io::Error::other(error.to_string()))),
    }
}

/// Takes back every kick of the calling thread that is pending.
pub(crate) fn clear() {
    // It fails only for a signal number that is none.
    clear_signal(SIGRTMIN()).ok();
}
