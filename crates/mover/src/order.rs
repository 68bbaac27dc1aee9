//! In which order a guest's granules move.
//!
//! What the guest uses least goes to the pool first, and what it uses most comes back from there first; so it has its
//! working set in local memory for as long as can be. Heat counts in bands of twice the warmth each, and within a band the
//! order is that of addresses: neighbours of like heat move one after the other, and their mappings merge into one.
//!
//! Where hot and cold memory alternate, so do local and pooled mappings while a move lasts, or when it is called off: and a
//! process may have so many mappings only (vm.max_map_count, 65530 unless somebody has changed it). So granules move by
//! groups of neighbours, as hot as their hottest, aligned to their size, which is the guest's by the number of groups that
//! may be: a granule each up to 31 GiB, 66 MiB of a terabyte. In a group they move by address, and a granule's chunks one
//! after the other, however small: the granule that is on its way adds two mappings, and so does one that is pinned.

use crate::plan::Direction;

/// How many mappings a process may have (Documentation/admin-guide/sysctl/vm.rst).
const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";
const DEFAULT_MAX_MAP_COUNT: usize = 65530;

/// How many neighbours move as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grouping {
    granules: usize,
}

impl Grouping {
    /// For a guest of so many granules, on this host.
    pub(crate) fn here(guest: usize) -> Self {
        let limit = std::fs::read_to_string(MAX_MAP_COUNT).ok().and_then(|text| text.trim().parse().ok());
        Self::of(guest, limit.unwrap_or(DEFAULT_MAX_MAP_COUNT))
    }

    /// For a guest of so many granules where a process may have so many mappings. Half of them are left to others (pools,
    /// devices, threads, allocators), and half of the rest to pins and what several moves leave behind.
    fn of(guest: usize, mappings: usize) -> Self {
        Self { granules: guest.div_ceil((mappings / 4).max(1)).max(1) }
    }
}

/// Granules in the order in which they are to move. Each comes with its heat (0 coldest, 255 hottest); when nothing is
/// known of it (0 everywhere), the order is that of addresses.
pub(crate) fn in_order(direction: Direction, granules: &[(usize, u8)], grouping: Grouping) -> Vec<usize> {
    let mut granules = granules.to_vec();
    granules.sort_unstable();
    let groups = granules.chunk_by(|one, other| one.0 / grouping.granules == other.0 / grouping.granules);
    let mut ordered: Vec<_> =
        groups.map(|group| (rank(direction, group.iter().map(|&(_, heat)| heat).max().unwrap_or(0)), group)).collect();
    // Stable: within a rank the order stays that of addresses.
    ordered.sort_by_key(|&(rank, _)| rank);
    ordered.into_iter().flat_map(|(_, group)| group.iter().map(|&(index, _)| index)).collect()
}

fn rank(direction: Direction, heat: u8) -> u32 {
    let band = heat.checked_ilog2().map_or(0, |log| log + 1);
    match direction {
        Direction::Decouple => band,
        Direction::Recouple => u8::BITS - band,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: [(usize, u8); 6] = [(0, 255), (1, 0), (2, 200), (3, 7), (4, 0), (5, 130)];

    /// Every granule for itself.
    const ALONE: Grouping = Grouping { granules: 1 };

    #[test]
    fn cold_memory_is_decoupled_first() {
        assert_eq!(in_order(Direction::Decouple, &GUEST, ALONE), [1, 4, 3, 0, 2, 5]);
    }

    #[test]
    fn hot_memory_is_recoupled_first() {
        assert_eq!(in_order(Direction::Recouple, &GUEST, ALONE), [0, 2, 5, 3, 1, 4]);
    }

    #[test]
    fn memory_of_unknown_heat_moves_by_address() {
        let unknown: Vec<_> = [3, 1, 0, 2].map(|index| (index, 0)).to_vec();
        assert_eq!(in_order(Direction::Decouple, &unknown, ALONE), [0, 1, 2, 3]);
        assert_eq!(in_order(Direction::Recouple, &unknown, ALONE), [0, 1, 2, 3]);
    }

    #[test]
    fn neighbours_of_a_group_move_together_when_the_hottest_does() {
        let (pairs, guest) = (Grouping { granules: 2 }, [(0, 255), (1, 0), (2, 7), (3, 3), (4, 0), (5, 60)]);
        assert_eq!(in_order(Direction::Decouple, &guest, pairs), [2, 3, 4, 5, 0, 1]);
        assert_eq!(in_order(Direction::Recouple, &guest, pairs), [0, 1, 4, 5, 2, 3]);
        assert_eq!(in_order(Direction::Decouple, &guest[1..4], pairs), [1, 2, 3], "half a group");
    }

    /// The most mappings that the guest's range consists of while it moves in this order.
    fn most_mappings(order: &[usize]) -> usize {
        let mut has_moved = vec![false; order.len()];
        let (mut mappings, mut most) = (1, 1);
        for &granule in order {
            let neighbours = [granule.checked_sub(1), Some(granule + 1).filter(|next| *next < order.len())];
            for neighbour in neighbours.into_iter().flatten() {
                mappings = if has_moved[neighbour] { mappings - 1 } else { mappings + 1 };
            }
            has_moved[granule] = true;
            // Its chunks, while it was on its way.
            most = most.max(mappings + 2);
        }
        assert_eq!(mappings, 1, "all of it has moved");
        most
    }

    #[test]
    fn a_terabyte_of_hot_and_cold_granules_in_turn_takes_few_mappings() {
        const GRANULES: usize = (1 << 40) / (2 << 20);
        let grouping = Grouping::of(GRANULES, DEFAULT_MAX_MAP_COUNT);
        assert_eq!(grouping, Grouping { granules: 33 });
        for (period, which) in [(2, "granules"), (66, "groups")] {
            let heat = |index: usize| if index % period < period / 2 { 255 } else { 0 };
            let guest: Vec<_> = (0..GRANULES).map(|index| (index, heat(index))).collect();
            for direction in [Direction::Decouple, Direction::Recouple] {
                let most = most_mappings(&in_order(direction, &guest, grouping));
                assert!(most <= DEFAULT_MAX_MAP_COUNT / 4 + 3, "{most} mappings when {which} alternate");
            }
        }
        let alone: Vec<_> = (0..GRANULES).map(|index| (index, if index % 2 == 0 { 255 } else { 0 })).collect();
        assert!(most_mappings(&in_order(Direction::Decouple, &alone, ALONE)) > DEFAULT_MAX_MAP_COUNT);
    }

    #[test]
    fn small_guests_move_by_granules_and_any_limit_will_do() {
        assert_eq!(Grouping::of(16 << 9, DEFAULT_MAX_MAP_COUNT), ALONE);
        assert_eq!(Grouping::of(0, DEFAULT_MAX_MAP_COUNT), ALONE);
        assert_eq!(Grouping::of(512, 0), Grouping { granules: 512 });
    }

    proptest! {
        #[test]
        fn nothing_hot_goes_before_what_is_twice_as_cold(heats in proptest::collection::vec(any::<u8>(), 0..64)) {
            let granules: Vec<_> = heats.iter().copied().enumerate().collect();
            let decoupled = in_order(Direction::Decouple, &granules, ALONE);
            for pair in decoupled.windows(2) {
                let (first, second) = (u32::from(heats[pair[0]]), u32::from(heats[pair[1]]));
                prop_assert!(first <= 2 * second + 1, "{first} before {second}");
            }
            let mut all = decoupled;
            all.sort_unstable();
            prop_assert_eq!(all, (0..heats.len()).collect::<Vec<_>>());
        }
    }
}
