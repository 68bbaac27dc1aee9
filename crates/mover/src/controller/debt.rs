//! A debt that time pays back: the one rule behind the guest's time and the bandwidth.
//!
//! A token bucket seen from below: it is not filled and drawn from, it is overdrawn and paid back, so that a chunk of
//! any size can be taken at once, and the pause comes after it.

use super::CATCH_UP;
use std::time::{Duration, Instant};

/// An amount (seconds, bytes) that is owed; a little may be paid in advance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Debt {
    owed: f64,
    paid_until: Option<Instant>,
}

impl Debt {
    /// Adds to the debt.
    pub(super) fn incur(&mut self, amount: f64) {
        self.owed += amount;
    }

    /// Pays back at `rate` per second for the time since the last call, and tells how much longer it takes at that rate.
    pub(super) fn pay(&mut self, now: Instant, rate: f64) -> Duration {
        let since = now.saturating_duration_since(*self.paid_until.get_or_insert(now));
        self.paid_until = Some(now);
        if rate == f64::INFINITY {
            self.owed = 0.0;
            return Duration::ZERO;
        }
        let ahead = rate * CATCH_UP.as_secs_f64();
        self.owed = (self.owed - rate * since.as_secs_f64()).max(-ahead);
        if self.owed <= 0.0 {
            Duration::ZERO
        } else {
            Duration::try_from_secs_f64(self.owed / rate).unwrap_or(Duration::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn time_pays_a_debt_back() {
        let (start, mut debt) = (Instant::now(), Debt::default());
        assert_eq!(debt.pay(start, 1000.0), Duration::ZERO);
        debt.incur(4.0);
        assert_eq!(debt.pay(start, 1000.0), 4 * MILLISECOND);
        assert_eq!(debt.pay(start + 3 * MILLISECOND, 1000.0), MILLISECOND);
        assert_eq!(debt.pay(start + 4 * MILLISECOND, 1000.0), Duration::ZERO);
    }

    #[test]
    fn a_debt_is_paid_at_the_rate_of_the_moment() {
        let (start, mut debt) = (Instant::now(), Debt::default());
        debt.pay(start, 1000.0);
        debt.incur(8.0);
        assert_eq!(debt.pay(start, 1000.0), 8 * MILLISECOND);
        assert_eq!(debt.pay(start, 4000.0), 2 * MILLISECOND);
        assert_eq!(debt.pay(start, 0.0), Duration::MAX);
        assert_eq!(debt.pay(start, f64::INFINITY), Duration::ZERO);
    }

    #[test]
    fn little_can_be_paid_in_advance() {
        let (start, mut debt) = (Instant::now(), Debt::default());
        debt.pay(start, 1000.0);
        assert_eq!(debt.pay(start + Duration::from_secs(100), 1000.0), Duration::ZERO);
        debt.incur(7.0);
        assert_eq!(debt.pay(start + Duration::from_secs(100), 1000.0), 7 * MILLISECOND - CATCH_UP);
    }
}
