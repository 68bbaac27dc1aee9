//! What a guest's own gap records say about one handoff: how long it stood still, and how well it went on.
//!
//! A guest notes every pause between two readings of its TSC that is longer than a threshold. A handoff must show as one
//! such pause on every vCPU: the one around the instants at which the frozen guest was published and was claimed. No such
//! pause means that the measurement failed. It is never taken for a blackout of zero.

use super::canary::Span;
use nil_guest_abi::Gap;
use nil_guest_abi::blackout::{Blackout, Offsets, Standstill};

/// A vCPU's clock: its TSC minus the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Clock(pub(crate) i64);

impl Clock {
    /// When a gap was, in host ticks.
    pub(crate) fn span(self, gap: Gap) -> Span {
        let host = |tsc: u64| tsc.wrapping_sub(self.0.cast_unsigned());
        Span { begin: host(gap.before), end: host(gap.after) }
    }
}

/// Why a vCPU's blackout is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Unknown {
    /// The ring did not keep it until it was looked at.
    #[error("the guest recorded so many gaps that the one of this handoff was overwritten before it could be read")]
    Overwritten,
    /// The ring is whole, and it is not there.
    #[error(
        "the guest recorded no gap around the handoff, so its blackout cannot be told (its clock may differ from the \
         host's)"
    )]
    Unrecorded,
}

/// The blackout among the `gaps` of one vCPU, of which those from index `mark` on are looked at. `offset` is the guest's
/// TSC minus the host's, on both hosts.
pub(crate) fn blackout(
    gaps: impl Iterator<Item = Gap> + Clone,
    mark: u64,
    standstill: Standstill,
    offset: i64,
) -> Result<Blackout, Unknown> {
    let offsets = Offsets { source: offset, destination: offset };
    if let Some(found) = Blackout::find(gaps.clone(), standstill, offsets) {
        return Ok(found);
    }
    match gaps.min_by_key(|gap| gap.index) {
        Some(oldest)
            if oldest.index > mark && oldest.before.wrapping_sub(offset.cast_unsigned()) > standstill.stopped =>
        {
            Err(Unknown::Overwritten)
        }
        Some(_) | None => Err(Unknown::Unrecorded),
    }
}

/// Ticks of the `window` that begins at `landing` during which the vCPU did not run, all in the guest's TSC.
pub(crate) fn lost_after(gaps: impl IntoIterator<Item = Gap>, landing: u64, window: u64) -> u64 {
    let end = landing.saturating_add(window);
    let within = |gap: Gap| gap.after.min(end).saturating_sub(gap.before.max(landing));
    gaps.into_iter().map(within).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring with gaps from `before` to `after`, the first of them with index `first`.
    fn ring(first: u64, gaps: &[(u64, u64)]) -> Vec<Gap> {
        let gap = |(index, &(before, after))| Gap { before, after, counter: 0, index };
        (first..).zip(gaps).map(gap).collect()
    }

    /// The blackout in a ring that was looked at from index 5 on.
    fn found(first: u64, gaps: &[(u64, u64)]) -> Result<u64, Unknown> {
        let standstill = Standstill { stopped: 1_040, resumed: 1_070 };
        blackout(ring(first, gaps).into_iter(), 5, standstill, 0).map(|blackout| blackout.ticks())
    }

    #[test]
    fn the_blackout_is_the_gap_around_publish_and_claim() {
        assert_eq!(found(5, &[(500, 510), (1_000, 1_100), (1_200, 9_000)]), Ok(100));
    }

    #[test]
    fn a_long_gap_elsewhere_is_not_the_blackout() {
        assert_eq!(found(5, &[(0, 1_030), (1_080, 90_000)]), Err(Unknown::Unrecorded));
    }

    #[test]
    fn no_gap_at_all_is_no_blackout_of_zero() {
        assert_eq!(found(5, &[]), Err(Unknown::Unrecorded));
    }

    #[test]
    fn a_ring_that_begins_after_the_handoff_has_lost_it() {
        assert_eq!(found(600, &[(2_000, 2_100), (3_000, 3_100)]), Err(Unknown::Overwritten));
    }

    #[test]
    fn a_whole_ring_that_begins_after_the_handoff_never_had_it() {
        assert_eq!(found(5, &[(2_000, 2_100), (3_000, 3_100)]), Err(Unknown::Unrecorded));
    }

    #[test]
    fn a_guest_whose_clock_has_another_origin_is_understood() {
        let standstill = Standstill { stopped: 1_040, resumed: 1_070 };
        for offset in [500, -900] {
            let shifted = |tsc: u64| tsc.wrapping_add_signed(offset);
            let gaps = ring(5, &[(shifted(1_000), shifted(1_100))]);
            assert_eq!(blackout(gaps.into_iter(), 5, standstill, offset).map(|found| found.begin), Ok(1_000));
        }
    }

    #[test]
    fn only_what_lies_in_the_first_millisecond_is_lost_in_it() {
        let gaps = ring(0, &[(1_000, 1_100), (1_150, 1_160), (1_190, 1_300), (1_900, 2_500), (3_000, 4_000)]);
        // The landing itself ends at 1,100. 10 + 110 ticks lie inside, 200 of the 600 before the window ends at 2,100.
        assert_eq!(lost_after(gaps, 1_100, 1_000), 10 + 110 + 200);
    }

    #[test]
    fn an_undisturbed_landing_loses_nothing() {
        assert_eq!(lost_after(ring(0, &[(1_000, 1_100)]), 1_100, 1_000), 0);
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        let gaps = ring(0, &[(0, u64::MAX), (0, u64::MAX), (u64::MAX, 0)]);
        assert_eq!(lost_after(gaps, u64::MAX - 1, u64::MAX), 2);
    }
}
