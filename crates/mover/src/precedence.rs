//! The mover's thread before all others, for as long as stores are kept out of a chunk.
//!
//! A thread that loses its CPU in the middle of a chunk keeps the guest's stores waiting until it has got one again: on a
//! busy host that is milliseconds, where the chunk itself takes a tenth of one. So it takes the lowest real-time priority
//! (`SCHED_FIFO`, sched(7)) when it protects a chunk, and gives it back when the chunk has moved: the same reason for which
//! a lock has a priority ceiling. In between it is a thread like any other.
//!
//! Measured on two CPUs with ten other runnable threads, 256 MiB of small pages, the default budget, one thread that stores
//! into every page: without it 2 to 19 chunks of a move were waited for, for 4 to 16 ms in the median; with it none or one,
//! for 200 µs.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The right of threads to go first, or the knowledge that there is none.
#[derive(Debug, Default)]
pub(crate) struct Precedence {
    denied: AtomicBool,
}

/// The calling thread goes first until this is dropped, by the same thread.
#[derive(Debug)]
pub(crate) struct First {
    /// The policy that it had. (Its nice value is kept by the kernel.)
    former: libc::c_int,
    /// Threads change their own policy only.
    _own: std::marker::PhantomData<*const ()>,
}

impl Precedence {
    /// Lets the calling thread go first; `None` when it may not, or does so anyway.
    pub(crate) fn take(&self) -> Option<First> {
        if self.denied.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: the call takes a number.
        let former = unsafe { libc::sched_getscheduler(0) } & !libc::SCHED_RESET_ON_FORK;
        if former != libc::SCHED_OTHER && former != libc::SCHED_BATCH {
            return None;
        }
        match set_policy(libc::SCHED_FIFO, 1) {
            Ok(()) => Some(First { former, _own: std::marker::PhantomData }),
            Err(error) => {
                if !self.denied.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        "the mover may not go before other threads ({error}): on a busy host, stores into a chunk that moves \
                         may have to wait until it has got a CPU again; RLIMIT_RTPRIO of 1 or CAP_SYS_NICE would do"
                    );
                }
                None
            }
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // Giving up a priority is always permitted, unlike taking back that threads it starts do not inherit it.
        if let Err(error) = set_policy(self.former, 0) {
            tracing::warn!("the mover's thread cannot give up its priority: {error}");
        }
    }
}

/// Of the calling thread. Threads that it starts do not inherit it.
fn set_policy(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters are alive during the call, which reads them only.
    let result = unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: the call takes a number.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_goes_first_until_it_gives_that_up() {
        let before = policy();
        let precedence = Precedence::default();
        let Some(first) = precedence.take() else {
            return eprintln!("skipped: this process may not have real-time priority");
        };
        assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
        let started = std::thread::spawn(policy).join().unwrap();
        assert_eq!(
            started & !libc::SCHED_RESET_ON_FORK,
            libc::SCHED_OTHER,
            "threads that it starts are like any other"
        );
        assert!(precedence.take().is_none(), "it does so already");
        assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
        drop(first);
        assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, before & !libc::SCHED_RESET_ON_FORK);
    }

    /// `CAP_SYS_NICE`, of linux/capability.h.
    const SYS_NICE: u32 = 23;

    /// Takes the calling thread's right to any scheduling away, and leaves it what `RLIMIT_RTPRIO` permits.
    fn drop_sys_nice() -> bool {
        #[repr(C)]
        struct Header {
            version: u32,
            pid: i32,
        }
        let mut header = Header { version: 0x2008_0522, pid: 0 };
        let mut sets = [[0u32; 3]; 2];
        // SAFETY: both are alive, and as long as version 3 of the interface says.
        unsafe {
            if libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) != 0 {
                return false;
            }
            sets[0][0] &= !(1 << SYS_NICE);
            libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) == 0
        }
    }

    #[test]
    fn who_has_the_right_by_its_limit_alone_gives_it_back_too() {
        let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
        // SAFETY: the limit is alive during the call.
        let limited = unsafe { libc::setrlimit(libc::RLIMIT_RTPRIO, &raw const limit) } == 0;
        std::thread::spawn(move || {
            let precedence = Precedence::default();
            let Some(first) = (limited && drop_sys_nice()).then(|| precedence.take()).flatten() else {
                return eprintln!("skipped: this process may not have real-time priority by RLIMIT_RTPRIO");
            };
            drop(first);
            assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_may_not_is_not_asked_again() {
        let precedence = Precedence { denied: AtomicBool::new(true) };
        assert!(precedence.take().is_none());
    }
}
