//! Randomness that can be repeated: everything that is done by chance follows from a seed and the number of a round.

/// The numbers of one round (SplitMix64, Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    /// Odd, and no small multiple of the step, so that rounds do not begin in each other's sequence.
    const SPREAD: u64 = 0xD134_2543_DE82_EF95;

    /// The dice of a round. Rounds do not share numbers, so that one can be repeated without those before it.
    pub(crate) fn of_round(seed: u64, round: u64) -> Self {
        let mut of_seed = Self(seed);
        Self(of_seed.next() ^ round.wrapping_mul(Self::SPREAD))
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ bits >> 31
    }

    /// A number below `bound`, all alike; 0 when there is none.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// One of the items, all alike; none if there are none.
    pub(crate) fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = self.below(u64::try_from(items.len()).unwrap_or(u64::MAX));
        items.get(usize::try_from(at).unwrap_or(usize::MAX))
    }

    /// Whether something happens that happens once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of the values, each with the given weight.
    pub(crate) fn pick<T: Copy, const N: usize>(&mut self, weighted: [(u64, T); N]) -> T {
        const { assert!(N > 0, "there must be something to pick from") };
        let mut left = self.below(weighted.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in weighted {
            if left < weight {
                return value;
            }
            left -= weight;
        }
        weighted[N - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_can_be_repeated_and_differs_from_every_other() {
        let first_of = |seed, round| Dice::of_round(seed, round).next();
        assert_eq!(first_of(7, 3), first_of(7, 3));
        let others = [first_of(7, 4), first_of(8, 3), first_of(3, 7), first_of(0, 0)];
        assert!(!others.contains(&first_of(7, 3)), "{others:?}");
    }

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut dice = Dice::of_round(1, 1);
        let drawn: std::collections::BTreeSet<u64> = (0..1_000).map(|_| dice.below(7)).collect();
        assert_eq!(drawn, (0..7).collect());
        assert_eq!(dice.below(0), 0);
    }

    #[test]
    fn every_item_is_chosen_sooner_or_later_and_nothing_from_nothing() {
        let mut dice = Dice::of_round(1, 3);
        let chosen: std::collections::BTreeSet<char> =
            (0..1_000).filter_map(|_| dice.choose(&['a', 'b', 'c']).copied()).collect();
        assert_eq!(chosen.len(), 3);
        assert_eq!(dice.choose::<char>(&[]), None);
    }

    #[test]
    fn what_has_no_weight_is_never_picked() {
        let mut dice = Dice::of_round(1, 2);
        let picked: Vec<char> = (0..1_000).map(|_| dice.pick([(3, 'a'), (0, 'b'), (1, 'c')])).collect();
        let count = |which| picked.iter().filter(|&&value| value == which).count();
        assert_eq!(count('b'), 0);
        assert!(count('a') > count('c') && count('c') > 0);
    }
}
