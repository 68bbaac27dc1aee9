//! A dead man's switch for threads that write to a guest's memory outside a vCPU: copying, bringing back.
//!
//! No check stands between two instructions of a copy. A thread that is stopped in the middle of one (SIGSTOP, a debugger, a
//! scheduler that has forgotten it) would go on where it was, whatever has become of its host meanwhile. So a timer of the
//! kernel signals the thread once in every interval of the lease, and counts also while the process is stopped. A thread that is
//! back from a longer pause executes the handler before anything else: it beats the lease, looks whether the host has been
//! fenced, and if so ends the process there and then.
//!
//! A vCPU thread needs none: its kicks do the same for it.

use crate::error::{Error, Result};
use crate::tether::Tether;
use std::io;
use std::sync::OnceLock;

/// The status with which a process ends whose host has been fenced.
pub const FENCED_STATUS: i32 = 75;

/// While this lives, the thread that made it does not survive its host's fencing.
#[derive(Debug)]
pub struct Deadman {
    timer: libc::timer_t,
}

/// The signal: the one after that which kicks vCPU threads.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

impl Deadman {
    /// Guards the calling thread.
    ///
    /// # Errors
    /// [`Error::Fenced`]; [`Error::NoTimer`].
    pub fn guard(tether: Tether) -> Result<Self> {
        if !tether.beat() {
            return Err(Error::Fenced);
        }
        static HANDLER: OnceLock<bool> = OnceLock::new();
        if !HANDLER.get_or_init(install) {
            return Err(Error::NoTimer { source: io::Error::last_os_error() });
        }
        let interval = tether.terms().interval();
        // A signal may be pending when the timer has gone, so what the handler looks at is never freed: some ten words for each
        // time that something is copied by order.
        let tether: &'static Tether = Box::leak(Box::new(tether));
        // SAFETY: all bytes zero are a `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_value.sival_ptr = std::ptr::from_ref(tether).cast_mut().cast();
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer = std::ptr::null_mut();
        // SAFETY: both are alive, and the thread is the calling one.
        if unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) } != 0 {
            return Err(Error::NoTimer { source: io::Error::last_os_error() });
        }
        let deadman = Self { timer };
        let interval = libc::timespec {
            tv_sec: interval.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: interval.subsec_nanos().into(),
        };
        let setting = libc::itimerspec { it_interval: interval, it_value: interval };
        // SAFETY: the timer is ours, and the setting is alive.
        if unsafe { libc::timer_settime(deadman.timer, 0, &raw const setting, std::ptr::null_mut()) } != 0 {
            return Err(Error::NoTimer { source: io::Error::last_os_error() });
        }
        Ok(deadman)
    }
}

impl Drop for Deadman {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, and nobody uses it any more.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn install() -> bool {
    // SAFETY: all bytes zero are a `sigaction` with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is alive; the handler does only what a handler may: it reads and changes words in shared memory, and ends
    // the process.
    unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) == 0 }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`.
    let (code, value) = unsafe { ((*info).si_code, (*info).si_value().sival_ptr) };
    if code != libc::SI_TIMER || value.is_null() {
        return;
    }
    // SAFETY: only `Deadman::guard` makes timers with this signal, and their value is a tether that is never freed. Looking at
    // it allocates nothing and takes no lock.
    let tether: &Tether = unsafe { &*value.cast::<Tether>() };
    if !tether.beat() {
        // SAFETY: it ends the process, and may be called from a handler.
        unsafe { libc::_exit(FENCED_STATUS) };
    }
}
