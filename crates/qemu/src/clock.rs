//! QEMU stamps its events with the host's wall clock; a guest's record is in TSC ticks. This module converts.
//!
//! Both clocks are read together at two instants. Between them, ticks follow from wall time in a straight line: within the
//! seconds of a migration the wall clock is slewed by less than the microsecond in which QEMU's stamps are given. A wall
//! clock that was *set* meanwhile shows as an impossible line and is refused.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Readings tried for each instant; the one taken in the shortest time is kept.
const READINGS: usize = 32;

/// Both clocks at one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Instants {
    wall: Duration,
    ticks: u64,
}

impl Instants {
    /// Reads both clocks now.
    pub(crate) fn now(clock: fn() -> u64) -> Self {
        let read = || {
            let before = clock();
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let width = clock().wrapping_sub(before);
            (width, Self { wall, ticks: before.wrapping_add(width / 2) })
        };
        (1..READINGS).map(|_| read()).fold(read(), |best, next| if next.0 < best.0 { next } else { best }).1
    }

    /// The ticks at `wall`, by the line through `self` and `later`. `None` if the clocks did not both move on.
    pub(crate) fn ticks_at(self, later: Self, wall: Duration) -> Option<u64> {
        let span = later.wall.checked_sub(self.wall)?.as_nanos();
        let ticks = u128::from(later.ticks.checked_sub(self.ticks)?);
        if span == 0 || ticks == 0 {
            return None;
        }
        match wall.checked_sub(self.wall) {
            Some(since) => self.ticks.checked_add(u64::try_from(since.as_nanos() * ticks / span).ok()?),
            None => {
                let until = (self.wall - wall).as_nanos();
                self.ticks.checked_sub(u64::try_from(until * ticks / span).ok()?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, ticks: u64) -> Instants {
        Instants { wall: Duration::from_secs(seconds), ticks }
    }

    #[test]
    fn ticks_follow_wall_time_in_a_straight_line() {
        let (first, last) = (at(1_000, 5_000_000_000), at(1_002, 9_000_000_000));
        assert_eq!(first.ticks_at(last, Duration::from_millis(1_000_500)), Some(6_000_000_000));
        assert_eq!(first.ticks_at(last, Duration::from_millis(999_500)), Some(4_000_000_000));
        assert_eq!(first.ticks_at(last, Duration::from_secs(1_002)), Some(9_000_000_000));
    }

    #[test]
    fn clocks_that_did_not_move_on_give_nothing() {
        let first = at(1_000, 5_000);
        for later in [at(1_000, 6_000), at(999, 6_000), at(1_001, 5_000), at(1_001, 4_000)] {
            assert_eq!(first.ticks_at(later, Duration::from_secs(1_000)), None, "{later:?}");
        }
        assert_eq!(at(1_000, 5).ticks_at(at(1_001, 10), Duration::ZERO), None, "before the ticks began");
    }
}
