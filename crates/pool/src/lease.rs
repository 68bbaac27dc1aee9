//! Judging a peer by its lease: a counter that it increases, and one's own monotonic clock.
//!
//! ```text
//!            moved                                        moved
//!   Alive ◀────────── Late ── stands still for half the bound ──▶ Suspect ── for all of it ──▶ Expired
//!     └── stands still for two intervals ──▲
//! ```
//!
//! Two things keep a host from being taken for dead that is only slow. The bound grows with what was seen of the host
//! itself: twice the longest pause that it came back from lately, up to four times what its user set. And an observer
//! counts only time in which it looked: if it was not scheduled itself, that is no evidence against anybody.

use crate::error::{Error, Result};
use serde::Serialize;
use std::time::Duration;

/// How a host beats, and when its peers take it for dead. The host says so in its entry, so that all judge alike; its
/// processes rely on the same numbers to stop in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseTerms {
    interval_ms: u16,
    expiry_ms: u32,
}

impl Default for LeaseTerms {
    /// A hundred milliseconds and two seconds.
    fn default() -> Self {
        Self { interval_ms: 100, expiry_ms: 2000 }
    }
}

impl LeaseTerms {
    /// The longest expiry: four hours.
    pub const LONGEST_EXPIRY_MS: u32 = 4 * 3600 * 1000;
    /// How many intervals an expiry has at least.
    pub const FEWEST_INTERVALS: u32 = 3;

    /// Terms by which a lease is increased every `interval_ms`, and has expired when it stood still for `expiry_ms`.
    ///
    /// # Errors
    /// [`Error::BadLease`] when the interval is 0, or the expiry less than three intervals or more than four hours.
    pub fn new(interval_ms: u16, expiry_ms: u32) -> Result<Self> {
        let least = u32::from(interval_ms) * Self::FEWEST_INTERVALS;
        if interval_ms == 0 || !(least..=Self::LONGEST_EXPIRY_MS).contains(&expiry_ms) {
            return Err(Error::BadLease { interval_ms, expiry_ms });
        }
        Ok(Self { interval_ms, expiry_ms })
    }

    /// The same, where what is `None` is as by default, or as fits to the other: an expiry is at least three intervals.
    ///
    /// # Errors
    /// As for [`LeaseTerms::new`].
    pub fn with_defaults(interval_ms: Option<u16>, expiry_ms: Option<u32>) -> Result<Self> {
        let usual = Self::default();
        let third = |expiry: u32| u16::try_from(expiry / Self::FEWEST_INTERVALS).unwrap_or(u16::MAX);
        let interval = interval_ms.unwrap_or_else(|| expiry_ms.map_or(usual.interval_ms, third).min(usual.interval_ms));
        let least = u32::from(interval) * Self::FEWEST_INTERVALS;
        Self::new(interval, expiry_ms.unwrap_or_else(|| usual.expiry_ms.max(least)))
    }

    /// Milliseconds between two beats.
    #[must_use]
    pub fn interval_ms(self) -> u16 {
        self.interval_ms
    }

    /// Milliseconds after which a lease that stands still has expired.
    #[must_use]
    pub fn expiry_ms(self) -> u32 {
        self.expiry_ms
    }

    /// Time between two beats, and between two looks of a process that runs a guest.
    #[must_use]
    pub fn interval(self) -> Duration {
        Duration::from_millis(self.interval_ms.into())
    }

    /// Time after which a lease that stands still has expired.
    #[must_use]
    pub fn expiry(self) -> Duration {
        Duration::from_millis(self.expiry_ms.into())
    }
}

/// What a peer's lease says about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// It beats.
    Alive,
    /// It has missed a beat.
    Late,
    /// It has not beaten for half of the bound.
    Suspect,
    /// It has not beaten for so long that it may be fenced.
    Expired,
}

/// One observer's view of one life of one host.
#[derive(Clone, Debug)]
pub struct LeaseWatch {
    terms: LeaseTerms,
    lease: u64,
    /// When it was looked at last, by the observer's clock.
    looked: Duration,
    /// For how long it has stood still under the observer's eyes.
    still: Duration,
    /// The longest time that it stood still and moved again; it fades.
    longest: Duration,
}

impl LeaseWatch {
    /// The bound grows up to so many times what the user set.
    const MOST: u32 = 4;
    /// With every beat the longest pause fades by this part of it.
    const FADING: u32 = 64;

    /// Begins to watch, at `now` by the observer's own clock.
    #[must_use]
    pub fn new(terms: LeaseTerms, lease: u64, now: Duration) -> Self {
        Self { terms, lease, looked: now, still: Duration::ZERO, longest: Duration::ZERO }
    }

    /// Takes a look at `now`, of an observer that means to look again within `pace`.
    pub fn look(&mut self, lease: u64, now: Duration, pace: Duration) -> LeaseState {
        let since = now.saturating_sub(self.looked);
        self.looked = now;
        if lease != self.lease {
            self.lease = lease;
            self.longest = (self.longest - self.longest / Self::FADING).max(self.still);
            self.still = Duration::ZERO;
            return LeaseState::Alive;
        }
        // An observer that was away for longer than it meant to has seen no more than that.
        self.still += since.min(2 * pace);
        self.standing()
    }

    fn standing(&self) -> LeaseState {
        let bound = self.bound();
        if self.still >= bound {
            LeaseState::Expired
        } else if self.still >= bound / 2 {
            LeaseState::Suspect
        } else if self.still >= 2 * self.terms.interval() {
            LeaseState::Late
        } else {
            LeaseState::Alive
        }
    }

    /// For how long the lease may stand still at present.
    #[must_use]
    pub fn bound(&self) -> Duration {
        (2 * self.longest).clamp(self.terms.expiry(), Self::MOST * self.terms.expiry())
    }

    /// For how long it has stood still under the observer's eyes.
    #[must_use]
    pub fn still(&self) -> Duration {
        self.still
    }

    /// By what it is judged.
    #[must_use]
    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    /// The count at the last look.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Duration = Duration::from_millis(5);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn terms() -> LeaseTerms {
        LeaseTerms::new(10, 100).expect("good terms")
    }

    /// Looks every five milliseconds until `until`, while the lease stands still; gives the last word.
    fn stare(watch: &mut LeaseWatch, from: u64, until: u64) -> LeaseState {
        let lease = watch.lease();
        let mut standing = LeaseState::Alive;
        for now in (from..=until).step_by(5) {
            standing = watch.look(lease, ms(now), PACE);
        }
        standing
    }

    #[test]
    fn a_lease_that_stands_still_goes_from_late_to_suspect_to_expired() {
        let mut watch = LeaseWatch::new(terms(), 1, ms(0));
        assert_eq!(stare(&mut watch, 5, 15), LeaseState::Alive);
        assert_eq!(stare(&mut watch, 20, 45), LeaseState::Late);
        assert_eq!(stare(&mut watch, 50, 95), LeaseState::Suspect);
        assert_eq!(stare(&mut watch, 100, 100), LeaseState::Expired);
    }

    #[test]
    fn a_lease_that_moves_is_alive_whatever_it_was_before() {
        let mut watch = LeaseWatch::new(terms(), 1, ms(0));
        assert_eq!(stare(&mut watch, 5, 100), LeaseState::Expired);
        assert_eq!(watch.look(2, ms(105), PACE), LeaseState::Alive);
        assert_eq!(watch.still(), Duration::ZERO);
    }

    #[test]
    fn an_observer_that_was_away_has_seen_nothing() {
        let mut watch = LeaseWatch::new(terms(), 1, ms(0));
        assert_eq!(watch.look(1, ms(60_000), PACE), LeaseState::Alive, "it was the observer that was paused");
        assert_eq!(watch.still(), 2 * PACE);
    }

    #[test]
    fn a_host_that_pauses_often_is_given_more_time_and_not_without_end() {
        let mut watch = LeaseWatch::new(terms(), 1, ms(0));
        stare(&mut watch, 5, 90);
        watch.look(2, ms(95), PACE);
        assert_eq!(watch.bound(), ms(180));
        assert_eq!(stare(&mut watch, 100, 200), LeaseState::Suspect);
        stare(&mut watch, 205, 5000);
        watch.look(3, ms(5005), PACE);
        assert_eq!(watch.bound(), ms(400), "four times the bound");
        for beat in 0..1000_u64 {
            watch.look(4 + beat, ms(5010 + 5 * beat), PACE);
        }
        assert_eq!(watch.bound(), ms(100), "old pauses are forgotten");
    }

    #[test]
    fn terms_that_nobody_could_keep_are_refused() {
        for (interval, expiry) in [(0, 100), (10, 29), (1, 0), (10, LeaseTerms::LONGEST_EXPIRY_MS + 1)] {
            let error = LeaseTerms::new(interval, expiry).expect_err("bad terms");
            assert!(error.to_string().contains("3 intervals"), "{error}");
        }
        assert!(LeaseTerms::new(10, 30).is_ok());
    }
}
