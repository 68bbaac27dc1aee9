//! Where guests have their memory, and how it got there.

use crate::name::{GuestName, HostName};
use crate::order::GuestRange;
use nil_mover::{Direction, MoveProgress, MoveReport};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Where memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Whereabouts {
    /// In the DRAM of the host that runs the guest.
    Dram,
    /// In the pool.
    Pool,
    /// Here and there.
    Both,
}

/// Where a guest's memory lies, as its placement map has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MemoryReport {
    /// In a word.
    #[serde(rename = "in")]
    pub whereabouts: Whereabouts,
    /// Bytes that lie in the pool, whole granules only.
    pub pooled_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// Whether the pool has a capacity for it.
    pub placed: bool,
    /// Parts that devices have pinned.
    pub pins: usize,
    /// Parts that were pulled back and are held.
    pub holds: usize,
}

/// Memory of a guest that must not move from where it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PinReport {
    /// Its number, by which it is released.
    pub id: String,
    /// Which memory.
    pub range: GuestRange,
    /// Who needs it so.
    pub owner: String,
    /// What for.
    pub reason: String,
    /// The host that it was declared on.
    pub host: Option<String>,
}

/// A decoupling or recoupling, measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MemoryMoved {
    /// The guest.
    pub guest: GuestName,
    /// The host that runs it.
    pub host: HostName,
    /// What was moved; `None` when there was nothing to do but to lift holds.
    pub moved: Option<MoveReport>,
    /// What was moved back, when it was called off or had waited in vain.
    pub moved_back: Option<MoveReport>,
    /// Where the memory lies now.
    pub memory: MemoryReport,
    /// What a person should know besides, in sentences.
    pub remarks: Vec<String>,
}

impl MemoryReport {
    /// What the placement map and the pins say.
    pub(crate) fn new(pooled_bytes: u64, mixed_bytes: u64, total_bytes: u64, placed: bool) -> Self {
        let whereabouts = match (pooled_bytes, mixed_bytes) {
            (0, 0) => Whereabouts::Dram,
            (pooled, _) if pooled == total_bytes => Whereabouts::Pool,
            _ => Whereabouts::Both,
        };
        Self { whereabouts, pooled_bytes, total_bytes, placed, pins: 0, holds: 0 }
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whereabouts {
            Whereabouts::Dram => f.pad("dram"),
            Whereabouts::Pool => f.pad("pool"),
            Whereabouts::Both => {
                // Rounded towards the middle: what is not all is never shown as all or nothing.
                let percent = (u128::from(self.pooled_bytes) * 100 / u128::from(self.total_bytes.max(1))).clamp(1, 99);
                f.pad(&format!("{percent} % in the pool"))
            }
        }
    }
}

/// How far a move is, in a clause.
pub(crate) fn describe(moving: &MoveProgress) -> String {
    let verb = match moving.direction {
        Direction::Decouple => "decoupling",
        Direction::Recouple => "recoupling",
    };
    let MoveProgress { done_bytes, total_bytes, bytes_per_s, stall, .. } = moving;
    let mib = |bytes: u64| bytes >> 20;
    let far = format!("{verb}, {} of {} MiB, {} MiB/s", mib(*done_bytes), mib(*total_bytes), mib(*bytes_per_s));
    match stall {
        None => far,
        Some(stall) => format!("{far}; it waits: {stall}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_mover::{Stall, StallReason};

    #[test]
    fn progress_says_what_it_waits_for() {
        let reason = StallReason::Pinned { owner: "vfio".into(), reason: "DMA".into() };
        let stall = Some(Stall { guest_address: 0x40_0000, bytes: 2 << 20, reason });
        let (direction, done_bytes, total_bytes, bytes_per_s) = (Direction::Decouple, 62 << 20, 64 << 20, 0);
        let text = describe(&MoveProgress { direction, done_bytes, total_bytes, bytes_per_s, stall });
        assert!(text.starts_with("decoupling, 62 of 64 MiB, 0 MiB/s; it waits: "), "{text}");
        assert!(text.contains("vfio") && text.contains("0x400000"), "{text}");
    }

    #[test]
    fn memory_is_in_dram_in_the_pool_or_in_both() {
        for (pooled, mixed, text) in [
            (0, 0, "dram"),
            (100, 0, "pool"),
            (63, 0, "63 % in the pool"),
            (0, 2, "1 % in the pool"),
            (99, 0, "99 % in the pool"),
        ] {
            assert_eq!(MemoryReport::new(pooled, mixed, 100, true).to_string(), text);
        }
    }
}
