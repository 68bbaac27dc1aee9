//! A lock that is given in the order in which it was asked for.
//!
//! A move takes it for every chunk and gives it back after each. An ordinary mutex would be its own again before anybody
//! else wakes up, and a second move, or who wants to close the memory, would wait until the first is through.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the lock guards, and who is next.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    queue: Mutex<Queue>,
    next: Condvar,
    guarded: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The number that whoever asks next gets.
    number: u64,
    /// The number whose turn it is.
    serving: u64,
}

/// The turn of whoever holds it; it ends on drop.
#[derive(Debug)]
pub(crate) struct Turn<'a, T> {
    turns: &'a Turns<T>,
    guarded: Option<MutexGuard<'a, T>>,
}

impl<T> Turns<T> {
    pub(crate) fn new(guarded: T) -> Self {
        Self { queue: Mutex::default(), next: Condvar::new(), guarded: Mutex::new(guarded) }
    }

    /// Waits until all who asked before have had their turn.
    pub(crate) fn take(&self) -> Turn<'_, T> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = queue.number;
        queue.number += 1;
        while queue.serving != mine {
            queue = self.next.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        Turn { turns: self, guarded: Some(self.guarded.lock().unwrap_or_else(PoisonError::into_inner)) }
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.guarded = None;
        self.turns.queue.lock().unwrap_or_else(PoisonError::into_inner).serving += 1;
        self.turns.next.notify_all();
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guarded.as_ref().expect("the guard is there until the turn ends")
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guarded.as_mut().expect("the guard is there until the turn ends")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn who_takes_turn_after_turn_does_not_keep_others_out() {
        let turns = Turns::new(0u64);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    *turns.take() += 1;
                }
            });
            while *turns.take() < 1000 {}
            done.store(true, Ordering::Relaxed);
        });
        assert!(*turns.take() >= 1000);
    }
}
