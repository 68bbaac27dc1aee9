//! A moment in which no vCPU runs, and in which each saves itself.
//!
//! ```text
//!   coordinator   begin ─ kick ─ wait: all stopped ─ pages, machine ─ wait: all saved ─ end
//!   vCPU thread            leaves the guest ─ stopped ─ saves itself ─ saved ─ waits ───── runs on
//! ```
//!
//! A vCPU thread that is through with its vCPU helps to copy pages. Nobody allocates between the kick and the end.

use crate::error::Error;
use nil_migrate::Part;
use nil_migrate::gate::Gate;
use nil_mover::GuestMemory;
use nil_pool::{Commit, Protection};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long a vCPU thread stays runnable before it sleeps until the end. Longer than a standstill usually takes.
const ALERT: Duration = Duration::from_millis(2);

/// A standstill that is on. Each has a number of its own: a thread that comes late for one that was given up is not counted in
/// the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Round(u64);

/// How many vCPUs have come so far: the round's number in the upper 48 bits, the count in the lower 16.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    const BITS: u32 = 16;

    fn restart(&self, round: Round) {
        self.0.store(round.0 << Self::BITS, Ordering::Release);
    }

    /// Counts the caller, if that is the round that is on.
    fn arrive(&self, round: Round) -> bool {
        let one_more = |word: u64| (word >> Self::BITS == round.0).then_some(word + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Acquire) & ((1 << Self::BITS) - 1)
    }
}

/// Pages that are to be copied, by whoever has the time.
#[derive(Default)]
struct Copies {
    /// Places and pages.
    jobs: RwLock<Vec<(u64, u64)>>,
    /// The round that they are of.
    round: AtomicU64,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Copies {
    /// Jobs that a thread takes at once.
    const AT_ONCE: usize = 8;

    fn post(&self, round: Round, pages: impl Iterator<Item = (u64, u64)>) {
        let mut jobs = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        jobs.clear();
        jobs.extend(pages);
        self.next.store(0, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.round.store(round.0, Ordering::Release);
    }

    /// Does jobs of this round until none is left to be begun.
    fn take(&self, round: Round, mut copy: impl FnMut(u64, u64)) {
        if self.round.load(Ordering::Acquire) != round.0 {
            return;
        }
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
        // Posting another round takes the lock that is held here.
        if self.round.load(Ordering::Acquire) != round.0 {
            return;
        }
        loop {
            let from = self.next.fetch_add(Self::AT_ONCE, Ordering::AcqRel);
            let Some(mine) = jobs.get(from..).filter(|left| !left.is_empty()) else { return };
            let mine = &mine[..mine.len().min(Self::AT_ONCE)];
            mine.iter().for_each(|&(place, page)| copy(place, page));
            self.done.fetch_add(mine.len(), Ordering::AcqRel);
        }
    }

    fn await_done(&self) {
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner).len();
        let mut turns = 0u32;
        while self.done.load(Ordering::Acquire) < jobs {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(64) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// So many can be posted without allocating.
    fn reserve(&self, jobs: usize) {
        let mut all = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        all.clear();
        all.reserve(jobs);
    }
}

/// What the vCPU threads and the coordinator of a machine share for it.
#[derive(Default)]
pub(crate) struct Standstill {
    /// Where vCPUs save themselves; none while nobody protects the guest.
    place: RwLock<Option<Protection>>,
    /// The round that is on, or was last.
    round: AtomicU64,
    /// The commit that it is for.
    number: AtomicU64,
    /// The last round that is over.
    over: AtomicU64,
    vcpus: AtomicU64,
    stopped: Count,
    saved: Count,
    failed: AtomicBool,
    gate: Gate,
    copies: Copies,
    /// Some vCPU thread has ended: no round will ever be complete.
    left: AtomicBool,
}

impl Standstill {
    /// Where vCPUs are to save themselves from now on.
    pub(super) fn set_place(&self, place: Option<Protection>) {
        let pages = place.as_ref().map_or(0, Protection::log_pages);
        self.copies.reserve(usize::try_from(pages).unwrap_or(0));
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Begins a round for so many vCPUs, which are kicked next, and for the commit of this number.
    pub(super) fn begin(&self, number: u64, vcpus: usize) -> Round {
        let round = Round(self.round.load(Ordering::Relaxed) + 1);
        self.failed.store(false, Ordering::Relaxed);
        self.vcpus.store(vcpus as u64, Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
        self.stopped.restart(round);
        self.saved.restart(round);
        self.round.store(round.0, Ordering::Release);
        round
    }

    /// Waits until no vCPU runs; false, if that does not come about in time.
    pub(super) fn await_stopped(&self, _: Round, patience: Duration) -> bool {
        self.wait_for(&self.stopped, patience)
    }

    /// Waits until every vCPU is saved; false, if one could not be.
    pub(super) fn await_saved(&self, _: Round, patience: Duration) -> bool {
        self.wait_for(&self.saved, patience) && !self.failed.load(Ordering::Acquire)
    }

    fn wait_for(&self, count: &Count, patience: Duration) -> bool {
        let (deadline, vcpus) = (Instant::now() + patience, self.vcpus.load(Ordering::Relaxed));
        let mut turns = 0u32;
        while count.read() < vcpus {
            if self.left.load(Ordering::Acquire) || Instant::now() > deadline {
                return false;
            }
            turns = turns.wrapping_add(1);
            // A vCPU thread may need this very CPU.
            if turns.is_multiple_of(64) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        true
    }

    /// Has these pages copied to these places of the redo log, by the caller and by every vCPU thread that is through with its
    /// vCPU, and returns when all are.
    pub(super) fn copy(&self, round: Round, pages: impl Iterator<Item = (u64, u64)>, memory: &GuestMemory) {
        self.copies.post(round, pages);
        self.help(round, memory);
        self.copies.await_done();
    }

    /// Copies pages that are still to be copied, if there are any in this round.
    fn help(&self, round: Round, memory: &GuestMemory) {
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        let Some(protection) = &*place else { return };
        let half = Commit::half(self.number.load(Ordering::Relaxed));
        self.copies.take(round, |place, page| protection.log(half, place, memory, page));
    }

    /// Lets the vCPUs run on.
    pub(super) fn end(&self, round: Round) {
        self.over.store(round.0, Ordering::Release);
        self.gate.open();
    }

    /// A vCPU thread has been kicked for it: saves the vCPU, and waits until it may run on.
    ///
    /// # Errors
    /// Why the vCPU could not be saved; it runs on.
    pub(crate) fn join<P: Part<Error = Error>>(
        &self,
        index: usize,
        part: &mut P,
        memory: &GuestMemory,
    ) -> Result<(), Error> {
        let round = Round(self.round.load(Ordering::Acquire));
        if self.is_over(round) || !self.stopped.arrive(round) {
            return Ok(());
        }
        let saved = self.save(index, part);
        if saved.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        self.saved.arrive(round);
        self.gate.wait_spinning(ALERT, || {
            self.help(round, memory);
            self.is_over(round).then_some(())
        });
        saved
    }

    fn is_over(&self, round: Round) -> bool {
        self.over.load(Ordering::Acquire) >= round.0
    }

    fn save<P: Part<Error = Error>>(&self, index: usize, part: &mut P) -> Result<(), Error> {
        // Nobody changes it while a round is on.
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        let Some(protection) = &*place else { return Ok(()) };
        let number = self.number.load(Ordering::Relaxed);
        let area = protection.vcpu(Commit::half(number), index);
        let mut out = area.writer(Commit::mark(number));
        part.save(&mut out)?;
        out.finish();
        Ok(())
    }

    /// A vCPU thread ends.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }
}
