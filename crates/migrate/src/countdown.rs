//! What the vCPU threads of a worker share while they freeze or land: the [`Tally`] as one atomic word, and how many of
//! them are at work.

use crate::protocol::{Arrival, Tally};
use nil_pool::Epoch;
use nil_pool::sync::{AtomicU32, AtomicU64, Ordering, fence};

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

/// How many threads are writing to state areas.
///
/// A thread enters, then looks whether its round is on; a coordinator ends the round, then looks whether anybody is in.
/// The fences between make it certain that one of the two sees the other: nobody writes for a round that is over once
/// the coordinator has found the place empty.
#[derive(Debug, Default)]
pub struct Occupancy(AtomicU32);

impl Occupancy {
    /// Nobody is in.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Counts the calling thread in until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> Occupied<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        Occupied(self)
    }

    /// Whether nobody is in; what those who were in have written is then visible.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A thread's presence in an [`Occupancy`].
#[derive(Debug)]
pub struct Occupied<'a>(&'a Occupancy);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}
