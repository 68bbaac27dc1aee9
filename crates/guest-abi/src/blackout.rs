//! Which of a guest's gaps is the one in which it changed hands.
//!
//! A guest records many pauses: the host's scheduler, faults while its pages are tracked, a neighbour. Neither the longest
//! nor the latest of them need be the switch. What is known from outside are two instants between which no vCPU can have
//! run. They are known in the host's clock, and the guest's may count from another origin, on the source another than on
//! the destination (a hypervisor that restores the TSC makes the guest miss the time between). So the gap's beginning is
//! converted by the source's offset and its end by the destination's.
//!
//! An offset is estimated from live readings, each of them a little old, so the estimate is too small by as long as the
//! guest was not running just then. Hence two precautions. The gap that *covers most* of the standstill is taken, and it
//! must cover at least half. And a guest that itself counted at least the standstill has a clock that ran through it: then
//! its own count is the length, and the offsets serve only to find the gap.

use crate::Gap;

/// Between these two instants, in host ticks, no vCPU ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standstill {
    /// The source had stopped.
    pub stopped: u64,
    /// The destination had not yet started.
    pub resumed: u64,
}

/// How much later the guest's TSC is than the host's, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offsets {
    /// On the source.
    pub source: i64,
    /// On the destination.
    pub destination: i64,
}

impl Offsets {
    /// Both are estimates of one offset: the larger one is nearer to it.
    fn as_one(self) -> Self {
        let offset = self.source.max(self.destination);
        Self { source: offset, destination: offset }
    }
}

/// The pause in which a guest changed hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blackout {
    /// The guest's record of it.
    pub gap: Gap,
    /// When it began, in host ticks.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
}

impl Blackout {
    /// The gap that covers most of the standstill, if any covers half of it.
    #[must_use]
    pub fn find(gaps: impl IntoIterator<Item = Gap>, standstill: Standstill, offsets: Offsets) -> Option<Self> {
        let Standstill { stopped, resumed } = standstill;
        let still = resumed.checked_sub(stopped)?;
        let host = |gap: Gap| {
            let one_clock = gap.cycles() >= still;
            let Offsets { source, destination } = if one_clock { offsets.as_one() } else { offsets };
            let begin = gap.before.wrapping_sub(source.cast_unsigned());
            let end = gap.after.wrapping_sub(destination.cast_unsigned());
            Self { gap, begin, end }
        };
        let covered = |blackout: &Self| blackout.end.min(resumed).saturating_sub(blackout.begin.max(stopped));
        let best = gaps.into_iter().map(host).max_by_key(covered)?;
        (covered(&best) > still / 2).then_some(best)
    }

    /// Its length in host ticks.
    #[must_use]
    pub const fn ticks(&self) -> u64 {
        self.end.saturating_sub(self.begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDSTILL: Standstill = Standstill { stopped: 10_000, resumed: 12_000 };
    const SAME: Offsets = Offsets { source: 0, destination: 0 };

    fn find(gaps: &[(u64, u64)], offsets: Offsets) -> Option<(u64, u64)> {
        let gap = |(index, &(before, after))| Gap { before, after, counter: 0, index };
        Blackout::find((0..).zip(gaps).map(gap), STANDSTILL, offsets).map(|found| (found.gap.index, found.ticks()))
    }

    #[test]
    fn it_is_the_gap_around_the_standstill_and_not_the_longest() {
        assert_eq!(find(&[(1_000, 9_000), (9_900, 12_300), (13_000, 90_000)], SAME), Some((1, 2_400)));
    }

    #[test]
    fn an_offset_that_is_a_little_wrong_does_no_harm() {
        for (source, destination) in [(-600, -600), (-600, 0), (0, -600)] {
            let wrong = Offsets { source, destination };
            assert_eq!(find(&[(1_000, 9_000), (9_900, 12_300), (12_900, 90_000)], wrong), Some((1, 2_400)));
        }
    }

    #[test]
    fn a_guest_whose_clock_stood_still_with_it_still_lost_the_time() {
        // The destination restores the TSC that the source saved: to the guest only 100 ticks pass.
        let restored = Offsets { source: 500, destination: 500 - 2_300 };
        assert_eq!(find(&[(10_400, 10_500)], restored), Some((0, 2_400)));
    }

    #[test]
    fn a_guest_that_ran_through_the_standstill_gives_nothing() {
        assert_eq!(find(&[(9_000, 10_500), (11_500, 13_000)], SAME), None);
        assert_eq!(find(&[], SAME), None);
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        let offsets = Offsets { source: i64::MIN, destination: i64::MAX };
        find(&[(0, u64::MAX), (u64::MAX, 0)], offsets);
        let backwards = Standstill { stopped: 2, resumed: 1 };
        let gap = Gap { before: 0, after: 9, counter: 0, index: 0 };
        assert_eq!(Blackout::find([gap], backwards, SAME), None);
    }
}
