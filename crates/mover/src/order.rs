//! In which order a guest's granules move.
//!
//! What the guest uses least goes to the pool first, and what it uses most comes back from there first; so it has its
//! working set in local memory for as long as can be. Heat counts in bands of twice the warmth each, and within a band the
//! order is that of addresses: neighbours of like heat move one after the other, and their mappings merge into one.

use crate::plan::Direction;

/// Granules in the order in which they are to move. Each comes with its heat (0 coldest, 255 hottest); when nothing is
/// known of it (0 everywhere), the order is that of addresses.
pub(crate) fn in_order(direction: Direction, granules: &[(usize, u8)]) -> Vec<usize> {
    let mut ordered: Vec<_> = granules.iter().map(|&(index, heat)| (rank(direction, heat), index)).collect();
    ordered.sort_unstable();
    ordered.into_iter().map(|(_, index)| index).collect()
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

    #[test]
    fn cold_memory_is_decoupled_first() {
        assert_eq!(in_order(Direction::Decouple, &GUEST), [1, 4, 3, 0, 2, 5]);
    }

    #[test]
    fn hot_memory_is_recoupled_first() {
        assert_eq!(in_order(Direction::Recouple, &GUEST), [0, 2, 5, 3, 1, 4]);
    }

    #[test]
    fn memory_of_unknown_heat_moves_by_address() {
        let unknown: Vec<_> = [3, 1, 0, 2].map(|index| (index, 0)).to_vec();
        assert_eq!(in_order(Direction::Decouple, &unknown), [0, 1, 2, 3]);
        assert_eq!(in_order(Direction::Recouple, &unknown), [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn nothing_hot_goes_before_what_is_twice_as_cold(heats in proptest::collection::vec(any::<u8>(), 0..64)) {
            let granules: Vec<_> = heats.iter().copied().enumerate().collect();
            let decoupled = in_order(Direction::Decouple, &granules);
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
