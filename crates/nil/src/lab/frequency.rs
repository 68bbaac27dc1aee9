//! How fast the time-stamp counter counts.
//!
//! It is the one clock that the guest, both workers and the lab can all read without asking anybody. Stamps are compared
//! only within one machine, whose cores count in step. Ticks become time by a frequency that is measured once per run
//! against the monotonic clock, because not every machine tells it.

use nil_migrate::tsc;
use std::time::{Duration, Instant};

/// How long the frequency is measured: the error of one bracket (below a microsecond) then stays under 0.01 %.
const CALIBRATION: Duration = Duration::from_millis(25);
/// Of that many readings the one with the tightest bracket is taken, so that an interruption does no harm.
const READINGS: usize = 16;

/// The counter's frequency.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frequency {
    khz: u64,
}

impl Frequency {
    /// Measures it.
    pub(crate) fn measure() -> Self {
        let (tsc_before, before) = reading();
        std::thread::sleep(CALIBRATION);
        let (tsc_after, after) = reading();
        let nanoseconds = (after - before).as_nanos().max(1);
        let khz = u128::from(tsc_after.saturating_sub(tsc_before)) * 1_000_000 / nanoseconds;
        Self { khz: u64::try_from(khz).unwrap_or(u64::MAX).max(1) }
    }

    /// A frequency that is known.
    #[cfg(test)]
    pub(crate) const fn of_khz(khz: u64) -> Self {
        Self { khz }
    }

    /// Ticks per millisecond.
    pub(crate) const fn khz(self) -> u64 {
        self.khz
    }

    /// The time that `ticks` take, in nanoseconds.
    pub(crate) fn nanoseconds(self, ticks: u64) -> u64 {
        let nanoseconds = u128::from(ticks) * 1_000_000 / u128::from(self.khz);
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    /// The ticks that `time` takes.
    pub(crate) fn ticks(self, time: Duration) -> u64 {
        let ticks = time.as_nanos() * u128::from(self.khz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// Both clocks at (nearly) the same instant.
fn reading() -> (u64, Instant) {
    let bracketed = || {
        let before = tsc::now();
        let instant = Instant::now();
        let after = tsc::now();
        (after.saturating_sub(before), before.midpoint(after), instant)
    };
    let (_, tsc, instant) =
        (1..READINGS).map(|_| bracketed()).fold(bracketed(), |best, next| if next.0 < best.0 { next } else { best });
    (tsc, instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_agrees_with_the_monotonic_clock() {
        let frequency = Frequency::measure();
        let (begin, instant) = reading();
        std::thread::sleep(Duration::from_millis(10));
        let (end, later) = reading();
        let measured = u128::from(frequency.nanoseconds(end - begin));
        let actual = (later - instant).as_nanos();
        assert!(measured.abs_diff(actual) < actual / 50, "{measured} ns by the TSC, {actual} ns by the clock");
    }

    #[test]
    fn ticks_and_time_convert_without_overflow() {
        let frequency = Frequency { khz: 2_500_000 };
        assert_eq!(frequency.ticks(Duration::from_millis(1)), 2_500_000);
        assert_eq!(frequency.nanoseconds(250), 100);
        assert_eq!(frequency.nanoseconds(u64::MAX), 7_378_697_629_483_820_646);
    }
}
