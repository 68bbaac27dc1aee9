//! The words of a pool in this crate's tests: `std`'s atomics, or the simulated medium's while one runs.

use super::{Mutation, with, with_place};
use std::panic::Location;
use std::sync::atomic::{AtomicU64 as Native, Ordering};

/// A word; in a mapping of a pool it is the current host's view of it.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct AtomicU64(Native);

/// The word in the file.
pub(super) fn native(address: usize) -> u64 {
    // SAFETY: the callers have found this address in a mapping of a pool that is there as long as they run, and it is aligned.
    unsafe { &*std::ptr::with_exposed_provenance::<Native>(address) }.load(Ordering::Relaxed)
}

impl AtomicU64 {
    /// A word outside any pool.
    #[must_use]
    pub(crate) const fn new(value: u64) -> Self {
        Self(Native::new(value))
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(&self.0).expose_provenance()
    }

    /// See `std`.
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        let simulated =
            with_place(self.address(), |medium, place| medium.load(place, || self.0.load(Ordering::Relaxed)));
        simulated.unwrap_or_else(|| self.0.load(order))
    }

    /// See `std`.
    #[track_caller]
    pub(crate) fn store(&self, value: u64, order: Ordering) {
        let by = Location::caller();
        let simulated = with_place(self.address(), |medium, place| {
            let release = releases(order) && !medium.leaves_out(|mutation| mutation.weakens(by));
            medium.store(place, value, release);
        });
        if simulated.is_none() {
            self.0.store(value, order);
        }
    }

    #[track_caller]
    fn change(&self, order: Ordering, change: impl FnOnce(u64) -> Option<u64>) -> Option<u64> {
        let by = Location::caller();
        with_place(self.address(), |medium, place| {
            let release = releases(order) && !medium.leaves_out(|mutation| mutation.weakens(by));
            medium.change(place, release, || self.0.load(Ordering::Relaxed), change)
        })
    }

    /// See `std`.
    #[track_caller]
    pub(crate) fn compare_exchange(
        &self,
        from: u64,
        to: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        match self.change(success, |found| (found == from).then_some(to)) {
            Some(found) if found == from => Ok(found),
            Some(found) => Err(found),
            None => self.0.compare_exchange(from, to, success, failure),
        }
    }

    /// See `std`.
    #[track_caller]
    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.change(order, |_| Some(value)).unwrap_or_else(|| self.0.swap(value, order))
    }

    /// See `std`.
    #[track_caller]
    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        let added = self.change(order, |found| Some(found.wrapping_add(value)));
        added.unwrap_or_else(|| self.0.fetch_add(value, order))
    }

    /// See `std`.
    #[track_caller]
    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        let subtracted = self.change(order, |found| Some(found.wrapping_sub(value)));
        subtracted.unwrap_or_else(|| self.0.fetch_sub(value, order))
    }

    /// See `std`.
    #[track_caller]
    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        let mut updated = false;
        let change = |found| update(found).inspect(|_| updated = true);
        match self.change(set, change) {
            Some(found) if updated => Ok(found),
            Some(found) => Err(found),
            None => self.0.fetch_update(set, fetch, update),
        }
    }
}

fn releases(order: Ordering) -> bool {
    matches!(order, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst)
}

/// See `std`.
#[track_caller]
pub fn fence(order: Ordering) {
    let by = Location::caller();
    with(|medium| {
        if !releases(order) || medium.leaves_out(|mutation: &Mutation| mutation.lifts(by)) {
            return;
        }
        match order {
            Ordering::SeqCst => medium.push_out(|_| true),
            _ => medium.release(),
        }
    });
    std::sync::atomic::fence(order);
}
