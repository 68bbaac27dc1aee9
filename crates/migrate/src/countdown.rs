//! The [`Tally`] as one atomic word.

use crate::protocol::{Arrival, Tally};
use nil_pool::Epoch;
use nil_pool::sync::{AtomicU64, Ordering};

/// A tally that the vCPU threads of a worker count down together.
///
/// An arrival releases what the thread wrote and acquires what those before it wrote: the last one sees all.
#[derive(Debug)]
pub struct Countdown(AtomicU64);

impl Countdown {
    /// A countdown that starts with this tally.
    #[must_use]
    pub fn new(tally: Tally) -> Self {
        Self(AtomicU64::new(tally.encode()))
    }

    /// The present tally.
    #[must_use]
    pub fn read(&self) -> Tally {
        Tally::decode(self.0.load(Ordering::Acquire))
    }

    /// Starts or ends a round.
    pub fn set(&self, tally: Tally) {
        self.0.swap(tally.encode(), Ordering::AcqRel);
    }

    /// Counts the calling thread in, if the round is still on.
    pub fn arrive(&self, round: Epoch, well: bool) -> Arrival {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let (next, arrival) = Tally::decode(seen).arrive(round, well);
            if arrival == Arrival::TooLate {
                return arrival;
            }
            match self.0.compare_exchange(seen, next.encode(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return arrival,
                Err(now) => seen = now,
            }
        }
    }

    /// Notes that something went wrong in this round after the arrival.
    pub fn fail(&self, round: Epoch) {
        let mut seen = self.0.load(Ordering::Acquire);
        while let Err(now) =
            self.0.compare_exchange(seen, Tally::decode(seen).fail(round).encode(), Ordering::AcqRel, Ordering::Acquire)
        {
            seen = now;
        }
    }
}
