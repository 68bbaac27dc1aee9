//! The two sides of a guest's memory, as far as the process that runs it has them.
//!
//! [`Sides`] says which page is on which side *now*, for granules that are partly on both; the placement map in the pool
//! says so for whole granules. [`Supply`] is what all moves of the memory have in common, and take turns with.

use crate::dram::{Mirror, PAGE, granule_bytes};
use crate::error::{Error, Result};
use crate::userfault::Userfault;
use nil_pool::{CapacityMapping, Epoch, HostSlot, Place};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Pages of a granule.
const PAGES: usize = granule_bytes() / PAGE;

/// Which pages of a granule are in the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PageSet([u64; PAGES / 64]);

impl PageSet {
    pub(crate) fn none() -> Self {
        Self([0; PAGES / 64])
    }

    pub(crate) fn all() -> Self {
        Self([u64::MAX; PAGES / 64])
    }

    fn has(&self, page: usize) -> bool {
        self.0[page / 64] >> (page % 64) & 1 == 1
    }

    /// Puts the pages of a part of the granule into the set, or takes them out.
    fn set(&mut self, part: &Range<usize>, side: Side) {
        for page in part.start / PAGE..part.end / PAGE {
            let bit = 1 << (page % 64);
            match side {
                Side::Pool => self.0[page / 64] |= bit,
                Side::Dram => self.0[page / 64] &= !bit,
            }
        }
    }

    /// How many of the granule's bytes are on a side.
    fn bytes_on(&self, side: Side) -> usize {
        let pooled = self.0.iter().map(|word| word.count_ones() as usize).sum::<usize>() * PAGE;
        match side {
            Side::Pool => pooled,
            Side::Dram => granule_bytes() - pooled,
        }
    }

    /// The first part of the granule that is not on this side: a power of two, aligned to itself, of at most `limit` bytes.
    fn first_not_on(&self, side: Side, limit: usize) -> Option<Range<usize>> {
        let is_there = |page| self.has(page) == (side == Side::Pool);
        let first = (0..PAGES).find(|page| !is_there(*page))?;
        let mut pages = 1;
        while 2 * pages * PAGE <= limit
            && first.is_multiple_of(2 * pages)
            && (first + pages..first + 2 * pages).all(|page| !is_there(page))
        {
            pages *= 2;
        }
        Some(first * PAGE..(first + pages) * PAGE)
    }
}

/// Where a page can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// This host's DRAM.
    Dram,
    /// The pool.
    Pool,
}

/// Which page is where, in whose name, and the pool's side mapped.
///
/// The placement map says the same of whole granules, but others can write there: what this process has mapped where is
/// kept here, and a map that says otherwise is an error.
#[derive(Debug)]
pub(crate) struct Sides {
    /// The guest's memory capacity, mapped apart from the guest's range; there is none while the guest is wholly local.
    pub(crate) pool: Option<Arc<CapacityMapping>>,
    /// Who runs the guest.
    pub(crate) owner: Option<(HostSlot, Epoch)>,
    /// For each granule: where it is, or most lately was, wholly.
    whole: Vec<Side>,
    /// The granules that are on both sides.
    mixed: BTreeMap<usize, PageSet>,
    /// Bytes that are in the pool: the sum of all of these.
    pooled: usize,
}

impl Sides {
    /// The memory of a guest that is wholly in the pool, or wholly in DRAM.
    pub(crate) fn new(granules: usize, pool: Option<CapacityMapping>) -> Self {
        let side = if pool.is_some() { Side::Pool } else { Side::Dram };
        let pooled = if side == Side::Pool { granules * granule_bytes() } else { 0 };
        Self { pool: pool.map(Arc::new), owner: None, whole: vec![side; granules], mixed: BTreeMap::new(), pooled }
    }

    fn pages(&self, granule: usize) -> PageSet {
        self.mixed.get(&granule).cloned().unwrap_or_else(|| match self.whole[granule] {
            Side::Dram => PageSet::none(),
            Side::Pool => PageSet::all(),
        })
    }

    /// Refuses a placement that is not what this process has made of the granule.
    pub(crate) fn check(&self, granule: usize, place: Place) -> Result<()> {
        let agrees = match place {
            Place::Pooled => self.pages(granule) == PageSet::all(),
            Place::Local { .. } => self.pages(granule) == PageSet::none(),
            Place::Mixed { .. } => self.mixed.contains_key(&granule),
        };
        if agrees { Ok(()) } else { Err(Error::Misplaced { granule, place }) }
    }

    /// Whether any byte is in the pool.
    pub(crate) fn has_pooled(&self) -> bool {
        self.pooled > 0
    }

    /// Whether all of it is in the pool.
    pub(crate) fn is_pooled(&self) -> bool {
        self.left(Side::Pool) == 0
    }

    /// How many bytes of all are not on this side.
    pub(crate) fn left(&self, side: Side) -> usize {
        match side {
            Side::Pool => self.whole.len() * granule_bytes() - self.pooled,
            Side::Dram => self.pooled,
        }
    }

    /// How many bytes of a granule are not on this side.
    pub(crate) fn bytes_not_on(&self, side: Side, granule: usize) -> usize {
        granule_bytes() - self.pages(granule).bytes_on(side)
    }

    /// The next part of the granule to go to this side, of at most `limit` bytes: offsets in the guest's memory.
    pub(crate) fn next_chunk(&self, side: Side, granule: usize, limit: usize) -> Option<Range<usize>> {
        let start = granule * granule_bytes();
        let part = self.pages(granule).first_not_on(side, limit)?;
        Some(start + part.start..start + part.end)
    }

    /// Where the chunk's granule will be once the chunk has gone to this side.
    pub(crate) fn place_after(&self, chunk: &Range<usize>, side: Side) -> Result<Place> {
        let (host, epoch) = self.owner.ok_or(Error::NoOwner)?;
        Ok(match self.pages_after(chunk, side).bytes_on(Side::Pool) {
            0 => Place::Local { host, epoch },
            pooled if pooled == granule_bytes() => Place::Pooled,
            _ => Place::Mixed { host, epoch },
        })
    }

    fn pages_after(&self, chunk: &Range<usize>, side: Side) -> PageSet {
        let mut pages = self.pages(chunk.start / granule_bytes());
        let start = chunk.start % granule_bytes();
        pages.set(&(start..start + chunk.len()), side);
        pages
    }

    /// The chunk has gone to this side.
    pub(crate) fn note(&mut self, chunk: &Range<usize>, side: Side) {
        let granule = chunk.start / granule_bytes();
        let pages = self.pages_after(chunk, side);
        self.pooled = self.pooled + pages.bytes_on(Side::Pool) - self.pages(granule).bytes_on(Side::Pool);
        if pages.bytes_on(side) == granule_bytes() {
            self.mixed.remove(&granule);
            self.whole[granule] = side;
        } else {
            self.mixed.insert(granule, pages);
        }
    }

    /// Which side a byte is on.
    pub(crate) fn side_of(&self, offset: usize) -> Side {
        let pooled = self.pages(offset / granule_bytes()).has(offset % granule_bytes() / PAGE);
        if pooled { Side::Pool } else { Side::Dram }
    }
}

/// What chunks are moved with.
#[derive(Debug, Default)]
pub(crate) struct Supply {
    /// Where memory that comes to DRAM comes from; once made, it stays.
    pub(crate) mirror: Option<Arc<Mirror>>,
    /// What stores are held up with; there while memory moves.
    pub(crate) userfault: Option<Arc<Userfault>>,
    /// Moves that are under way.
    pub(crate) moves: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_powers_of_two_aligned_to_themselves() {
        let mut pages = PageSet::none();
        assert_eq!(pages.first_not_on(Side::Pool, granule_bytes()), Some(0..granule_bytes()));
        assert_eq!(pages.first_not_on(Side::Pool, 64 << 10), Some(0..64 << 10));
        pages.set(&(0..4096), Side::Pool);
        assert_eq!(pages.first_not_on(Side::Pool, granule_bytes()), Some(4096..8192));
        pages.set(&(4096..8192), Side::Pool);
        assert_eq!(pages.first_not_on(Side::Pool, granule_bytes()), Some(8192..16384));
        assert_eq!(pages.first_not_on(Side::Dram, granule_bytes()), Some(0..8192));
        pages.set(&(0..granule_bytes()), Side::Pool);
        assert_eq!(pages.first_not_on(Side::Pool, granule_bytes()), None);
        assert_eq!(pages, PageSet::all());
    }

    #[test]
    fn a_granule_is_mixed_until_all_of_it_is_on_one_side() {
        let (host, epoch) = (HostSlot::new(1).expect("a slot"), Epoch(3));
        let mut sides = Sides::new(2, None);
        sides.owner = Some((host, epoch));
        let half = granule_bytes() / 2;
        let (first, second) = (granule_bytes()..granule_bytes() + half, granule_bytes() + half..2 * granule_bytes());
        sides.check(1, Place::Local { host, epoch }).expect("it is local");
        let mixed = Place::Mixed { host, epoch };
        assert_eq!(sides.place_after(&first, Side::Pool).expect("an owner"), mixed);
        sides.note(&first, Side::Pool);
        sides.check(1, mixed).expect("it is mixed");
        sides.check(1, Place::Pooled).expect_err("a part of it is local still");
        assert_eq!((sides.side_of(first.start), sides.side_of(second.start)), (Side::Pool, Side::Dram));
        assert_eq!(sides.bytes_not_on(Side::Pool, 1), half);
        assert_eq!((sides.left(Side::Pool), sides.left(Side::Dram)), (3 * half, half));
        assert_eq!(sides.next_chunk(Side::Pool, 1, granule_bytes()), Some(second.clone()));
        assert_eq!(sides.place_after(&second, Side::Pool).expect("an owner"), Place::Pooled);
        sides.note(&second, Side::Pool);
        sides.check(1, Place::Pooled).expect("all of it is in the pool");
        assert!(sides.mixed.is_empty() && sides.has_pooled() && !sides.is_pooled());
        sides.note(&(0..granule_bytes()), Side::Pool);
        assert!(sides.is_pooled());
        sides.note(&(0..granule_bytes()), Side::Dram);
        sides.note(&(granule_bytes()..2 * granule_bytes()), Side::Dram);
        assert!(!sides.has_pooled());
    }
}
