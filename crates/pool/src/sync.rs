//! The atomics of the pool: `std`'s, or loom's under `--cfg loom`, so that the same code runs under the model checker; in this
//! crate's own tests those of the simulated medium, which are `std`'s as long as no simulation runs.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, Ordering};
#[cfg(all(not(test), not(loom)))]
pub use std::sync::atomic::{AtomicU64, fence};

#[cfg(all(test, not(loom)))]
pub use crate::medium::{AtomicU64, fence};

/// Lets another thread run; under loom, lets it explore one.
pub(crate) fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}
