//! Time stamps of the last handoff, so that both sides' phases can be put into one report.
//!
//! Stamps are raw TSC values and say something only between hosts whose TSCs run in step (one machine). They are hints
//! for reports; nothing decides by them.

use crate::sync::{AtomicU64, Ordering};

/// The events of a handoff that are stamped. The value is the index in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Stamp {
    /// The source kicked its vCPUs.
    Kick = 0,
    /// The last vCPU of the source left the guest.
    Exited = 1,
    /// The last part of the source was saved.
    Saved = 2,
    /// The source moved the word to `Frozen`.
    Published = 3,
    /// The target saw `Frozen`.
    Seen = 4,
    /// The last part of the target was loaded.
    Loaded = 5,
    /// The target moved the word to `Owned`.
    Claimed = 6,
    /// The first vCPU of the target entered the guest.
    Entered = 7,
    /// The source moved the word to `Offered`.
    Offered = 8,
    /// The target was poised.
    Poised = 9,
    /// The target was armed.
    Armed = 10,
    /// The source took the guest back.
    TakenBack = 11,
}

/// Sixteen stamps in shared memory; those without a [`Stamp`] are reserved.
#[derive(Debug)]
#[repr(C)]
pub struct Timeline([AtomicU64; Timeline::STAMPS]);

impl Default for Timeline {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Timeline {
    /// How many stamps there is room for.
    pub const STAMPS: usize = 16;

    /// Notes the time of an event.
    #[inline]
    pub fn set(&self, stamp: Stamp, tsc: u64) {
        self.0[stamp as usize].store(tsc, Ordering::Relaxed);
    }

    /// The time of an event; 0 when it has not happened since the last [`Timeline::clear`].
    #[must_use]
    #[inline]
    pub fn get(&self, stamp: Stamp) -> u64 {
        self.0[stamp as usize].load(Ordering::Relaxed)
    }

    /// Forgets all stamps.
    pub fn clear(&self) {
        for stamp in &self.0 {
            stamp.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_stands_until_the_timeline_is_cleared() {
        let timeline = Timeline::default();
        timeline.set(Stamp::Entered, 42);
        assert_eq!((timeline.get(Stamp::Entered), timeline.get(Stamp::Kick)), (42, 0));
        timeline.clear();
        assert_eq!(timeline.get(Stamp::Entered), 0);
    }
}
