//! The owner map: which capacity owns which granule.
//!
//! One word per granule of the pool: 0 free, all ones the pool's own tables, else a [`Reference`] to a capacity. A
//! granule is allocated by compare-and-swap on its word, so processes allocate at once without a lock. A word whose
//! capacity is over belongs to nobody: whoever needs a granule may take it, so that nothing a dead process left behind
//! is ever lost.

use crate::format::capacity::{Extent, MAX_EXTENTS};
use crate::format::slot_word::Reference;
use crate::mapping::exchange;
use crate::slots::Slots;
use crate::sync::{AtomicU64, Ordering};

/// The word of a granule that holds the pool's tables.
pub const RESERVED: u64 = u64::MAX;
/// After so many lost races for a run of granules the allocator takes what single pieces it finds.
const RUN_ATTEMPTS: usize = 8;

/// The owner words, with what is needed to judge them.
#[derive(Clone, Copy, Debug)]
pub struct OwnerMap<'a> {
    /// One word per granule of the pool.
    pub words: &'a [AtomicU64],
    /// The capacity table's slot words.
    pub capacities: Slots<'a>,
    /// The first granule that is not the pool's own.
    pub first_data: usize,
}

/// Why granules could not be had; in granules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    /// Free in all.
    pub free: u64,
    /// In the 64 largest pieces.
    pub largest: u64,
}

/// What was claimed: extents, and whether some granule was left behind by a capacity that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed {
    /// The granules.
    pub extents: Vec<Extent>,
    /// The granules among them that were not clean.
    pub reclaimed: Vec<Extent>,
}

impl OwnerMap<'_> {
    /// The word of a granule that may be claimed.
    fn claimable(&self, granule: usize) -> Option<u64> {
        match self.words[granule].load(Ordering::Acquire) {
            0 => Some(0),
            RESERVED => None,
            word => Reference::decode(word).filter(|owner| self.capacities.is_over(*owner)).map(|_| word),
        }
    }

    /// How many granules are free.
    #[must_use]
    pub fn free(&self) -> u64 {
        (self.first_data..self.words.len()).filter(|granule| self.claimable(*granule).is_some()).count() as u64
    }

    /// Claims `count` granules for `owner`, looking from `hint` on for a run that holds them all, then for at most 64
    /// pieces.
    ///
    /// # Errors
    /// [`NoRoom`]; nothing is claimed then.
    pub fn claim(&self, owner: Reference, count: u32, hint: usize) -> Result<Claimed, NoRoom> {
        let mut from = hint;
        for _ in 0..RUN_ATTEMPTS {
            let Some(first) = self.find_run(from, count as usize) else { break };
            match self.take(owner, first, count as usize) {
                Ok(claimed) => return Ok(claimed),
                Err(lost_at) => from = lost_at + count as usize,
            }
        }
        self.claim_pieces(owner, count)
    }

    /// First granule of a free run of `count`, at or after `from`, else from the beginning.
    fn find_run(&self, from: usize, count: usize) -> Option<usize> {
        let from = if (self.first_data..self.words.len()).contains(&from) { from } else { self.first_data };
        let behind = self.find_run_in(from, self.words.len(), count);
        behind.or_else(|| self.find_run_in(self.first_data, (from + count).min(self.words.len()), count))
    }

    fn find_run_in(&self, start: usize, end: usize, count: usize) -> Option<usize> {
        let mut first = start;
        for granule in start..end {
            if self.claimable(granule).is_none() {
                first = granule + 1;
            } else if granule + 1 - first == count {
                return Some(first);
            }
        }
        None
    }

    /// Claims one run, or nothing: then the granule that somebody else got.
    fn take(&self, owner: Reference, first: usize, count: usize) -> Result<Claimed, usize> {
        let mut reclaimed = Vec::new();
        for granule in first..first + count {
            let won =
                self.claimable(granule).filter(|word| exchange(&self.words[granule], *word, owner.encode()).is_ok());
            match won {
                Some(0) => {}
                Some(_) => reclaimed.extend(extent(granule, 1)),
                None => {
                    self.release_run(owner, first..granule);
                    return Err(granule);
                }
            }
        }
        Ok(Claimed { extents: extent(first, count).into_iter().collect(), reclaimed })
    }

    /// Claims the largest free pieces until `count` is reached.
    fn claim_pieces(&self, owner: Reference, count: u32) -> Result<Claimed, NoRoom> {
        loop {
            let pieces = self.choose_pieces(count)?;
            let mut claimed = Claimed { extents: Vec::new(), reclaimed: Vec::new() };
            let won_all =
                pieces.iter().all(|piece| match self.take(owner, piece.first as usize, piece.count as usize) {
                    Ok(taken) => {
                        claimed.extents.extend(taken.extents);
                        claimed.reclaimed.extend(taken.reclaimed);
                        true
                    }
                    Err(_) => false,
                });
            if won_all {
                return Ok(claimed);
            }
            self.release(owner, &claimed.extents);
            crate::sync::yield_now();
        }
    }

    fn choose_pieces(&self, count: u32) -> Result<Vec<Extent>, NoRoom> {
        let mut runs = self.free_runs();
        let free = runs.iter().map(|run| u64::from(run.count)).sum();
        runs.sort_by_key(|run| std::cmp::Reverse(run.count));
        runs.truncate(MAX_EXTENTS);
        let largest = runs.iter().map(|run| u64::from(run.count)).sum();
        let (mut left, mut pieces) = (count, Vec::new());
        for run in runs {
            let taken = run.count.min(left);
            pieces.push(Extent { first: run.first, count: taken });
            left -= taken;
            if left == 0 {
                pieces.sort_by_key(|piece| piece.first);
                return Ok(pieces);
            }
        }
        Err(NoRoom { free, largest })
    }

    fn free_runs(&self) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for granule in (self.first_data..self.words.len()).filter(|granule| self.claimable(*granule).is_some()) {
            match runs.last_mut() {
                Some(last) if last.end() == granule as u64 => last.count += 1,
                _ => runs.extend(extent(granule, 1)),
            }
        }
        runs
    }

    /// Gives back the granules of these extents that `owner` has.
    pub fn release(&self, owner: Reference, extents: &[Extent]) {
        for extent in extents {
            self.release_run(owner, extent.granules());
        }
    }

    fn release_run(&self, owner: Reference, granules: std::ops::Range<usize>) {
        for word in self.words.get(granules).unwrap_or(&[]) {
            // Another value means that somebody finished this release already, and perhaps reuses the granule.
            let _ = exchange(word, owner.encode(), 0);
        }
    }

    /// Every granule that `owner` has, by looking at all of them.
    #[must_use]
    pub fn owned(&self, owner: Reference) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for granule in self.first_data..self.words.len() {
            if self.words[granule].load(Ordering::Relaxed) != owner.encode() {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.end() == granule as u64 => last.count += 1,
                _ => runs.extend(extent(granule, 1)),
            }
        }
        runs
    }
}

/// An extent; `None` only for granules that no pool has.
fn extent(first: usize, count: usize) -> Option<Extent> {
    Some(Extent { first: u32::try_from(first).ok()?, count: u32::try_from(count).ok()? })
}
