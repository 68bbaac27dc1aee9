//! Where a guest's memory was before it was moved, and what must move back to have it there again.

use crate::error::Result;
use nil_mover::{Direction, MoveRange};
use nil_pool::{GRANULE, GuestControl, Place, PlacementMap};

/// More pieces than this are not told one by one: what lies between the first and the last is one piece then.
const MOST_RANGES: usize = 1000;

/// Where each granule of a guest's memory was at some moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Former(Vec<Side>);

/// On which side a granule lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Dram,
    Pool,
    /// On both: it was being moved, or its place is unknown. It is wherever somebody will have moved it.
    Both,
}

impl Former {
    /// Where a guest's memory is now.
    pub(super) fn of(control: &GuestControl) -> Result<Self> {
        let map = control.map_state()?.placement();
        Ok(Self((0..map.granules()).map(|index| side(&map, index)).collect()))
    }

    /// All of it.
    pub(super) fn all(&self) -> Vec<MoveRange> {
        ranges(self.0.iter().map(|_| true))
    }

    /// What was not wholly in the pool.
    pub(super) fn outside_pool(&self) -> Vec<MoveRange> {
        ranges(self.0.iter().map(|side| *side != Side::Pool))
    }

    /// What was in the pool, in whole or in part.
    pub(super) fn in_pool(&self) -> Vec<MoveRange> {
        ranges(self.0.iter().map(|side| *side != Side::Dram))
    }

    /// What a move in that direction has moved since, in whole or in part, and must go the other way to be where it was.
    pub(super) fn to_undo(&self, direction: Direction, map: &PlacementMap) -> Vec<MoveRange> {
        let before = match direction {
            Direction::Decouple => Side::Dram,
            Direction::Recouple => Side::Pool,
        };
        ranges(self.0.iter().enumerate().map(|(index, was)| *was == before && side(map, index) != before))
    }
}

fn side(map: &PlacementMap, index: usize) -> Side {
    match map.get(index).map(|placed| placed.place) {
        Ok(Place::Local { .. }) => Side::Dram,
        Ok(Place::Pooled) => Side::Pool,
        Ok(Place::Mixed { .. }) | Err(_) => Side::Both,
    }
}

/// The other way.
pub(super) fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Decouple => Direction::Recouple,
        Direction::Recouple => Direction::Decouple,
    }
}

/// The chosen granules as ranges.
fn ranges(chosen: impl Iterator<Item = bool>) -> Vec<MoveRange> {
    let mut ranges: Vec<MoveRange> = Vec::new();
    for (offset, _) in (0..).step_by(GRANULE_STEP).zip(chosen).filter(|(_, chosen)| *chosen) {
        match ranges.last_mut() {
            Some(last) if last.offset + last.bytes == offset => last.bytes += GRANULE,
            _ => ranges.push(MoveRange { offset, bytes: GRANULE }),
        }
    }
    match (ranges.first(), ranges.last()) {
        (Some(first), Some(last)) if ranges.len() > MOST_RANGES => {
            vec![MoveRange { offset: first.offset, bytes: last.offset + last.bytes - first.offset }]
        }
        _ => ranges,
    }
}

/// [`GRANULE`], to count by.
const GRANULE_STEP: usize = 2 << 20;
const _: () = assert!(GRANULE_STEP as u64 == GRANULE);

#[cfg(test)]
mod tests {
    use super::*;

    fn found(granules: &[bool]) -> Vec<(u64, u64)> {
        let found = ranges(granules.iter().copied());
        found.iter().map(|range| (range.offset / GRANULE, range.bytes / GRANULE)).collect()
    }

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[false, false]), []);
        assert_eq!(found(&[true, true, false, true]), [(0, 2), (3, 1)]);
    }

    #[test]
    fn what_lies_in_too_many_pieces_is_told_as_one() {
        let every_other: Vec<bool> = (0..4 * MOST_RANGES).map(|index| index % 2 == 1).collect();
        assert_eq!(found(&every_other), [(1, 4 * MOST_RANGES as u64 - 1)]);
    }

    #[test]
    fn what_was_outside_the_pool_is_what_a_target_brings_home() {
        let former = Former(vec![Side::Pool, Side::Dram, Side::Both, Side::Pool]);
        assert_eq!(former.outside_pool(), [MoveRange { offset: GRANULE, bytes: 2 * GRANULE }]);
    }

    #[test]
    fn what_was_in_the_pool_at_all_goes_along_to_another() {
        let former = Former(vec![Side::Dram, Side::Pool, Side::Both, Side::Dram]);
        assert_eq!(former.in_pool(), [MoveRange { offset: GRANULE, bytes: 2 * GRANULE }]);
    }
}
