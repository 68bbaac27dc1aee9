//! Kicking a vCPU thread out of the guest.
//!
//! A kick is a signal that vCPU threads keep blocked, and that only `KVM_RUN` unblocks (`KVM_SET_SIGNAL_MASK`,
//! Documentation/virt/kvm/api.rst). So it is never delivered: it makes `KVM_RUN` return `EINTR`, whether it came while
//! the guest ran or between two `KVM_RUN`s, and stays pending until the thread takes it back. No handler runs while the
//! guest stands still, and no kick is lost.
//!
//! A thread whose guest rests waits for just this signal, so that a kick ends the rest as it would end `KVM_RUN`.

use crate::error::{Error, Result};
use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;
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

/// Waits for so long, or for a kick, which stays pending. Whether it was a kick.
pub(crate) fn rest(limit: Duration) -> bool {
    let limit = libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // SAFETY: all bytes zero are a `sigset_t`, which is filled in before it is used.
    let mut kicks: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `kicks` is alive and writable.
    unsafe { libc::sigemptyset(&raw mut kicks) };
    // SAFETY: as above; the signal is one that exists.
    unsafe { libc::sigaddset(&raw mut kicks, SIGRTMIN()) };
    // SAFETY: the set and the limit are alive; nobody wants to know who sent the signal.
    let signal = unsafe { libc::sigtimedwait(&raw const kicks, std::ptr::null_mut(), &raw const limit) };
    // What was waited for has been taken, and `KVM_RUN` must see it.
    let kicked = signal == SIGRTMIN();
    if kicked {
        kick_self();
    }
    kicked
}

/// Kicks one thread again and again, by a timer of the kernel.
///
/// The kernel goes on counting while the process is stopped, and while the machine sleeps. So a thread that was away for longer
/// than the interval finds a kick pending when it is back, and does not enter the guest before it has looked around.
#[derive(Debug)]
pub(crate) struct Ticker(libc::timer_t);

// SAFETY: a timer's id is a number of its process; any thread may use it.
unsafe impl Send for Ticker {}

impl Ticker {
    /// A timer for the calling thread, which does not run yet.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: all bytes zero are a `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer = std::ptr::null_mut();
        // SAFETY: both are alive, and the thread is one of this process.
        let result = unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) };
        if result == 0 { Ok(Self(timer)) } else { Err(Error::Signal(io::Error::last_os_error())) }
    }

    /// Lets it run.
    pub(crate) fn start(&self, interval: Duration) -> Result<()> {
        let interval = libc::timespec {
            tv_sec: interval.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: interval.subsec_nanos().into(),
        };
        let setting = libc::itimerspec { it_interval: interval, it_value: interval };
        // SAFETY: the timer is ours until it is dropped, and the setting is alive.
        let result = unsafe { libc::timer_settime(self.0, 0, &raw const setting, std::ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(Error::Signal(io::Error::last_os_error())) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, and nobody uses it any more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Takes back every kick of the calling thread that is pending.
pub(crate) fn clear() {
    // It fails only for a signal number that is none.
    clear_signal(SIGRTMIN()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::thread::JoinHandleExt;
    use std::sync::mpsc::channel;
    use std::thread;

    /// Longer than any test may take.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_ticker_kicks_its_thread_until_it_is_dropped() {
        let thread = thread::spawn(|| {
            block().expect("kicks are blocked");
            let ticker = Ticker::new().expect("a timer");
            ticker.start(Duration::from_millis(1)).expect("it runs");
            for _ in 0..3 {
                assert!(rest(FOR_EVER));
                clear();
            }
            drop(ticker);
            clear();
            assert!(!rest(Duration::from_millis(20)));
        });
        thread.join().expect("it is kicked");
    }

    #[test]
    fn a_kick_ends_a_rest_and_stays_pending() {
        let (resting, rests) = channel();
        let thread = thread::spawn(move || {
            block().expect("kicks are blocked");
            resting.send(()).expect("the test waits");
            rest(FOR_EVER);
            // Nothing but the first kick can end this one: it is still there for whoever looks.
            rest(FOR_EVER);
            clear();
            rest(Duration::from_micros(1));
        });
        rests.recv().expect("it is about to rest");
        kick(thread.as_pthread_t());
        thread.join().expect("it ends");
    }
}
