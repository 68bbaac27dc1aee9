//! What a guest's own gap records say about one handoff: how long it stood still, and how well it went on.
//!
//! A guest notes every pause between two readings of its TSC that is longer than a threshold. A handoff must show as
//! exactly one such pause on every vCPU: the one that contains the instant at which the frozen guest was published and the
//! instant at which it was claimed. No such pause means that the measurement failed. It is never taken for a blackout of
//! zero.
//!
//! All times here are in guest TSC ticks.

use nil_guest_abi::Gap;

/// The instants of a handoff between which no vCPU can have run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standstill {
    /// The source had published the frozen guest.
    pub(crate) published: u64,
    /// The target had claimed it.
    pub(crate) claimed: u64,
}

/// The gap that contains the standstill.
pub(crate) fn blackout(gaps: impl IntoIterator<Item = Gap>, standstill: Standstill) -> Option<Gap> {
    gaps.into_iter().find(|gap| gap.before <= standstill.published && standstill.claimed <= gap.after)
}

/// Ticks of the `window` that begins at `landing` during which the vCPU did not run.
pub(crate) fn lost_after(gaps: impl IntoIterator<Item = Gap>, landing: u64, window: u64) -> u64 {
    let end = landing.saturating_add(window);
    let within = |gap: Gap| gap.after.min(end).saturating_sub(gap.before.max(landing));
    gaps.into_iter().map(within).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring with gaps from `before` to `after`.
    fn ring(gaps: &[(u64, u64)]) -> Vec<Gap> {
        let gap = |(index, &(before, after))| Gap { before, after, counter: 0, index };
        (0..).zip(gaps).map(gap).collect()
    }

    const STANDSTILL: Standstill = Standstill { published: 1_040, claimed: 1_070 };

    #[test]
    fn the_blackout_is_the_gap_that_contains_publish_and_claim() {
        let gaps = ring(&[(500, 510), (1_000, 1_100), (1_200, 9_000)]);
        assert_eq!(blackout(gaps, STANDSTILL).map(|gap| gap.cycles()), Some(100));
    }

    #[test]
    fn a_long_gap_elsewhere_is_not_the_blackout() {
        assert_eq!(blackout(ring(&[(0, 1_030), (1_080, 90_000)]), STANDSTILL), None);
    }

    #[test]
    fn a_vcpu_that_ran_between_publish_and_claim_has_no_blackout() {
        assert_eq!(blackout(ring(&[(1_000, 1_050), (1_050, 1_100)]), STANDSTILL), None);
    }

    #[test]
    fn no_gap_at_all_is_no_blackout_of_zero() {
        assert_eq!(blackout(ring(&[]), STANDSTILL), None);
    }

    #[test]
    fn a_gap_that_runs_backwards_matches_nothing() {
        assert_eq!(blackout(ring(&[(1_100, 1_000)]), STANDSTILL), None);
        assert_eq!(lost_after(ring(&[(1_100, 1_000)]), 0, 5_000), 0);
    }

    #[test]
    fn only_what_lies_in_the_first_millisecond_is_lost_in_it() {
        let gaps = ring(&[(1_000, 1_100), (1_150, 1_160), (1_190, 1_300), (1_900, 2_500), (3_000, 4_000)]);
        // The landing itself ends at 1,100. 10 + 110 ticks lie inside, 200 of the 600 before the window ends at 2,100.
        assert_eq!(lost_after(gaps, 1_100, 1_000), 10 + 110 + 200);
    }

    #[test]
    fn an_undisturbed_landing_loses_nothing() {
        assert_eq!(lost_after(ring(&[(1_000, 1_100)]), 1_100, 1_000), 0);
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        let gaps = ring(&[(0, u64::MAX), (0, u64::MAX), (u64::MAX, 0)]);
        assert_eq!(lost_after(gaps, u64::MAX - 1, u64::MAX), 2);
    }
}
