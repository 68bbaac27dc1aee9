//! Durations as they stand in orders and reports.

use std::time::Duration;

/// Microseconds; more than fit are as good as for ever.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
