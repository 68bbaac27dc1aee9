//! Bringing a guest back to its last commit, by whoever takes it over.
//!
//! ```text
//!  1  record, index, state         validated; a guest without a whole commit is refused, and nothing has been written
//!  2  Active(n) → Sealed(n)        the former owner commits nothing more
//!  3  log n & 1 → image            unless the applied word says n: each page checked, and written if the image has not got it
//!  4  slot n & 1 → state slot      where the guest's next landing looks, as of its owner's epoch
//!  5  placement                    every granule Pooled, then `away` counted
//! ```
//!
//! Every step may be done again, by the same or another host, however far it had come: what 3 to 5 write depends on nothing
//! but commit *n*, which nobody changes once it is sealed. It is worth something as long as nobody has run the guest since: a
//! worker that is about to run it suspends the protection before it claims the guest.

use super::{Protection, holds, write_image};
use crate::capacity_mapping::CapacityMapping;
use crate::control::GuestControl;
use crate::deadman::Deadman;
use crate::error::{Error, Result};
use crate::format::placement::{Place, Placed};
use crate::format::protection::{Commit, LOG_PAGE, LogEntry, Standing};
use crate::format::{BadRecord, checksum};
use crate::ownership::{Epoch, HostSlot, Ownership};
use crate::state::{Area, StateArea, copy_area, is_whole};
use crate::tether::Tether;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// What a guest was brought back to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The number of the commit.
    pub commit: u64,
    /// When the guest stood still for it, in nanoseconds since 1970 by its former owner's clock.
    pub taken: u64,
    /// Pages of that commit's redo log that were looked at: none, if its owner had brought all of it into the image.
    pub pages: u64,
    /// Pages of the image that had to be written.
    pub written: u64,
    /// Bytes that were written, of memory.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Pages between two looks whether the guest is still the taker's, and that are mapped at once: 2 MiB.
const AT_ONCE: usize = 512;
/// Fewer pages in a row than these are mapped as they are touched.
const RUN: u64 = 16;
/// Fewer pages than these are brought back by one thread.
const ALONE: usize = 2048;
/// Most threads.
const MOST: usize = 4;

impl GuestControl {
    /// The commit to which the guest can be brought back if its owner `former` is gone, if there is one: its record and its
    /// index are whole. Writes nothing.
    ///
    /// # Errors
    /// What keeps it from being read: damage, or no room to map it.
    pub fn last_commit(&self, former: HostSlot) -> Result<Option<Commit>> {
        let Some(protection) = self.protection()? else { return Ok(None) };
        let (Standing::Active(number) | Standing::Sealed(number)) = protection.standing()? else { return Ok(None) };
        let commit = protection.commit(number)?;
        protection.index(&commit)?;
        Ok((commit.host == former).then_some(commit))
    }

    /// Brings the guest back to the last commit of its former owner: its memory in the pool, and the state of its vCPUs and its
    /// machine in state slot `epoch & 1`, as frozen at `epoch`. All of its memory is in the pool then. For the host that has
    /// taken the guest, once the former owner can write nothing more, at the epoch at which it has it; `still_ours` says again
    /// and again that it has. It may be interrupted anywhere and begun anew, by another host and at a later epoch.
    ///
    /// # Errors
    /// [`Error::NoCommit`] when there is no whole commit of that owner, [`Error::Damaged`] and [`Error::DamagedWord`] when there
    /// should be: nobody can bring the guest back. [`Error::TakenAgain`] when it is not ours any more. What else keeps its
    /// capacities from being mapped.
    pub fn restore(&self, former: HostSlot, epoch: Epoch, still_ours: impl Fn() -> bool + Sync) -> Result<Restored> {
        let begun = Instant::now();
        let none = |why| Error::NoCommit { guest: self.id(), why };
        let ours = || if still_ours() { Ok(()) } else { Err(Error::TakenAgain { guest: self.id() }) };
        let protection = self.protection()?.ok_or_else(|| none("it is not protected"))?;
        let standing = protection.standing()?;
        let (Standing::Active(number) | Standing::Sealed(number)) = standing else {
            return Err(none("its protection was not in force when its owner died"));
        };
        let commit = protection.commit(number)?;
        if commit.host != former || commit.epoch >= epoch {
            return Err(none("its last commit is not of the owner that died"));
        }
        let index = protection.index(&commit)?;
        let state = self.map_state()?;
        require_state(&protection, &commit, &state)?;
        let image = self.map_memory()?;
        ours()?;
        if standing != Standing::Sealed(number) {
            protection.stand(standing, Standing::Sealed(number))?;
        }
        // Like the calling thread's, no store of the others may come after the taker has been fenced.
        let guard = || match self.ownership().load() {
            Ok(Ownership::Taken { taker, .. }) => Deadman::guard(Tether::new(self.pool(), taker)?).map(Some),
            Ok(_) | Err(_) => Ok(None),
        };
        let mut restored = Restored {
            commit: commit.number,
            taken: commit.taken,
            pages: 0,
            written: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
        };
        let entries = if protection.is_applied(number) { Vec::new() } else { index };
        restored.pages = entries.len() as u64;
        restored.written = protection.redo_all(&commit, &entries, &image, (&ours, &guard))?;
        image.require_there()?;
        ours()?;
        copy_state(&protection, &commit, &state, epoch);
        all_pooled(&state);
        restored.bytes = restored.written * LOG_PAGE as u64;
        restored.elapsed = begun.elapsed();
        Ok(restored)
    }
}

impl Protection {
    /// Brings pages into the image, by several threads if they are many; how many had to be written. `ours` is asked again
    /// and again, by each of them; the others are guarded as the calling one is.
    fn redo_all(
        &self,
        commit: &Commit,
        entries: &[LogEntry],
        image: &CapacityMapping,
        (ours, guard): (&(impl Fn() -> Result<()> + Sync), &(impl Fn() -> Result<Option<Deadman>> + Sync)),
    ) -> Result<u64> {
        let next = AtomicUsize::new(0);
        let redo = || {
            let mut written = 0;
            loop {
                let first = next.fetch_add(AT_ONCE, Ordering::Relaxed);
                let Some(block) = entries.get(first..).filter(|left| !left.is_empty()) else { return Ok(written) };
                ours()?;
                let block = &block[..block.len().min(AT_ONCE)];
                self.bring_in(Commit::half(commit.number), first as u64, block, image);
                for (place, entry) in (first as u64..).zip(block) {
                    written += u64::from(self.redo(commit, place, *entry, image)?);
                }
            }
        };
        let cpus = available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if entries.len() < ALONE { 1 } else { cpus.min(MOST) };
        std::thread::scope(|scope| {
            let guarded = || {
                let _deadman = guard()?;
                redo()
            };
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(guarded)).collect();
            let join = |written: Result<u64>, other: std::thread::ScopedJoinHandle<'_, Result<u64>>| match other.join()
            {
                Ok(more) => Ok(written? + more?),
                Err(panic) => std::panic::resume_unwind(panic),
            };
            others.into_iter().fold(redo(), join)
        })
    }

    /// Has these pages of the log and of the image mapped, in a few calls rather than by a fault for each. What cannot be
    /// is mapped when it is touched, or is not there, which whoever touches it will learn.
    fn bring_in(&self, half: usize, first: u64, entries: &[LogEntry], image: &CapacityMapping) {
        self.populate_log(half, first..first + entries.len() as u64);
        for run in entries.chunk_by(|one, next| one.page + 1 == next.page) {
            if run.len() as u64 >= RUN {
                let bytes = |page: u64| usize::try_from(page).unwrap_or(usize::MAX) * LOG_PAGE;
                let _ = image.mapping().populate(bytes(run[0].page)..bytes(run[0].page) + run.len() * LOG_PAGE);
            }
        }
    }

    /// Brings a page into the image; whether it had to be written.
    fn redo(&self, commit: &Commit, place: u64, entry: LogEntry, image: &CapacityMapping) -> Result<bool> {
        let mut copy = [0; LOG_PAGE];
        self.read_log(Commit::half(commit.number), place, &mut copy);
        if checksum(&copy) != entry.crc {
            let what = format!("page {:#x} of commit {} of guest {}", entry.page, commit.number, self.shape.guest);
            return Err(Error::Damaged { what, source: BadRecord::Checksum });
        }
        if holds(image, entry.page, &copy) {
            return Ok(false);
        }
        write_image(image, entry.page, &copy);
        Ok(true)
    }
}

/// Says that all of the memory is in the pool.
fn all_pooled(state: &StateArea) {
    let (placement, pooled) = (state.placement(), Placed::cold(Place::Pooled));
    for granule in 0..placement.granules() {
        if placement.get(granule) != Ok(pooled) {
            placement.put(granule, pooled);
        }
    }
    placement.recount();
}

/// The areas of a commit, each with the one of the state slot that it goes to.
fn areas(protection: &Protection, commit: &Commit, state: &StateArea, slot: usize) -> Vec<(Area, Area)> {
    let half = Commit::half(commit.number);
    let vcpus = (0..state.vcpus() as usize).map(|index| (protection.vcpu(half, index), state.vcpu(slot, index)));
    std::iter::once((protection.machine(half), state.machine(slot))).chain(vcpus).collect()
}

fn require_state(protection: &Protection, commit: &Commit, state: &StateArea) -> Result<()> {
    let whole = areas(protection, commit, state, 0).iter().all(|(from, _)| is_whole(from, Commit::mark(commit.number)));
    let what = || format!("the state of commit {} of guest {}", commit.number, protection.shape.guest);
    if whole { Ok(()) } else { Err(Error::Damaged { what: what(), source: BadRecord::Checksum }) }
}

fn copy_state(protection: &Protection, commit: &Commit, state: &StateArea, epoch: Epoch) {
    for (from, to) in areas(protection, commit, state, epoch.slot()) {
        copy_area(&from, &to, (Commit::mark(commit.number), epoch));
    }
}
