//! The placement map: which granule of a guest's memory is where.
//!
//! ```text
//!  0  granules  u64     how many words follow
//!  8  away      u64     how many granules are not wholly in the pool
//! 16  zero
//! 64  words     one per granule, see [`crate::format::placement`]
//! ```
//!
//! It lies in the guest's state capacity and is written by the owner's worker only; several of its threads may move
//! different granules at once. `away` is raised before a granule leaves the pool and lowered after it has come back, so
//! it is never too low, wherever the worker dies. Too high it can be then; [`PlacementMap::recount`] sets it right.

use crate::capacity_mapping::CapacityMapping;
use crate::fault;
use crate::format::placement::{BadPlacement, Place, Placed};
use crate::mapping::{Mapping, put};
use crate::persist::{Point, persist};
use crate::sync::{AtomicU64, Ordering};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const GRANULES: u64 = 0;
const AWAY: u64 = 8;
const WORDS: u64 = 64;

/// Bytes of the map of so many granules.
pub(crate) const fn map_bytes(granules: u64) -> u64 {
    WORDS + granules * 8
}

/// A guest's placement map. Clones are cheap and show the same map.
#[derive(Clone, Debug)]
pub struct PlacementMap {
    mapping: Arc<CapacityMapping>,
    at: u64,
    granules: usize,
}

/// How many granules of a guest are where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PlacementSummary {
    /// In a host's DRAM.
    pub local: u64,
    /// Partly there, partly in the pool.
    pub mixed: u64,
    /// In the pool.
    pub pooled: u64,
    /// Nobody knows: their words are damaged.
    pub damaged: u64,
}

impl PlacementMap {
    /// Writes the map of a new guest, all of whose granules are in the same place.
    pub(crate) fn format(mapping: &Mapping, at: u64, granules: u64, place: Place) {
        let placed = Placed::cold(place).encode();
        put(mapping.word(at + GRANULES), granules, Ordering::Relaxed);
        put(mapping.word(at + AWAY), if place.is_away() { granules } else { 0 }, Ordering::Relaxed);
        for index in 0..granules {
            put(mapping.word(at + WORDS + index * 8), placed, Ordering::Relaxed);
        }
    }

    /// The map at this offset of a state capacity that is large enough for it; `None` when it is not the map of so many
    /// granules.
    pub(crate) fn open(mapping: Arc<CapacityMapping>, at: u64, granules: u64) -> Option<Self> {
        let found = mapping.mapping().word(at + GRANULES).load(Ordering::Acquire);
        let granules = usize::try_from(granules).ok().filter(|_| found == granules)?;
        Some(Self { mapping, at, granules })
    }

    fn words(&self) -> PlacementWords<'_> {
        let mapping = self.mapping.mapping();
        PlacementWords { away: mapping.word(self.at + AWAY), granules: mapping.words(self.at + WORDS, self.granules) }
    }

    /// How many granules the guest's memory has.
    #[must_use]
    pub fn granules(&self) -> usize {
        self.granules
    }

    /// Where a granule is; what was written before the word is visible afterwards (acquire).
    ///
    /// # Errors
    /// [`BadPlacement`] when its word is damaged.
    ///
    /// # Panics
    /// When there is no such granule.
    pub fn get(&self, index: usize) -> Result<Placed, BadPlacement> {
        let word = self.words().granules[index].load(Ordering::Acquire);
        Placed::decode(word).ok_or(BadPlacement { granule: index, word })
    }

    /// Writes down where a granule is; what was written before becomes visible with it (release). For the owner's worker
    /// only, and one thread at a time for each granule; different granules may be put at once.
    ///
    /// # Panics
    /// When there is no such granule.
    pub fn put(&self, index: usize, placed: Placed) {
        self.words().put(index, placed);
    }

    /// Writes down how much a granule is used; where it is stays as it is, even if another thread moves it at this moment.
    /// A damaged word is left alone.
    ///
    /// # Panics
    /// When there is no such granule.
    pub fn set_heat(&self, index: usize, heat: u8) {
        let warmed = |word| Placed::decode(word).map(|placed| Placed { heat, ..placed }.encode());
        let _ = self.words().granules[index].fetch_update(Ordering::AcqRel, Ordering::Acquire, warmed);
    }

    /// How many granules are not wholly in the pool; never too low, and too high only while a granule is about to leave or
    /// has just come back, or after a crash.
    #[must_use]
    pub fn away(&self) -> u64 {
        self.words().away.load(Ordering::Acquire)
    }

    /// The first granule that is not wholly in the pool. Granules with damaged words are passed over; [`PlacementMap::get`]
    /// names them.
    #[must_use]
    pub fn first_away(&self) -> Option<(usize, Placed)> {
        (0..self.granules).find_map(|index| {
            let placed = self.get(index).ok().filter(|placed| placed.place.is_away())?;
            Some((index, placed))
        })
    }

    /// How many granules are where, by looking at all of them.
    #[must_use]
    pub fn summary(&self) -> PlacementSummary {
        let mut summary = PlacementSummary::default();
        for index in 0..self.granules {
            *match self.get(index) {
                Ok(Placed { place: Place::Local { .. }, .. }) => &mut summary.local,
                Ok(Placed { place: Place::Mixed { .. }, .. }) => &mut summary.mixed,
                Ok(Placed { place: Place::Pooled, .. }) => &mut summary.pooled,
                Err(_) => &mut summary.damaged,
            } += 1;
        }
        summary
    }

    /// Counts `away` anew; what it is now. Only when nobody moves the guest's memory: after its owner's death, before a
    /// new one begins.
    pub fn recount(&self) -> u64 {
        let away = self.summary().away();
        put(self.words().away, away, Ordering::Release);
        persist_word(self.words().away);
        away
    }
}

/// The words that threads race on; a type of its own so that loom can walk through it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct PlacementWords<'a> {
    /// How many granules are not wholly in the pool.
    pub away: &'a AtomicU64,
    /// One word per granule.
    pub granules: &'a [AtomicU64],
}

impl PlacementWords<'_> {
    /// See [`PlacementMap::put`].
    pub fn put(&self, index: usize, placed: Placed) {
        let word = &self.granules[index];
        // A damaged word counts as away, as in `recount`.
        let was_away = Placed::decode(word.load(Ordering::Relaxed)).is_none_or(|old| old.place.is_away());
        let (leaves, arrives) = (!was_away && placed.place.is_away(), was_away && !placed.place.is_away());
        if leaves {
            fault::step();
            self.away.fetch_add(1, Ordering::AcqRel);
            persist_word(self.away);
        }
        put(word, placed.encode(), Ordering::Release);
        persist_word(word);
        if arrives {
            fault::step();
            // A count that was too low already wraps to an impossible one: it refuses handoffs, and `check` finds it.
            self.away.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn persist_word(word: &AtomicU64) {
    persist(Point::Placement, std::ptr::from_ref(word).cast(), size_of::<u64>());
}

impl PlacementSummary {
    /// How many granules are not wholly in the pool; damaged ones count.
    #[must_use]
    pub fn away(self) -> u64 {
        self.local + self.mixed + self.damaged
    }
}
