//! How fast guests' memory moves on this host, as its own moves show: what routes and plans are predicted by.

use super::Host;
use crate::report::Resources;
use nil_mover::{Budget, Direction, MoveOutcome, MoveReport};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of fewer bytes than these a move says nothing about the next one.
const TELLING: u64 = 16 << 20;

/// Bytes per second of the latest moves, each counting less than the one after it.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    into_pool: Option<u64>,
    out_of_pool: Option<u64>,
}

/// What has been measured since the agent began.
#[derive(Debug, Default)]
pub(super) struct Measured(Mutex<Rates>);

impl Measured {
    fn lock(&self) -> MutexGuard<'_, Rates> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a move into account that was made at the default budget and had something to copy.
    pub(super) fn note(&self, budget: Budget, report: &MoveReport) {
        let took_us = report.elapsed_us.saturating_sub(report.stalled_us);
        let is_telling = budget == Budget::default()
            && report.outcome == MoveOutcome::Done
            && report.copied_bytes >= TELLING
            && took_us > 0;
        if !is_telling {
            return;
        }
        // All bytes: what is not copied because it is zero will be so the next time, too.
        let bytes = u128::from(report.total_bytes.saturating_sub(report.untouched_bytes));
        let rate = u64::try_from(bytes * 1_000_000 / u128::from(took_us)).unwrap_or(u64::MAX).max(1);
        let mut rates = self.lock();
        let known = match report.direction {
            Direction::Decouple => &mut rates.into_pool,
            Direction::Recouple => &mut rates.out_of_pool,
        };
        *known = Some(known.map_or(rate, |before| before / 4 * 3 + rate / 4));
    }
}

impl Host {
    /// What this host has, and how fast it has been.
    pub(super) fn resources(&self) -> Resources {
        let Rates { into_pool, out_of_pool } = *self.measured.lock();
        Resources { into_pool, out_of_pool, ..self.machine.resources() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_mover::Pace;
    use serde_json::json;

    fn report(direction: &str, copied: u64, elapsed_us: u64) -> MoveReport {
        let report = json!({
            "direction": direction, "outcome": "done", "total_bytes": copied, "copied_bytes": copied, "zero_bytes": 0,
            "untouched_bytes": 0, "huge_bytes": 0, "chunks": 1, "elapsed_us": elapsed_us, "moving_us": 1,
            "stalled_us": 0, "bytes_per_s": 1, "stall_us": {"count": 0, "p50": 0, "p99": 0, "max": 0},
            "slowdown_pct": 0.0, "chunk_bytes": {"smallest": 0, "largest": 0}, "undeclared": [],
        });
        serde_json::from_value(report).expect("a report")
    }

    #[test]
    fn the_latest_moves_at_the_default_budget_say_how_fast_the_next_will_be() {
        let measured = Measured::default();
        let rates = || {
            let Rates { into_pool, out_of_pool } = *measured.lock();
            (into_pool, out_of_pool)
        };
        let fast = Budget { pace: Pace::Fast, bandwidth: None };
        measured.note(fast, &report("decouple", 64 << 20, 1));
        measured.note(Budget::default(), &report("decouple", 4096, 1));
        assert_eq!(rates(), (None, None));
        measured.note(Budget::default(), &report("decouple", 100_000_000, 1_000_000));
        measured.note(Budget::default(), &report("recouple", 40_000_000, 1_000_000));
        assert_eq!(rates(), (Some(100_000_000), Some(40_000_000)));
        measured.note(Budget::default(), &report("decouple", 200_000_000, 1_000_000));
        assert_eq!(rates(), (Some(125_000_000), Some(40_000_000)));
    }
}
