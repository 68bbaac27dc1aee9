//! Where the threads of one worker wait for each other: a word of their own memory and a futex, never the pool's.
//!
//! ```text
//!     31                         1   0
//!     | times opened             | somebody sleeps |
//! ```
//!
//! A sleeper sets the low bit in the very word that it sleeps on, so an opening that nobody waits for costs one
//! compare-and-swap and no system call, and no wake-up is ever missed (`tests/loom.rs`).

use nil_pool::sync::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const SLEEPER: u32 = 1;
const OPENED: u32 = 2;

/// A place to wait for a condition that another thread of this process brings about.
#[derive(Debug)]
pub struct Gate(Futex);

impl Default for Gate {
    fn default() -> Self {
        Self(Futex::new(0))
    }
}

impl Gate {
    /// A gate that nobody waits at.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody look at the condition again. What the caller wrote before is visible to whoever wakes.
    pub fn open(&self) {
        let mut seen = self.0.word.load(Ordering::Relaxed);
        loop {
            let opened = (seen & !SLEEPER).wrapping_add(OPENED);
            match self.0.word.compare_exchange(seen, opened, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen & SLEEPER != 0 {
            self.0.wake_all();
        }
    }

    /// Waits until `condition` gives something. It is asked once before any waiting, and after each opening.
    pub fn wait<T>(&self, condition: impl Fn() -> Option<T>) -> T {
        loop {
            let seen = self.0.word.load(Ordering::Acquire);
            if let Some(found) = condition() {
                return found;
            }
            let asleep = seen | SLEEPER;
            if seen == asleep || self.mark(seen, asleep) {
                self.0.sleep(asleep);
            }
        }
    }

    /// Like [`Gate::wait`], but stays runnable for `patience` before it sleeps, and yields its CPU to whoever else wants it.
    pub fn wait_spinning<T>(&self, patience: Duration, condition: impl Fn() -> Option<T>) -> T {
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(found) = condition() {
                return found;
            }
            std::thread::yield_now();
        }
        self.wait(condition)
    }

    fn mark(&self, seen: u32, asleep: u32) -> bool {
        self.0.word.compare_exchange(seen, asleep, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// A futex of this process.
#[cfg(not(loom))]
#[derive(Debug)]
struct Futex {
    word: AtomicU32,
}

#[cfg(not(loom))]
impl Futex {
    fn new(value: u32) -> Self {
        Self { word: AtomicU32::new(value) }
    }

    fn sleep(&self, expected: u32) {
        // Woken, changed meanwhile, or interrupted: the caller looks for itself in every case.
        let _ = rustix::thread::futex::wait(&self.word, rustix::thread::futex::Flags::PRIVATE, expected, None);
    }

    fn wake_all(&self) {
        // The word is a live u32 of this process, which is all that FUTEX_WAKE can object to.
        let _ = rustix::thread::futex::wake(&self.word, rustix::thread::futex::Flags::PRIVATE, i32::MAX.unsigned_abs());
    }
}

/// What a futex promises, in loom's terms: comparing and falling asleep are one step with respect to waking.
#[cfg(loom)]
#[derive(Debug)]
struct Futex {
    word: AtomicU32,
    queue: loom::sync::Mutex<()>,
    woken: loom::sync::Condvar,
}

#[cfg(loom)]
impl Futex {
    fn new(value: u32) -> Self {
        Self { word: AtomicU32::new(value), queue: loom::sync::Mutex::new(()), woken: loom::sync::Condvar::new() }
    }

    fn sleep(&self, expected: u32) {
        let queue = self.queue.lock().expect("no panic under the queue's lock");
        if self.word.load(Ordering::SeqCst) == expected {
            drop(self.woken.wait(queue).expect("no panic under the queue's lock"));
        }
    }

    fn wake_all(&self) {
        let _queue = self.queue.lock().expect("no panic under the queue's lock");
        self.woken.notify_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_condition_that_holds_is_not_waited_for() {
        assert_eq!(Gate::new().wait(|| Some(3)), 3);
    }

    #[test]
    fn every_sleeper_wakes_when_the_gate_opens() {
        let shared = Arc::new((Gate::new(), AtomicU32::new(0)));
        let sleepers: Vec<_> = (0..4)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.0.wait(|| Some(shared.1.load(Ordering::Relaxed)).filter(|&n| n > 0)))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        shared.1.store(7, Ordering::Relaxed);
        shared.0.open();
        for sleeper in sleepers {
            assert_eq!(sleeper.join().expect("a sleeper ends"), 7);
        }
    }

    #[test]
    fn a_spinner_that_is_not_served_in_time_falls_asleep_and_wakes_all_the_same() {
        let shared = Arc::new((Gate::new(), AtomicU32::new(0)));
        let spinner = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let condition = || Some(spinner.1.load(Ordering::Relaxed)).filter(|&n| n > 0);
            spinner.0.wait_spinning(Duration::from_micros(50), condition)
        });
        std::thread::sleep(Duration::from_millis(20));
        shared.1.store(1, Ordering::Relaxed);
        shared.0.open();
        assert_eq!(thread.join().expect("the spinner ends"), 1);
    }
}
