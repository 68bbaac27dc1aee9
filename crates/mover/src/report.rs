//! What a move tells while it lasts, and what it cost when it is over.

use crate::plan::Direction;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A move in progress.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveProgress {
    /// Which way.
    pub direction: Direction,
    /// Bytes that have arrived, those that did not need to be copied among them.
    pub done_bytes: u64,
    /// Bytes that are to move.
    pub total_bytes: u64,
    /// Bytes per second, lately.
    pub bytes_per_s: u64,
    /// What the move waits for, if it cannot go on.
    pub stall: Option<Stall>,
}

/// A part of a guest's memory that cannot move now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stall {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Its length.
    pub bytes: u64,
    /// Why.
    pub reason: StallReason,
}

/// Why memory cannot move.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StallReason {
    /// A device has pinned it.
    Pinned {
        /// Who.
        owner: String,
        /// What for.
        reason: String,
    },
    /// Somebody has pulled it back, and holds it.
    Held {
        /// Who.
        owner: String,
        /// What for.
        reason: String,
    },
    /// Something has pinned it that never said so.
    Undeclared(UndeclaredPin),
}

/// Memory of a guest's worker that something has pinned without saying so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UndeclaredPin {
    /// Where in the guest's memory; `None` when the kernel does not tell.
    pub offset: Option<u64>,
    /// How much.
    pub bytes: u64,
    /// Who, as far as the kernel tells.
    pub holder: String,
}

/// How a move ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MoveOutcome {
    /// Everything has moved.
    Done,
    /// It was called off.
    Cancelled,
    /// It waited in vain for a part that could not move.
    Stalled(Stall),
}

/// How long the guest's stores had to wait for a chunk: microseconds. Chunks that no store waited for do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StallFigures {
    /// Chunks that a store waited for.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// The sizes of chunk that were used, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChunkSizes {
    /// The smallest.
    pub smallest: u64,
    /// The largest.
    pub largest: u64,
}

/// A move, measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveReport {
    /// Which way.
    pub direction: Direction,
    /// How it ended.
    pub outcome: MoveOutcome,
    /// Bytes that were to move.
    pub total_bytes: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Bytes that were all zero, and not copied.
    pub zero_bytes: u64,
    /// Bytes that the guest had never touched, and that were not even looked at.
    pub untouched_bytes: u64,
    /// Bytes that moved as huge pages.
    pub huge_bytes: u64,
    /// Chunks that moved.
    pub chunks: u64,
    /// From beginning to end, in microseconds.
    pub elapsed_us: u64,
    /// Of that, what was spent on chunks, not on pauses: microseconds.
    pub moving_us: u64,
    /// Of that, what was spent waiting for chunks that could not move: microseconds.
    pub stalled_us: u64,
    /// Bytes per second, pauses included and stalls not.
    pub bytes_per_s: u64,
    /// What the guest's stores waited.
    pub stall_us: StallFigures,
    /// The share of its time that the guest lost, as the mover measured it, in percent.
    pub slowdown_pct: f64,
    /// The chunks' sizes.
    pub chunk_bytes: ChunkSizes,
    /// Pins that nobody had declared.
    pub undeclared: Vec<UndeclaredPin>,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.bytes >> 10;
        write!(f, "{kib} KiB of memory at guest address {:#x} cannot move: {}", self.guest_address, self.reason)
    }
}

impl fmt::Display for StallReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned { owner, reason } => write!(f, "{owner} has pinned it ({reason})"),
            Self::Held { owner, reason } => write!(f, "{owner} holds it ({reason})"),
            Self::Undeclared(pin) => write!(f, "{pin}"),
        }
    }
}

impl fmt::Display for UndeclaredPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has pinned {} KiB", self.holder, self.bytes >> 10)?;
        match self.offset {
            Some(offset) => write!(f, " at {offset:#x} of the guest's memory"),
            None => f.write_str(" somewhere in it"),
        }
    }
}
