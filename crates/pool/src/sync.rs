//! The atomics of the pool: `std`'s, or loom's under `--cfg loom`, so that the same code runs under the model checker; in this
//! crate's own tests those of the simulated medium, which are `std`'s as long as no simulation runs.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(all(not(test), not(loom)))]
pub use std::sync::atomic::fence;
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
pub use words::AtomicU64;

#[cfg(all(test, not(loom)))]
pub use crate::medium::fence;

/// Lets another thread run; under loom, lets it explore one.
pub(crate) fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}

/// Loads what the cache may have of a word: what was there when it was last refreshed, or later.
#[inline]
pub(crate) fn load_cached(word: &AtomicU64, order: Ordering) -> u64 {
    #[cfg(loom)]
    return word.load(order);
    #[cfg(not(loom))]
    word.0.load(order)
}

/// Stores a word where the cache has its line as it is in memory. Writing it back is the caller's business.
#[inline]
#[track_caller]
pub(crate) fn store_cached(word: &AtomicU64, value: u64, order: Ordering) {
    #[cfg(loom)]
    word.store(value, order);
    #[cfg(not(loom))]
    word.0.store(value, order);
}

/// Words that hosts whose caches do not agree see alike: in a process that has such a pool open each access goes to memory.
#[cfg(not(loom))]
mod words {
    use super::Ordering;
    #[cfg(test)]
    use crate::medium::AtomicU64 as Raw;
    use crate::persist::{Point, is_software_coherent, persist, refresh_now};
    #[cfg(not(test))]
    use std::sync::atomic::AtomicU64 as Raw;

    /// A 64-bit word. Between processes of one host its changes are atomic in any case; between hosts only where hardware keeps
    /// their caches coherent.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct AtomicU64(pub(super) Raw);

    impl AtomicU64 {
        /// A word outside any pool.
        #[must_use]
        pub const fn new(value: u64) -> Self {
            Self(Raw::new(value))
        }

        fn start(&self) -> *const u8 {
            std::ptr::from_ref(self).cast()
        }

        /// What this host's cache has of the word is what the memory has.
        #[inline]
        fn renew(&self) {
            if is_software_coherent() {
                refresh_now(self.start(), size_of::<u64>());
            }
        }

        /// What this host has stored is in the memory.
        #[inline]
        fn write_through(&self) {
            if is_software_coherent() {
                persist(Point::Word, self.start(), size_of::<u64>());
            }
        }

        /// See `std`.
        #[inline]
        pub fn load(&self, order: Ordering) -> u64 {
            self.renew();
            self.0.load(order)
        }

        /// See `std`.
        #[inline]
        #[track_caller]
        pub fn store(&self, value: u64, order: Ordering) {
            self.renew();
            self.0.store(value, order);
            self.write_through();
        }

        /// See `std`.
        #[inline]
        #[track_caller]
        pub fn swap(&self, value: u64, order: Ordering) -> u64 {
            self.renew();
            let before = self.0.swap(value, order);
            self.write_through();
            before
        }

        /// See `std`.
        ///
        /// # Errors
        /// The word's value, if it is another one.
        #[inline]
        #[track_caller]
        pub fn compare_exchange(&self, from: u64, to: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
            self.renew();
            let before = self.0.compare_exchange(from, to, success, failure);
            self.write_through();
            before
        }

        /// See `std`.
        #[inline]
        #[track_caller]
        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.renew();
            let before = self.0.fetch_add(value, order);
            self.write_through();
            before
        }

        /// See `std`.
        #[inline]
        #[track_caller]
        pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.renew();
            let before = self.0.fetch_sub(value, order);
            self.write_through();
            before
        }

        /// See `std`.
        ///
        /// # Errors
        /// The word's value, if `update` gives none.
        #[inline]
        #[track_caller]
        pub fn fetch_update(
            &self,
            set: Ordering,
            fetch: Ordering,
            update: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            self.renew();
            let before = self.0.fetch_update(set, fetch, update);
            self.write_through();
            before
        }
    }
}
