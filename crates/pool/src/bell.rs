//! A doorbell in shared memory: a counter that a waiter can sleep on.
//!
//! On one kernel a ring wakes the sleeper at once (a shared futex). Two kernels that share the memory do not see each
//! other's futex queues, so a waiter never sleeps longer than its timeout and then looks for itself.

use crate::sync::{AtomicU32, Ordering};
use std::time::Duration;

/// Which of the two parties of a handoff a doorbell belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Rung to wake the source.
    Source,
    /// Rung to wake the target.
    Target,
}

/// A counter in shared memory. It wraps; only "changed since I looked" has a meaning.
#[derive(Debug)]
#[repr(transparent)]
pub struct Bell(AtomicU32);

impl Default for Bell {
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Bell {
    /// The present count: read it, look at what the bell announces, then [`Bell::wait`] with the count.
    #[must_use]
    #[inline]
    pub fn read(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Counts up and wakes every waiter. What was written before is visible to whoever sees the new count.
    pub fn ring(&self) {
        self.0.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Sleeps until the count is no longer `seen`, at most about `timeout`. It may return early for no reason.
    pub fn wait(&self, seen: u32, timeout: Duration) {
        if self.read() == seen {
            self.sleep(seen, timeout);
        }
    }

    #[cfg(not(loom))]
    fn wake(&self) {
        // Nobody waits, or waits on another kernel: either way there is nothing to do about an error.
        let _ = rustix::thread::futex::wake(&self.0, rustix::thread::futex::Flags::empty(), u32::MAX >> 1);
    }

    #[cfg(not(loom))]
    fn sleep(&self, seen: u32, timeout: Duration) {
        use rustix::io::Errno;
        use rustix::thread::futex;
        let span = futex::Timespec::try_from(timeout).ok();
        match futex::wait(&self.0, futex::Flags::empty(), seen, span.as_ref()) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
            // Memory that the kernel keeps no futex on: poll instead.
            Err(_) => std::thread::sleep(timeout.min(Duration::from_millis(1))),
        }
    }

    #[cfg(loom)]
    fn wake(&self) {}

    #[cfg(loom)]
    fn sleep(&self, _seen: u32, _timeout: Duration) {
        loom::thread::yield_now();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn a_ring_between_look_and_wait_is_not_missed() {
        let bell = Bell::default();
        let seen = bell.read();
        bell.ring();
        let start = Instant::now();
        bell.wait(seen, Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_ring_wakes_the_sleeper() {
        let bell = Arc::new(Bell::default());
        let seen = bell.read();
        let ringer = Arc::clone(&bell);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            ringer.ring();
        });
        while bell.read() == seen {
            bell.wait(seen, Duration::from_secs(60));
        }
        thread.join().expect("the ringer ends");
        assert_eq!(bell.read(), seen.wrapping_add(1));
    }

    #[test]
    fn a_wait_ends_with_its_timeout() {
        let bell = Bell::default();
        let start = Instant::now();
        bell.wait(bell.read(), Duration::from_millis(5));
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
