//! What is to move, what it may cost the guest, and how it is called off.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which way memory goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the host's DRAM to the pool.
    Decouple,
    /// From the pool to the host's DRAM.
    Recouple,
}

impl Direction {
    /// The verb, for people.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Decouple => "decouple",
            Self::Recouple => "recouple",
        }
    }
}

/// How much of the guest's time a move may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pace {
    /// All the bandwidth that there is.
    Fast,
    /// As fast as this allows.
    Paced {
        /// The longest that a store of the guest may wait for a chunk, in microseconds.
        max_stall_us: u64,
        /// The share of its time that the guest may lose while the move lasts, in percent.
        max_slowdown_pct: u8,
    },
}

impl Default for Pace {
    fn default() -> Self {
        Self::Paced { max_stall_us: 500, max_slowdown_pct: 20 }
    }
}

/// What a move may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The guest's time.
    pub pace: Pace,
    /// Bytes per second; `None` is no limit.
    pub bandwidth: Option<u64>,
}

/// A part of a guest's memory, counted from its first byte, whatever lies between its regions in the guest's address
/// space. Whole granules.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveRange {
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// A move of a guest's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MovePlan {
    /// Which way.
    pub direction: Direction,
    /// Which part of the guest's memory; `None` is all of it.
    pub range: Option<MoveRange>,
    /// What it may cost.
    pub budget: Budget,
    /// The NUMA node that the memory is to come to; `None` leaves it to the kernel. Recoupling only.
    pub node: Option<u32>,
    /// How long the move may wait for chunks that cannot move, in microseconds, before it ends without them.
    pub stall_timeout_us: u64,
}

impl MovePlan {
    /// How long a move waits for chunks that cannot move, if nothing else is said: 30 s.
    pub const STALL_TIMEOUT_US: u64 = 30_000_000;

    /// A move of all memory at the default budget.
    #[must_use]
    pub fn of_everything(direction: Direction) -> Self {
        let (range, budget, node) = (None, Budget::default(), None);
        Self { direction, range, budget, node, stall_timeout_us: Self::STALL_TIMEOUT_US }
    }
}

/// A handle by which a move in progress is called off, or told how much bandwidth it may use. Clones steer the same move.
#[derive(Clone, Debug, Default)]
pub struct MoveControl {
    inner: Arc<Steering>,
}

#[derive(Debug)]
struct Steering {
    cancelled: AtomicBool,
    /// Bytes per second; `u64::MAX` is no limit.
    bandwidth: AtomicU64,
}

impl Default for Steering {
    fn default() -> Self {
        Self { cancelled: AtomicBool::new(false), bandwidth: AtomicU64::new(u64::MAX) }
    }
}

impl MoveControl {
    /// Calls the move off: it ends after the chunk that it is at, and what has moved stays where it is.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
    }

    /// Whether it has been called off.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Acquire)
    }

    /// Limits the move further than its own budget does; `None` lifts that.
    pub fn set_bandwidth(&self, bytes_per_s: Option<u64>) {
        self.inner.bandwidth.store(bytes_per_s.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The limit that stands now.
    #[must_use]
    pub fn bandwidth(&self) -> Option<u64> {
        Some(self.inner.bandwidth.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
    }
}
